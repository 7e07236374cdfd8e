"""`load`: a bundle, opened with the best engine this machine has.

model = dpad.load("bundles/tiny")
"""

from collections.abc import Iterable
from os import PathLike
from typing import TypedDict, Unpack
from warnings import warn

from dpad.runtime.arguments import reading
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.checks import as_integer, is_integer
from dpad.runtime.decoding.elsewhere import instead_of
from dpad.runtime.decoding.scheduler import WAITING, limits
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.select import EAGER, open_engine
from dpad.runtime.errors import EngineUnavailable, InvalidRequest
from dpad.runtime.extras import needed_by
from dpad.runtime.model import DiffusionModel, tokenizer_directory
from dpad.runtime.show import escaped, shown
from dpad.runtime.text.codec import TextCodec


class _Nothing(TypedDict):
    """No further options: other tools' are told what to give instead."""


def load(
    directory: str | PathLike[str],
    *,
    engine: str = "auto",
    threads: int = 0,
    slots: int | None = None,
    max_running: int | None = None,
    max_waiting: int = WAITING,
    verify_hashes: bool = True,
    **unknown: Unpack[_Nothing],
) -> DiffusionModel:
    """Open a bundle with the best engine this machine has.

    Args:
        directory: a bundle made by `dpad export`.
        engine: `auto`, a name from `dpad inspect` (such as `onnxruntime-cpu`), `torch` for
            the eager reference, or `torch-cuda` for it on a GPU, with the Triton kernel.
        threads: of ONNX Runtime on a CPU; 0 is every core. Those of `torch` are the whole process's: set them
            with `torch.set_num_threads`.
        slots: tokens whose keys and values fit at a time, of all that is generated together, and one more. Default:
            what the limits of the bundle need, or half of the memory that is free.
        max_running: requests that are generated together; None is four times the bundle's `--max-batch`.
        max_waiting: requests that may wait behind them; more raise `QueueFull`.
        verify_hashes: compare SHA-256 of every file; sizes and names are always compared.
        unknown: there are no others; they raise `InvalidRequest`.

    Raises:
        InvalidRequest: an argument is unknown or of a wrong kind, `threads` is no such number or given to `torch`, or
            memory has no room for `slots`.
        BundleError: the directory is not what its manifest says.
        EngineError: no engine, or not this one, can run here.
    """
    engine, eager, slots = _checked(engine, threads, slots, verify_hashes, unknown)
    requests = limits(max_running, max_waiting)
    bundle = Bundle.open(directory, hashes=verify_hashes)
    if bundle.manifest.is_random:
        warn(f"{directory} holds random weights (dpad synth): all text is noise", stacklevel=2)
    codec = TextCodec.open(tokenizer_directory(bundle.directory)) if bundle.manifest.tokenizer else None
    opened: Engine
    if eager:
        with needed_by(f"engine {engine}", EngineUnavailable):
            from dpad.models.torch_engine import open_torch_engine

        opened = open_torch_engine(bundle, device="cuda" if engine == "torch-cuda" else "cpu", slots=slots)
    else:
        opened = open_engine(bundle, engine, threads, slots)
    return DiffusionModel(opened, codec, bundle.manifest.presets, **requests)


@reading("an argument of load")
def _checked(
    engine: object, threads: object, slots: object, verify_hashes: object, unknown: Iterable[str]
) -> tuple[str, bool, int | None]:
    """The engine's name, whether it is eager, `slots`; raises `InvalidRequest` for what is no argument of `load`."""
    for name in unknown:
        hint = "".join(f" ({meant})" for meant in [instead_of(name, load=True)] if meant)
        raise InvalidRequest(
            f"{escaped(name)} is no argument of load{hint}; these are: engine, threads, slots, max_running, "
            "max_waiting, verify_hashes"
        )
    if not isinstance(engine, str):
        raise InvalidRequest(
            f"engine {shown(engine)} is no name; dpad inspect lists those of a bundle, or leave it out"
        )
    if not isinstance(verify_hashes, bool):
        raise InvalidRequest(f"verify_hashes {shown(verify_hashes)} is neither True nor False")
    slots = as_integer(slots, "slots")
    if slots is not None and not is_integer(slots):
        raise InvalidRequest(f"slots {shown(slots)} must be an integer; leave it out for what the bundle's limits need")
    engine = str.__str__(engine)
    eager = engine in EAGER
    if eager and as_integer(threads, "threads") != 0:
        raise InvalidRequest(
            f"threads {shown(threads)} cannot be given to engine {engine}: torch has one number for the whole process; "
            "leave threads out, and call torch.set_num_threads, or set OMP_NUM_THREADS"
        )
    return engine, eager, slots
