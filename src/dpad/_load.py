"""`load` opens a bundle with the best engine that runs on this machine.

model = dpad.load("bundles/tiny")
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from os import PathLike
from typing import TypedDict, Unpack
from warnings import warn

from dpad.runtime.arguments import reading
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.checks import as_integer, is_integer
from dpad.runtime.decoding.foreign_options import instead_of
from dpad.runtime.decoding.likely import likely_rows
from dpad.runtime.decoding.limits import WAITING, limits
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.select import EAGER, open_engine
from dpad.runtime.errors import EngineUnavailable, InvalidRequest
from dpad.runtime.extras import needed_by
from dpad.runtime.model import DiffusionModel
from dpad.runtime.reader import tokenizer_directory
from dpad.runtime.show import escaped, shown
from dpad.runtime.text.codec import TextCodec

WARM_SECONDS = 20.0  # most seconds for recording steps before the first request

Progress = Callable[[str, int, int | None], None]


class _Nothing(TypedDict):
    """No further options; for names that other tools use, the error says what to give instead."""


def load(
    directory: str | PathLike[str],
    *,
    engine: str = "auto",
    threads: int = 0,
    slots: int | None = None,
    warm: bool = True,
    max_running: int | None = None,
    max_waiting: int = WAITING,
    verify_hashes: bool = True,
    progress: Progress | None = None,
    **unknown: Unpack[_Nothing],
) -> DiffusionModel:
    """Open a bundle with the best engine that runs on this machine.

    Args:
        directory: a bundle made by `dpad export`.
        engine: `auto`, a name from `dpad inspect` (such as `torch-cuda` or `onnxruntime-cpu`), `eager` for the
            reference in PyTorch, not compiled, or `eager-cuda` for the reference on a GPU.
        threads: threads of ONNX Runtime on a CPU; 0 is one per core. PyTorch's threads belong to the whole process:
            set them with `torch.set_num_threads`.
        slots: size of the KV cache in tokens, for all requests that run together, plus one. Default: the need of the
            bundle's limits, or half of the free memory if that is less.
        warm: on a GPU, run and record the likely shapes of steps before the first request, for up to 20 seconds;
            without it the first passes of each shape are slow.
        max_running: requests that run together; None is four times the bundle's `--max-batch`.
        max_waiting: requests that may wait behind them, 4096 by default; further ones raise `QueueFull`.
        verify_hashes: compare SHA-256 of every file; sizes and names are always compared.
        progress: called with the current activity, the amount done and the total (bytes or shapes; None if unknown).
        unknown: other arguments raise `InvalidRequest`.

    Raises:
        InvalidRequest: an argument is unknown or of a wrong type, `threads` is out of range or given to a torch engine,
            or memory has no room for `slots`.
        BundleError: the directory is not what its manifest says.
        EngineError: no engine, or not the chosen one, can run here.
    """
    engine, eager, slots = _checked(engine, threads, slots, {"verify_hashes": verify_hashes, "warm": warm}, unknown)
    requests = limits(max_running, max_waiting)
    told = progress or _untold
    bundle = Bundle.open(directory, hashes=verify_hashes, advance=_summed(told, "checking files"))
    if bundle.manifest.is_random:
        warn(f"{directory} holds random weights (dpad synth): all text is noise", stacklevel=2)
    codec = TextCodec.open(tokenizer_directory(bundle.directory)) if bundle.manifest.tokenizer else None
    opened: Engine
    if eager:
        with needed_by(f"engine {engine}", EngineUnavailable):
            from dpad.models.torch_engine import open_torch_engine

        opened = open_torch_engine(bundle, device="cuda" if engine == "eager-cuda" else "cpu", slots=slots)
    else:
        opened = open_engine(bundle, engine, threads, slots, _compile_step)
    digest = bundle.manifest.to_json()["digest"]
    model = DiffusionModel(opened, codec, bundle.manifest.presets, digest=digest, **requests)
    if warm:
        rows = likely_rows(opened.contract, model.presets)
        try:
            opened.warm_up(rows, WARM_SECONDS, partial(told, "recording steps"))
        except BaseException:  # including an interrupt
            model.close()
            raise
    return model


def _untold(what: str, done: int, total: int | None) -> None:
    """Ignore the progress."""


def _summed(told: Progress, what: str) -> Callable[[int], None]:
    """Make a callback that takes amounts and reports their sum to `told`."""
    amounts: list[int] = []

    def advance(amount: int) -> None:
        amounts.append(amount)
        told(what, sum(amounts), None)

    return advance


def _compile_step(bundle: Bundle, variant: str, device: str, slots: int | None) -> Engine:
    with needed_by(f"engine torch-{device}", EngineUnavailable):
        from dpad.models.compiled.open import open_compiled

    return open_compiled(bundle, variant, device, slots)


@reading("an argument of load")
def _checked(
    engine: object, threads: object, slots: object, switches: Mapping[str, object], unknown: Iterable[str]
) -> tuple[str, bool, int | None]:
    """Check the arguments; returns the engine's name, whether it is eager, and `slots`. Raises `InvalidRequest`."""
    for name in unknown:
        hint = "".join(f" ({meant})" for meant in [instead_of(name, load=True)] if meant)
        raise InvalidRequest(
            f"{escaped(name)} is not an argument of load{hint}; its arguments are: engine, threads, slots, warm, "
            "max_running, max_waiting, verify_hashes, progress"
        )
    if not isinstance(engine, str):
        raise InvalidRequest(f"engine {shown(engine)} is not a name; use one that dpad inspect lists, or leave it out")
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name} {shown(value)} is neither True nor False")
    slots = as_integer(slots, "slots")
    if slots is not None and not is_integer(slots):
        raise InvalidRequest(f"slots {shown(slots)} must be an integer; leave it out to fit the bundle's limits")
    engine = str.__str__(engine)
    if engine == "torch":
        raise EngineUnavailable(
            "engine torch is now called eager, the reference in PyTorch; torch-cuda and torch-cpu are compiled"
        )
    if engine.startswith(("eager", "torch")) and as_integer(threads, "threads") != 0:
        raise InvalidRequest(
            f"threads {shown(threads)} cannot be given to engine {engine}: PyTorch's threads are set for the whole "
            "process; leave threads out, and call torch.set_num_threads, or set OMP_NUM_THREADS"
        )
    return engine, engine in EAGER, slots
