"""Makes a tokenizer.json from vocab.json and merges.txt, for checkpoints without one.

    data = from_parts(checkpoint.directory, rules_of(declared.config, like_qwen=True), declared)

The files hold a byte-level BPE but not the rules by which text is split before it. These are in the Python class that
tokenizer_config.json names; `RULES` holds those of Qwen2 and GPT-2. Dream's repositories name a class of their own
code, which is not run: it is a copy of Qwen2's class from before transformers 5. The rules here follow that copy, since
the model was trained with it. It differs from transformers 5 in three points: blank lines in merges.txt are ignored;
only the first line can be the `#version`, so that merges of "#" are kept; a named token that strips the spaces beside
it keeps doing so. `add_prefix_space` is refused, since the copy ignores it and transformers 5 does not.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpad.export.tokenizer.added_tokens import CONFIG, Declared
from dpad.models.checkpoint.checkpoint import read_json
from dpad.runtime.bundle.files import read_text
from dpad.runtime.errors import CheckpointError
from dpad.runtime.text.special_tokens import content_of

PARTS = ("vocab.json", "merges.txt")
_OTHERS = {"tokenizer.model": "sentencepiece", "*.tiktoken": "tiktoken", "tiktoken.model": "tiktoken"}

# How Qwen2 splits text: contractions, letters with one sign before them, single digits, other signs, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Rules:
    """The rules that a tokenizer class applies before the BPE, as sections of a tokenizer.json."""

    name: str
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any]


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_SPLIT = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
QWEN = Rules("Qwen2Tokenizer", {"type": "NFC"}, {"type": "Sequence", "pretokenizers": [_SPLIT, _bytes(False)]})
RULES = {rules.name: rules for rules in (QWEN, Rules("GPT2Tokenizer", None, _bytes(True)))}


def rules_of(config: dict[str, Any], *, like_qwen: bool) -> Rules | None:
    """The rules of the class in `config`, a tokenizer_config.json; those of Qwen2 if the model is `like_qwen`."""
    name = config.get("tokenizer_class")
    return RULES.get(str(name).removesuffix("Fast"), QWEN if like_qwen else None)


def way_out(source: Path) -> str:
    """How to convert other tokenizer files in `source` to a tokenizer.json, as the end of a message; may be empty."""
    found = [f"{path.name} ({kind})" for pattern, kind in _OTHERS.items() for path in sorted(source.glob(pattern))]
    found += [name for name in PARTS if (source / name).exists()]
    if not found:
        return ""
    return (
        f"; to make one from {' and '.join(dict.fromkeys(found))}, if you trust transformers and the model's own "
        f"code: python -c \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{source}', "
        f"trust_remote_code=True).save_pretrained('{source}')\""
    )


def from_parts(source: Path, rules: Rules = QWEN, declared: Declared | None = None) -> dict[str, Any]:
    """A tokenizer.json made from vocabulary, merges and added tokens in `source`; raises `CheckpointError`."""
    declared = declared or Declared.read(source)
    try:
        vocabulary, merges = _vocabulary(source / PARTS[0]), _merges(source / PARTS[1])
        _check_merges(vocabulary, merges)
    except (OSError, ValueError, CheckpointError) as error:
        raise CheckpointError(f"{source}: {' and '.join(PARTS)} are not a byte-level BPE: {error}") from None
    if declared.config.get("add_prefix_space"):
        raise CheckpointError(
            f"{source / CONFIG}: add_prefix_space is on, whose effect with {rules.name} depends on the version of "
            f"transformers; save a tokenizer.json with the version that the model was trained with{way_out(source)}"
        )
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "merges": merges,
    }
    model |= {"end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary}
    tokens = declared.added_to((), vocabulary)
    _check_complete(source, vocabulary.keys() - {token["content"] for token in tokens}, merges)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": tokens,
        "normalizer": rules.normalizer,
        "pre_tokenizer": rules.pre_tokenizer,
        "post_processor": _around(declared.config, {token["content"]: token["id"] for token in tokens} | vocabulary),
        "decoder": _bytes(True),
        "model": model,
    }


def _vocabulary(path: Path) -> dict[str, int]:
    vocabulary = read_json(path)
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in vocabulary.values()):
        raise ValueError(f"{path.name} has an id that is not an integer")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise ValueError(f"{path.name} gives two tokens the same id")
    return vocabulary


def _merges(path: Path) -> list[tuple[str, str]]:
    """The merges in a merges.txt; blanks around them, blank lines and a version in the first line are ignored."""
    lines = read_text(path).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts or (number == 1 and line.startswith("#version")):
            continue
        if len(parts) != 2:
            raise ValueError(f"line {number} of {path.name} is not a pair of tokens: {line[:80]!r}")
        merges.append((parts[0], parts[1]))
    return merges


def _check_merges(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise ValueError(f"the merge {left!r} {right!r} needs the token {token!r}, which {PARTS[0]} lacks")


def _check_complete(source: Path, words: Set[str], merges: Sequence[tuple[str, str]]) -> None:
    """Raise `CheckpointError` if the merges cannot make every word.

    With a truncated file, text would become tokens that the model has hardly seen.
    """
    made = {left + right for left, right in merges}
    lacking = sorted(word for word in words if len(word) > 1 and word not in made)
    if lacking:
        raise CheckpointError(
            f"{source / PARTS[1]} lacks the merge of {lacking[0]!r} ({len(lacking)} of {len(words)} tokens cannot be "
            f"made): it is truncated, or does not belong to {PARTS[0]}; fetch both again"
        )


def _around(config: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """The post_processor that puts the tokens of `add_bos_token` and `add_eos_token` around a text."""

    def pieces(name: str) -> Sequence[dict[str, Any]]:
        text = content_of(config.get(f"{name}_token"))
        wanted = config.get(f"add_{name}_token") is True and text in ids
        return [{"SpecialToken": {"id": text, "type_id": 0}}] if wanted else []

    first, last = pieces("bos"), pieces("eos")
    if not first and not last:
        return _bytes(True) | {"trim_offsets": False}
    named = [piece["SpecialToken"]["id"] for piece in (*first, *last)]
    tokens = {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in named}
    single, other = [{"Sequence": {"id": kind, "type_id": 0}} for kind in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [*first, single, *last],
        "pair": [*first, single, *last, *first, other, *last],
        "special_tokens": tokens,
    }
