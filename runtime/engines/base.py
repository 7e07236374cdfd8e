"""`Engine`: opens one artifact and runs one denoising step. The only seam to a backend.

    with OnnxEngine(path, contract, "float32") as engine:
        slots = engine.slots.take(70)
        outputs = engine.step(StepInputs(canvas, gather, cached, rows, write_slots=...))

Keys and values lie in the engine's pool, in slots that its callers take and give back, so two sequences never disturb
each other. `step` checks what goes in and what comes out, once; an engine implements `_step`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from threading import Lock
from types import TracebackType
from typing import Self

from dpad.runtime.contract import StepContract
from dpad.runtime.engines.checks import check_outputs, check_step
from dpad.runtime.engines.slots import Slots
from dpad.runtime.engines.step import StepInputs, StepOutputs


class Engine(ABC):
    """One compiled or eager step, and its pool.

    Attributes:
        name, contract, dtype: of what it runs; `dtype` is that of rows and pool.
        slots: those of the pool, for whoever runs sequences.
        pass_rows: query rows that take as long as all else of a step does (reading the weights, launching): padding
            that costs less than that is worth another sequence in the step. Measured by benchmarks/batching.py.
        most_rows: B · Q that a step may have at most: what the engine has memory for.
    """

    name: str
    contract: StepContract
    dtype: str
    slots: Slots
    pass_rows: int = 0
    most_rows: int = 2**31 - 1

    def __init__(self) -> None:
        self._lock = Lock()

    @abstractmethod
    def _step(self, inputs: StepInputs) -> StepOutputs:
        """Run one step of inputs that were checked; raises `EngineError` if the backend fails."""

    def step(self, inputs: StepInputs) -> StepOutputs:
        """Run one step; threads take turns.

        Raises `EngineError` if the inputs are malformed, the backend fails, or what it gives is not what was asked for.
        A step that fails writes nothing, or writes garbage to its own `write_slots`.
        """
        with self._lock:
            check_step(inputs, self.contract, self.slots.size)
            outputs = self._step(inputs)
            check_outputs(outputs, inputs, self.contract, self.name)
            return outputs

    def padded(self, axis: str, size: int) -> int:
        """The size to which axis `Q`, `K` or `R` is padded, so that shapes repeat; default none."""
        return size

    def warm_up(self, rows: Sequence[int], seconds: float, advance: Callable[[int, int], None] | None = None) -> None:
        """Make steps of `rows` query rows a sequence as fast as they will be, for about `seconds`; default nothing.

        `advance` is told how many shapes are done, and of how many.
        """
        return

    def close(self) -> None:
        """Release the backend; safe to call twice."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
