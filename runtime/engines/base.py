"""`Engine`: the interface to a backend. An engine opens one compiled step and runs it.

    with OnnxEngine(path, contract, "float32") as engine:
        slots = engine.slots.take(70)
        outputs = engine.step(StepInputs(canvas, gather, cached, rows, write_slots=...))

Keys and values lie in the engine's pool, in slots that callers take and give back, so two sequences never write to the
same slot. `step` checks inputs and outputs for all engines; a subclass implements `_step`.
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
        name: the engine's name, as in `dpad inspect`.
        contract: the step that it runs.
        dtype: dtype of the rows and of the pool.
        slots: the free slots of the pool, which a scheduler takes for its sequences.
        pass_rows: number of query rows whose computation takes as long as the fixed cost of a step (reading the
            weights, launching). Another sequence joins a step if the padding it causes has fewer rows. Measured by
            benchmarks/batching.py.
        most_rows: largest B · Q of a step, limited by the engine's memory.
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
        """Run one step on checked inputs; raises `EngineError` if the backend fails."""

    def step(self, inputs: StepInputs) -> StepOutputs:
        """Run one step; threads take turns.

        Raises `EngineError` if the inputs are malformed, the backend fails, or its outputs do not fit the inputs.
        A step that fails writes nothing, or writes garbage to its own `write_slots` only.
        """
        with self._lock:
            check_step(inputs, self.contract, self.slots.size)
            outputs = self._step(inputs)
            check_outputs(outputs, inputs, self.contract, self.name)
            return outputs

    def padded(self, axis: str, size: int) -> int:
        """The size to which axis `Q`, `K` or `R` is padded, so that shapes repeat; by default `size` itself."""
        return size

    def warm_up(self, rows: Sequence[int], seconds: float, advance: Callable[[int, int], None] | None = None) -> None:
        """Prepare steps of `rows` query rows per sequence, for about `seconds`; by default nothing is done.

        `advance` is called with the number of shapes done and their total.
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
