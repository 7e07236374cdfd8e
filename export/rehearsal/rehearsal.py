"""Tries what a bundle brings besides steps, before it is put in place: tokenizer, chat template and presets.

    rehearse(checkpoint.directory, stage / "tokenizer", presets, contract, progress)

It asks what a service will ask: a bundle that cannot be opened, wraps no message or refuses its own preset is no
use, and it is the checkpoint's files that have to be mended. Text is tried in a process of its own first.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpad.export.progress import Progress
from dpad.export.rehearsal.text_check import wrap_a_message
from dpad.export.rehearsal.trial import try_text
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.presets import read_presets, resolve
from dpad.runtime.errors import BundleError, CheckpointError, InvalidRequest


def rehearse(
    source: Path, tokenizer: Path, presets: Mapping[str, Any], contract: StepContract, progress: Progress
) -> None:
    """Use the files that were placed in `tokenizer`, if any, and every preset.

    Raises `CheckpointError` with the cause, naming the file of the checkpoint `source`; says what prompts have to be.
    """
    if tokenizer.exists():
        try_text(source, tokenizer)
        wrap_a_message(source, tokenizer, progress.say)
    origin = f"{source}, presets.json or generation_config.json"
    try:
        read = read_presets(presets)
    except BundleError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    for name in read:
        try:
            resolve(read, contract, {"preset": name}).check(contract)
        except InvalidRequest as error:
            raise CheckpointError(f"{origin}: preset {name!r}: {error}; mend it, and export again") from error
