"""A tokenizer.json from vocab.json and merges.txt, for checkpoints that bring no other.

    data = from_parts(checkpoint.directory, rules_of(declared.config, like_qwen=True), declared)

The files hold a byte-level BPE and no word of how text is parted before it: that is in the Python class that
tokenizer_config.json names. `RULES` has those of Qwen2's and GPT-2's. Dream's repositories name a class of their own,
which is in the repository and not run: it is a copy of Qwen2's, in the form of before transformers 5. From that one it
differs in three things, and is followed, since the model was trained with it: blank lines in merges.txt mean nothing;
only the first line may be the `#version`, so that merges of "#" are merges; a token that strips the spaces beside it
still does after it was named (transformers 5 forgets that of named tokens). Spaces before words (`add_prefix_space`)
are refused: it has none, and transformers 5 puts them into words.
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

# Where Qwen2 parts text: contractions, letters with one sign before them, single digits, other signs, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Rules:
    """What a tokenizer class does before the vocabulary, as tokenizer.json has it: normalizer, pre_tokenizer."""

    name: str
    normalizer: dict[str, Any] | None
    pre_tokenizer: dict[str, Any]


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_SPLIT = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
QWEN = Rules("Qwen2Tokenizer", {"type": "NFC"}, {"type": "Sequence", "pretokenizers": [_SPLIT, _bytes(False)]})
RULES = {rules.name: rules for rules in (QWEN, Rules("GPT2Tokenizer", None, _bytes(True)))}


def rules_of(config: dict[str, Any], *, like_qwen: bool) -> Rules | None:
    """The rules of the class that a tokenizer_config.json names; those of Qwen2 for models that are `like_qwen`."""
    name = config.get("tokenizer_class")
    return RULES.get(str(name).removesuffix("Fast"), QWEN if like_qwen else None)


def way_out(source: Path) -> str:
    """What is there in place of tokenizer.json, and how to make one of it."""
    found = [f"{path.name} ({kind})" for pattern, kind in _OTHERS.items() for path in sorted(source.glob(pattern))]
    found += [name for name in PARTS if (source / name).exists()]
    if not found:
        return ""
    return (
        f"; to make one of {' and '.join(dict.fromkeys(found))}, where transformers and the model's own code are "
        f"trusted: python -c \"from transformers import AutoTokenizer; AutoTokenizer.from_pretrained('{source}', "
        f"trust_remote_code=True).save_pretrained('{source}')\""
    )


def from_parts(source: Path, rules: Rules = QWEN, declared: Declared | None = None) -> dict[str, Any]:
    """A tokenizer.json over the vocabulary, merges and added tokens in `source`; raises `CheckpointError`."""
    declared = declared or Declared.read(source)
    try:
        vocabulary, merges = _vocabulary(source / PARTS[0]), _merges(source / PARTS[1])
        _check_merges(vocabulary, merges)
    except (OSError, ValueError, CheckpointError) as error:
        raise CheckpointError(f"{source}: {' and '.join(PARTS)} are no byte-level BPE: {error}") from None
    if declared.config.get("add_prefix_space"):
        raise CheckpointError(
            f"{source / CONFIG}: add_prefix_space is on, which {rules.name} has no one meaning for; save a "
            f"tokenizer.json with the transformers that the model was trained with{way_out(source)}"
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
        raise ValueError(f"{path.name} has an id that is no whole number")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise ValueError(f"{path.name} gives two tokens one id")
    return vocabulary


def _merges(path: Path) -> list[tuple[str, str]]:
    """The merges of a merges.txt; blanks around them, blank lines and the first line's version mean nothing."""
    lines = read_text(path).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        parts = line.split()
        if not parts or (number == 1 and line.startswith("#version")):
            continue
        if len(parts) != 2:
            raise ValueError(f"line {number} of {path.name} is no pair of tokens: {line[:80]!r}")
        merges.append((parts[0], parts[1]))
    return merges


def _check_merges(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in vocabulary:
                raise ValueError(f"the merge {left!r} {right!r} needs the token {token!r}, which {PARTS[0]} has not")


def _check_complete(source: Path, words: Set[str], merges: Sequence[tuple[str, str]]) -> None:
    """Refuse merges that do not make every word: of a file that was cut, text becomes tokens the model hardly knows."""
    made = {left + right for left, right in merges}
    lacking = sorted(word for word in words if len(word) > 1 and word not in made)
    if lacking:
        raise CheckpointError(
            f"{source / PARTS[1]} lacks the merge of {lacking[0]!r} ({len(lacking)} of {len(words)} tokens cannot be "
            f"made): it is cut off, or another model's than {PARTS[0]}; fetch both again"
        )


def _around(config: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """What is put around a text: the named tokens that `add_bos_token` and `add_eos_token` ask for."""

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
