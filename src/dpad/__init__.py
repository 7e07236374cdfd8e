"""dpad: masked-diffusion language models with suffix dropout (DPad), ready to serve.

    model = dpad.load("bundles/tiny")
    print(model.generate("What is 53 + 34?").text)

This module is the public interface; everything else may change between versions.
"""

from importlib import metadata
from pathlib import Path
from warnings import warn

from dpad.runtime import errors
from dpad.runtime.bundle import Bundle
from dpad.runtime.engine import Engine
from dpad.runtime.errors import DpadError, EngineUnavailable, InvalidRequest
from dpad.runtime.extras import needed_by
from dpad.runtime.generate import StepEvent
from dpad.runtime.model import DiffusionModel, Generation, Timings, tokenizer_directory
from dpad.runtime.options import GenerationOptions, Options
from dpad.runtime.request import Request
from dpad.runtime.select import open_engine
from dpad.runtime.suffix import Explicit, Full, Gaussian, SuffixSchedule, Uniform
from dpad.runtime.text import TextCodec

try:
    __version__ = metadata.version("dpad")
except metadata.PackageNotFoundError:  # run from a checkout, as `make gpu-check` does
    __version__ = "0+checkout"

__all__ = [
    "Bundle",
    "DiffusionModel",
    "DpadError",
    "Engine",
    "Explicit",
    "Full",
    "Gaussian",
    "Generation",
    "GenerationOptions",
    "InvalidRequest",
    "Options",
    "Request",
    "StepEvent",
    "SuffixSchedule",
    "TextCodec",
    "Timings",
    "Uniform",
    "errors",
    "load",
]


def load(
    directory: str | Path, *, engine: str = "auto", threads: int = 0, verify_hashes: bool = True
) -> DiffusionModel:
    """Open a bundle with the best engine this machine has.

    Args:
        directory: a bundle made by `dpad export`.
        engine: `auto`, a name from `dpad inspect` (such as `onnxruntime-cpu`), `torch` for
            the eager reference, or `torch-cuda` for it on a GPU, with the Triton kernel.
        threads: of ONNX Runtime on a CPU; 0 is every core. Those of `torch` are the whole process's: set them
            with `torch.set_num_threads`.
        verify_hashes: compare SHA-256 of every file; sizes and names are always compared.

    Raises:
        InvalidRequest: `threads` is no such number, or is given to `torch`.
        BundleError: the directory is not what its manifest says.
        EngineError: no engine, or not this one, can run here.
    """
    eager = engine in ("torch", "torch-cuda")
    if eager and threads != 0:
        raise InvalidRequest(
            f"threads {threads!r} cannot be given to engine {engine}: torch has one number for the whole process; "
            "leave threads out, and call torch.set_num_threads, or set OMP_NUM_THREADS"
        )
    bundle = Bundle.open(directory, hashes=verify_hashes)
    if bundle.manifest.is_random:
        warn(f"{directory} holds random weights (dpad synth): all text is noise", stacklevel=2)
    codec = TextCodec.open(tokenizer_directory(bundle.directory)) if bundle.manifest.tokenizer else None
    opened: Engine
    if eager:
        with needed_by(f"engine {engine}", EngineUnavailable):
            from dpad.models.torch_engine import open_torch_engine

        opened = open_torch_engine(bundle, device="cuda" if engine == "torch-cuda" else "cpu")
    else:
        opened = open_engine(bundle, engine, threads)
    return DiffusionModel(opened, codec, bundle.manifest.presets)
