"""`OnnxEngine`: a step in ONNX Runtime on a CPU.

    engine = OnnxEngine(bundle / "float32/step.onnx", contract, "float32", decide=bundle / "decide.onnx")
    slots = engine.slots.take(70)
    engine.step(inputs)

ONNX Runtime reads the pool and the index arrays in numpy's memory, without a copy. On a GPU, ONNX Runtime is a program
of `GpuEngine`; see `onnx_cuda`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dpad.runtime.bundle.variant import rows_dtype, suffix
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.machine import available_memory
from dpad.runtime.engines.onnx_session import check_signature, open_session, run
from dpad.runtime.engines.slots import Slots, pool_size, runs_of, slot_bytes
from dpad.runtime.engines.step import Decisions, Sampling, StepInputs, StepOutputs
from dpad.runtime.errors import EngineError


class OnnxEngine(Engine):
    """Runs `step.onnx`, and `decide.onnx` if a step needs more than the likeliest tokens.

    `pass_rows` was fitted (least squares of relative errors) to the times of 90 shapes of `tiny` on one thread, 1 to 8
    sequences of 16 to 256 rows; fits gave 11 to 18.
    """

    pass_rows = 12

    def __init__(
        self,
        path: Path,
        contract: StepContract,
        variant: str,
        threads: int = 0,
        model: bytes | None = None,
        decide: Path | None = None,
        slots: int | None = None,
    ) -> None:
        """Open the model.

        Args:
            path: the step's ONNX file, in the folder of its weights.
            contract: the step's contract.
            variant: the step's variant, which gives the dtype of rows and pool.
            threads: threads of ONNX Runtime; 0 is one per core.
            model: a serialised model that is loaded instead of the file at `path`.
            decide: the file of the program `decide`, opened when a step first needs it.
            slots: size of the pool, see `pool_size`.

        Raises:
            EngineError: ONNX Runtime cannot load the file; the message has its own words.
        """
        super().__init__()
        self.name = f"onnxruntime-cpu{suffix(variant)}"
        self.contract, self.dtype = contract, rows_dtype(variant)
        self._path, self._decide, self._threads = path, decide, threads
        self.session = open_session(path, "cpu", threads, model)
        check_signature(path, self.session, contract.inputs(self.dtype), contract.outputs(self.dtype))
        self._decider: ort.InferenceSession | None = None
        size = pool_size(contract, slot_bytes(contract, self.dtype), available_memory(), slots)
        shape = (size, contract.kv_heads, contract.head_size)
        self._pool = [np.zeros(shape, self.dtype) for _ in contract.cache_names()]  # unused slots take no memory
        self.slots = Slots(size)
        self._binding = self.session.io_binding()
        for name, array in zip(contract.cache_names(), self._pool):
            self._binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))

    def _step(self, inputs: StepInputs) -> StepOutputs:
        arrays = {name: getattr(inputs, name) for name in ("canvas", "gather_indices", "cache_indices", "decode_rows")}
        held = _bind(self._binding, arrays)
        outputs = ["token_ids", "odds_against"]
        if inputs.want_logits or inputs.sampling is not None:
            outputs.append("logits")
        kept = [] if inputs.write_slots is None else self.contract.new_names()
        for name in (*outputs, *kept):
            self._binding.bind_output(name)
        try:
            values = run(self.session, self._binding)
        finally:
            self._binding.clear_binding_outputs()  # the binding would keep the new rows until the next step
        del held
        if inputs.write_slots is not None:
            self._write(values[len(outputs) :], inputs)
        decisions = None if inputs.sampling is None else self._decisions(values[2], inputs.sampling)
        logits = values[2].numpy() if inputs.want_logits else None
        return StepOutputs(values[0].numpy(), values[1].numpy(), decisions, logits)

    def _write(self, new: list[ort.OrtValue], inputs: StepInputs) -> None:
        """Copy the new rows to their slots; consecutive rows and slots take one copy per tensor.

        Raises `EngineError` unless the rows have the shape that `inputs` call for, since later steps rely on the slots.
        """
        wanted = [*inputs.gather_indices.shape, self.contract.kv_heads, self.contract.head_size]
        for name, value in zip(self.contract.new_names(), new):
            if value.shape() != wanted:
                told = f"engine {self.name} gave {name} of shape {value.shape()} instead of {wanted}"
                raise EngineError(f"{told}: it is not the step of this bundle; export the bundle again")
        assert inputs.write_slots is not None
        runs = runs_of(inputs.write_slots)
        for array, value in zip(self._pool, new):
            rows = value.numpy().reshape(-1, *wanted[2:])  # no copy
            for row, slot, count in runs:
                array[slot : slot + count] = rows[row : row + count]

    def _decisions(self, logits: ort.OrtValue, sampling: Sampling) -> Decisions:
        """Run the program `decide` on `logits`, without copying them."""
        session = self._decider = self._decider or self._open_decider()
        binding = session.io_binding()
        binding.bind_ortvalue_input("logits", logits)
        held = _bind(binding, vars(sampling))
        names = [spec.name for spec in self.contract.decide_outputs()]
        for name in names:
            binding.bind_output(name)
        values = run(session, binding)
        del held
        return Decisions(**{name: value.numpy() for name, value in zip(names, values)})

    def _open_decider(self) -> ort.InferenceSession:
        if self._decide is None:
            raise EngineError(
                f"{self._path} was opened without decide.onnx, which draws tokens and computes entropies and margins; "
                "export the bundle again, or decode greedily"
            )
        session = open_session(self._decide, "cpu", self._threads)
        check_signature(self._decide, session, self.contract.decide_inputs(), self.contract.decide_outputs())
        return session

    def close(self) -> None:
        """Wait for a running step, then drop the sessions and the pool."""
        with self._lock:
            for name in ("session", "_binding", "_decider", "_pool"):
                self.__dict__.pop(name, None)

    def __getattr__(self, name: str) -> Any:
        """Raise `EngineError` for the attributes that `close` removed."""
        if name in ("session", "_binding"):
            raise EngineError(f"{self.name} is closed")
        raise AttributeError(name)


def _bind(binding: ort.IOBinding, arrays: dict[str, NDArray[Any]]) -> list[ort.OrtValue]:
    """Bind inputs; the returned values must outlive the run, because ONNX Runtime reads numpy's memory in place."""
    values = []
    for name, array in arrays.items():
        values.append(ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
        binding.bind_ortvalue_input(name, values[-1])
    return values
