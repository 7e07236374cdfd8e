"""Puts a checkpoint's tokenizer into a bundle: its own files, or a tokenizer.json made from Dream's.

    names = place_tokenizer(checkpoint, stage / "tokenizer", progress, template="rag")

Dream's repositories hold Qwen2's vocab.json and merges.txt, the special tokens in tokenizer_config.json, and
Python code that puts them together. That code is not run: what it does is Qwen2's tokenizer (NFC, words by
`WORDS`, byte-level BPE), which the tests compare with transformers' own.
"""

import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dpad.export.progress import Progress
from dpad.models import qwen
from dpad.models.checkpoint import Checkpoint, read_json
from dpad.runtime import chat_template
from dpad.runtime.errors import BundleError, CheckpointError

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", chat_template.FILE)
PARTS = ("vocab.json", "merges.txt")
SOURCES = (*FILES, *PARTS)

# Where Qwen2 parts text: contractions, letters with one sign before them, single digits, other signs, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def place_tokenizer(checkpoint: Checkpoint, folder: Path, progress: Progress, template: str | None = None) -> list[str]:
    """Write the tokenizer into `folder`, with the chat template called `template`; returns the names of its files.

    Without one nothing is written, and the bundle takes token ids only. Raises `CheckpointError` for parts
    that do not make a tokenizer, and for a template that is not there or has to be chosen.
    """
    source = checkpoint.directory
    made = None
    if not (source / FILES[0]).exists():
        if not isinstance(checkpoint.config, qwen.Config) or not all((source / name).exists() for name in PARTS):
            if template is not None:
                raise CheckpointError(f"{source} has no tokenizer, so no chat template {template!r}; leave it out")
            progress.say(f"{source} has no tokenizer.json: the bundle will take token ids only, no text")
            return []
        made = from_parts(source)
        progress.say(f"tokenizer.json: made from {' and '.join(PARTS)} as Qwen2's tokenizer")
    folder.mkdir()
    for name in FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    if made is not None:
        made.save(str(folder / FILES[0]))
    _place_template(source, folder, progress, template)
    return [name for name in FILES if (folder / name).exists()]


def sources(directory: Path) -> list[Path]:
    """The files in `directory` that decide what a bundle's tokenizer is."""
    named = [path for name in SOURCES if (path := directory / name).exists()]
    return named + sorted((directory / chat_template.FOLDER).glob("*.jinja"))


def _place_template(source: Path, folder: Path, progress: Progress, name: str | None) -> None:
    """Of several chat templates the one that is wanted, as the bundle's only one."""
    try:
        templates = chat_template.read_templates(source)
        if templates.keys() - {chat_template.DEFAULT} or name is not None:
            chosen = chat_template.choose(templates, name, source)
            (folder / chat_template.FILE).write_text(chosen, encoding="utf-8", newline="")
            progress.say(f"chat template: {name or chat_template.DEFAULT}, of {', '.join(sorted(templates))}")
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    if not templates and (source / "chat_template.json").exists():
        progress.say(
            "chat_template.json is a processor's, which tokenizers do not read: the bundle has no chat template"
        )


def from_parts(source: Path) -> Tokenizer:
    """Qwen2's tokenizer over the vocabulary, merges and added tokens in `source`."""
    try:
        tokenizer = Tokenizer(models.BPE.from_file(*(str(source / name) for name in PARTS)))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{source}: {' and '.join(PARTS)} are no byte-level BPE: {error}") from None
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    added = _added(source / "tokenizer_config.json")
    for number in sorted(added):  # an id is the next free one, so a gap would shift all behind it
        tokenizer.add_tokens([added[number]])
        got = tokenizer.token_to_id(added[number].content)
        if got != number:
            raise CheckpointError(
                f"tokenizer_config.json gives token {added[number].content!r} the id {number}, but the vocabulary and "
                f"the tokens before it make it {got}; is {PARTS[0]} complete?"
            )
    return tokenizer


def _added(path: Path) -> dict[int, AddedToken]:
    """`added_tokens_decoder` of a tokenizer_config.json by id; empty without one."""
    declared: Any = read_json(path).get("added_tokens_decoder") if path.exists() else None
    try:
        return {
            int(number): AddedToken(told["content"], **{name: bool(told.get(name)) for name in _FLAGS})
            for number, told in (declared or {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: added_tokens_decoder cannot be read: {error!r}") from None
