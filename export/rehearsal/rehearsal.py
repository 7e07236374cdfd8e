"""Tries a bundle's tokenizer, chat template and presets before it is put in place.

    rehearse(checkpoint.directory, stage / "tokenizer", presets, contract, progress)

It makes the calls that a service will make. If the tokenizer cannot be opened, a message cannot be wrapped or a preset
is refused, the checkpoint's files must be repaired before an export. Text is tried in a process of its own first.
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
    """Use every preset, and the files in `tokenizer` if there are any.

    Raises `CheckpointError` with the cause and the file of the checkpoint `source`. `progress` reports a limit on
    prompts, such as a chat template that needs a system turn.
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
            raise CheckpointError(f"{origin}: preset {name!r}: {error}; repair it, and export again") from error
