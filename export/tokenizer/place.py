"""Writes a checkpoint's tokenizer into a bundle: one tokenizer.json and its settings files.

    names = place_tokenizer(checkpoint, stage / "tokenizer", progress, template="rag")

tokenizer.json is copied, and the tokens that other files declare are added to it (added_tokens.py). If there is none,
it is made from the vocabulary files (vocabulary_files.py). This module does not call the tokenizers library: untrusted
files are tried with it in a process of its own (export/rehearsal/trial.py).
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpad.export.progress import Progress
from dpad.export.tokenizer.added_tokens import ADDED, CONFIG, SPECIAL, Declared, Token
from dpad.export.tokenizer.classes import overrules
from dpad.export.tokenizer.vocabulary_files import PARTS, RULES, from_parts, rules_of, way_out
from dpad.models import qwen
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.errors import BundleError, CheckpointError
from dpad.runtime.text import chat_template
from dpad.runtime.text.tokenizer_file import read_tokenizer

TOKENIZER = "tokenizer.json"
FILES = (TOKENIZER, CONFIG, SPECIAL, chat_template.FILE)
SOURCES = (*FILES, *PARTS, ADDED)


def place_tokenizer(checkpoint: Checkpoint, folder: Path, progress: Progress, template: str | None = None) -> list[str]:
    """Write the tokenizer, with the chat template named `template`, into `folder`; returns the names of its files.

    If the checkpoint has no tokenizer, nothing is written, and the bundle takes token ids only. Raises
    `CheckpointError` if the files are not a tokenizer or contradict each other, and if the template is missing or must
    be chosen by name.
    """
    source = checkpoint.directory
    if (source / TOKENIZER).exists():
        text, data = _read(source / TOKENIZER)
        own = _own(source / TOKENIZER, data)
        declared = Declared.read(source, own)
        changes = _changes(data, declared.added_to(own, _vocabulary(data)), progress)
        if changes:
            text = _write(source / TOKENIZER, data | changes)
        _tell_differences(source, data, declared.config, progress)
    else:
        declared = Declared.read(source)
        rules = rules_of(declared.config, like_qwen=isinstance(checkpoint.config, qwen.Config))
        if rules is None or not all((source / name).exists() for name in PARTS):
            if template is not None:
                raise CheckpointError(f"{source} has no tokenizer and so no chat template {template!r}; leave it out")
            progress.say(
                f"{source} has no tokenizer.json: the bundle will take token ids only, no text{way_out(source)}"
            )
            return []
        text = _write(source / PARTS[0], from_parts(source, rules, declared))
        progress.say(f"tokenizer.json: made from {' and '.join(PARTS)} by the rules of {rules.name}")
    for note in declared.notes:
        progress.say(note)
    folder.mkdir()
    for name in FILES[1:]:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    (folder / TOKENIZER).write_text(text, encoding="utf-8")
    _place_template(source, folder, progress, template)
    return [name for name in FILES if (folder / name).exists()]


def sources(directory: Path) -> list[Path]:
    """The files in `directory` that decide what a bundle's tokenizer is."""
    named = [path for name in SOURCES if (path := directory / name).exists()]
    return named + sorted((directory / chat_template.FOLDER).glob("*.jinja"))


def _place_template(source: Path, folder: Path, progress: Progress, name: str | None) -> None:
    """Write the chat template `name`, if there are several, as the bundle's only one."""
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
            "chat_template.json belongs to a processor, and tokenizers ignore it: the bundle has no chat template"
        )


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        return read_tokenizer(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; mend it, and export the bundle again") from None


def _write(path: Path, data: dict[str, Any]) -> str:
    """`data`, read from `path`, as JSON; raises `CheckpointError` for deep nesting and for lone surrogates."""
    try:
        text = json.dumps(data, ensure_ascii=False)
        text.encode()
    except (RecursionError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; mend it, and export the bundle again") from None
    return text


def _own(path: Path, data: dict[str, Any]) -> list[Token]:
    own = data.get("added_tokens") or []
    if not isinstance(own, list) or not all(isinstance(token, dict) for token in own):
        raise CheckpointError(f"{path} cannot be read: its added_tokens is not a list of tokens")
    return own


def _vocabulary(data: dict[str, Any]) -> dict[str, int]:
    """The vocabulary of the model in a tokenizer.json; empty if its form is unknown, which the library refuses."""
    model = data.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        return {token: number for token, number in vocab.items() if isinstance(number, int)}
    listed = vocab if isinstance(vocab, list) else []
    return {str(entry[0]): number for number, entry in enumerate(listed) if isinstance(entry, list) and entry}


def _changes(data: dict[str, Any], tokens: Sequence[Token], progress: Progress) -> dict[str, Any]:
    """The sections of a tokenizer.json that are different in the bundle."""
    changes: dict[str, Any] = {}
    own = {token["content"]: token for token in data.get("added_tokens") or ()}
    other = [token for token in tokens if own.get(token["content"]) != token]
    if other:
        changes["added_tokens"] = list(tokens)
        named = ", ".join(repr(token["content"]) for token in other[:4])
        progress.say(
            f"tokenizer.json: {len(other)} added token(s) taken from the files beside it, as transformers does: {named}"
            + (", ..." if other[4:] else "")
        )
    model = data.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        changes["model"] = model | {"dropout": None}
        progress.say(f"tokenizer.json: BPE dropout {model['dropout']} is removed, so that a text has one encoding")
    return changes


def _tell_differences(source: Path, data: dict[str, Any], config: dict[str, Any], progress: Progress) -> None:
    """Report settings by which transformers would tokenize differently from tokenizer.json."""
    rules = RULES.get(str(config.get("tokenizer_class")).removesuffix("Fast"))
    if rules and _patterns(data.get("pre_tokenizer")) != _patterns(rules.pre_tokenizer):
        progress.say(
            f"{source / CONFIG} names {rules.name}, and tokenizer.json splits words by other rules, which are used "
            "here and in transformers 4; transformers 5 uses those of the class"
        )
    elif not rules and overrules(config, data):
        progress.say(
            f"{source / CONFIG} names {config['tokenizer_class']}, whose rules override tokenizer.json in "
            "transformers 5; tokenizer.json is used here"
        )
    if config.get("split_special_tokens"):
        progress.say(
            f"{source / CONFIG}: split_special_tokens is ignored: special tokens of a chat template are not split"
        )
    model = data.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if config.get("clean_up_tokenization_spaces") and kind != "BPE":
        progress.say(f"{source / CONFIG}: clean_up_tokenization_spaces is ignored: text stays as it was generated")


def _patterns(section: Any) -> list[Any]:
    """The patterns of a pre_tokenizer's parts, in order."""
    parts = section.get("pretokenizers", [section]) if isinstance(section, dict) else []
    parts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return [
        part.get("pattern", part.get("use_regex", True) if part.get("type") == "ByteLevel" else None) for part in parts
    ]
