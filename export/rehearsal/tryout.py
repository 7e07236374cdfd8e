"""`try_out`: opens a bundle that was just made as a service will, and lets it write.

    try_out(stage, progress)        # ExportError, before the bundle is put in place

Whatever an export did, what it puts in place can be loaded: the manifest is read back, the tokenizer opened, and one
block decoded in the engine that `dpad.load` chooses here. Where none runs here, or the memory has no room for the
weights, everything but that is tried.
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

_PREPARED = 3  # weights in memory over those on disk: narrow ones, and the same in float32


def try_out(directory: Path, progress: Progress) -> None:
    """Raise `ExportError` with the cause unless the bundle in `directory` opens, and decodes where it can run here."""
    try:
        with progress.task("try the bundle"):
            bundle = Bundle.open(directory, hashes=False)  # they were taken a moment ago
            if _fits(bundle):
                _write_a_block(directory)
            else:
                progress.say(
                    "the bundle opens; it was not run, since this machine's memory has no room for its weights"
                )
    except EngineUnavailable:
        return
    except DpadError as error:
        raise ExportError(f"the new bundle cannot be used: {str(error).replace(f'{directory}/', '')}") from error


def _fits(bundle: Bundle) -> bool:
    """Whether the largest of its steps can be opened here."""
    steps = bundle.manifest.steps.values()
    largest = max(sum(bundle.manifest.files[name].size for name in step.weights) for step in steps)
    return _PREPARED * largest < available_memory()


def _write_a_block(directory: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random weights, which is no news here
        with load(directory, verify_hashes=False, warm=False) as model:
            _decode(model, model.engine.contract)


def _decode(model: DiffusionModel, contract: StepContract) -> None:
    """One block of the model's own length, or one token, in one step."""
    length = contract.block_length if contract.block_causal else 1
    prompt = [contract.eos_token_id][: contract.max_length - length]  # EOS ends nothing there
    model.generate(prompt, gen_length=length, block_length=length, decoder="fixed", steps=1)
