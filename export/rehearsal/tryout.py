"""`try_out`: opens a new bundle as a service does, and decodes one block with it.

    try_out(stage, progress)        # ExportError, before the bundle is put in place

So every bundle that an export puts in place can be loaded. The manifest is read back, the tokenizer is opened, and one
block is decoded with the engine that `dpad.load` chooses. The decode is left out if no engine runs here or the memory
has no room for the weights.
"""

import warnings
from pathlib import Path

from dpad import load
from dpad.export.progress import Progress
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.machine import available_memory
from dpad.runtime.errors import DpadError, EngineUnavailable, ExportError
from dpad.runtime.model import DiffusionModel

_PREPARED = 3  # memory over file size of the weights: 16-bit weights, and a float32 copy twice as large


def try_out(directory: Path, progress: Progress) -> None:
    """Raise `ExportError` with the cause if the bundle in `directory` does not open, or fails to decode here."""
    try:
        with progress.task("try the bundle"):
            bundle = Bundle.open(directory, hashes=False)  # write_manifest has just computed them
            if _fits(bundle):
                _write_a_block(directory)
            else:
                progress.say(
                    "the bundle opens; it was not run, since its weights do not fit into this machine's memory"
                )
    except EngineUnavailable:
        return
    except DpadError as error:
        raise ExportError(f"the new bundle cannot be used: {str(error).replace(f'{directory}/', '')}") from error


def _fits(bundle: Bundle) -> bool:
    """Whether the memory available here holds the step with the largest weights."""
    steps = bundle.manifest.steps.values()
    largest = max(sum(bundle.manifest.files[name].size for name in step.weights) for step in steps)
    return _PREPARED * largest < available_memory()


def _write_a_block(directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning about random weights
        with load(directory, verify_hashes=False, warm=False) as model:
            _decode(model, model.engine.contract)


def _decode(model: DiffusionModel, contract: StepContract) -> None:
    """Decode, in one step, one block of a block-causal model or one token of another."""
    length = contract.block_length if contract.block_causal else 1
    prompt = [contract.eos_token_id][: contract.max_length - length]  # EOS in a prompt does not end the text
    model.generate(prompt, gen_length=length, block_length=length, decoder="fixed", steps=1)
