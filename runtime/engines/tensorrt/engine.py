"""`TrtEngine`: a step compiled by TensorRT or TensorRT-RTX, with everything that is large on the GPU.

    engine = TrtEngine(tensorrt_rtx, bundle / "engines/x.plan", contract, "float16", CudaDevice())

A step sends four index arrays and brings back two numbers a decoded row; keys and values stay on the device, and those
that are kept go to their slots behind the step. Where tokens are drawn or filtered, a second plan decides from the
logits, which stay there too. Shapes come in buckets, and a shape that comes again is replayed as a CUDA graph. The
canvas travels at its full length, so that N never makes a shape new.
"""

from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.contract import StepContract, TensorSpec
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.gpu.buckets import Buckets
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.kv_pool import Rows
from dpad.runtime.engines.gpu.step_shape import StepShape
from dpad.runtime.engines.slots import Slots, pool_size, row_bytes, runs_of, slot_bytes
from dpad.runtime.engines.step import Decisions, StepInputs, StepOutputs
from dpad.runtime.engines.tensorrt.plan import TrtPlan
from dpad.runtime.engines.tensorrt.program import TrtProgram
from dpad.runtime.errors import EngineError

_REFRESH, _CACHED = 0, 1  # the profiles, in the order in which the builder adds them
_SHARE = 0.8  # of the free memory for keys and values; contexts, recordings and other processes take from the rest
_PASSES = 4  # times `pass_rows` that a pass of several sequences may have; the scheduler's budget is no larger
_PITCH = 2**31 - 1  # bytes from one tensor to the next, over which CUDA's copies in two dimensions refuse


class TrtEngine(Engine):
    """Threads may share it: one step runs at a time. It owns the device that it is given.

    `pass_rows` is of LLaDA-8B in bfloat16 on an H100, where a step of 128 rows takes 7.15 ms, 5.2 of them to read 16 GB
    of weights. A row costs 2 · 8e9 / 786e12 s = 20 us where products bound, so 300 cost what all else does.
    """

    pass_rows = 300

    def __init__(
        self,
        trt: Any,
        plan: Path,
        contract: StepContract,
        dtype: str,
        device: Device,
        step_onnx: Path | None = None,
        *,
        decide: Path | None = None,
        slots: int | None = None,
        name: str = "tensorrt",
        cuda_graphs: bool = True,
        host_code: bool = False,
        kernel_cache: str | None = None,
    ) -> None:
        """Open `plan`, and the plan `decide` without which there is no sampling.

        `slots` is the size of the pool, see `pool_size` for its default and its errors; see `TrtPlan` for the other
        arguments and errors.
        """
        super().__init__()
        self.name, self.contract, self.dtype = name, contract, dtype
        self.device, self._closed = device, False
        shared: dict[str, Any] = {"host_code": host_code, "cuda_graphs": cuda_graphs}
        with ExitStack() as opened:  # closes again what was opened, if the rest fails

            def open_plan(path: Path, inputs: list[TensorSpec], outputs: list[TensorSpec], **own: Any) -> TrtPlan:
                return opened.enter_context(closing(TrtPlan(trt, path, inputs, outputs, device, **shared, **own)))

            def open_program(plan: TrtPlan, profiles: tuple[str, ...], addresses: dict[str, int]) -> TrtProgram:
                return opened.enter_context(closing(TrtProgram(plan, device, profiles, addresses, cuda_graphs)))

            opened.callback(device.close)
            device.make_current()
            specs = contract.inputs(dtype), contract.outputs(dtype)
            step = open_plan(plan, *specs, profiles=2, step_onnx=step_onnx, kernel_cache=kernel_cache)
            decider = None
            if decide is not None:
                specs = contract.decide_inputs(), contract.decide_outputs()
                decider = open_plan(decide, *specs, kernel_cache=kernel_cache and f"decide-{kernel_cache}")
            self._longest = step.limits[_REFRESH]["N"][1]
            self._buckets = Buckets(contract, {axis: step.limits[_CACHED][axis][1] for axis in ("Q", "K", "R")})
            addresses = self._open_pool(opened, step.limits[_REFRESH], slots)
            self._program = open_program(step, ("refresh", "cached"), addresses)
            logits = {"logits": self._logits}
            self._decide = open_program(decider, ("decide",), logits) if decider else None
            device.synchronise()
            self._opened = opened.pop_all()

    def _open_pool(self, opened: ExitStack, limits: dict[str, tuple[int, int]], slots: int | None) -> dict[str, int]:
        """Allocate what is large, at once and for good; the address of every tensor of the step that it holds."""
        contract, device = self.contract, self.device
        batch, longest, decoded, most = (limits[axis][1] for axis in "BQRP")
        self._logits = device.alloc(batch * decoded * contract.vocab_size * 4)
        opened.callback(device.free, self._logits)
        slot, widest = slot_bytes(contract, self.dtype), _PITCH // row_bytes(contract, self.dtype)
        # New rows lie beside the pool until the step has read it. Passes are that large: more would not pay.
        free, most = int(device.free_memory() * _SHARE), min(most, widest)
        room = free // slot - longest - 1
        self.most_rows = max(longest, min(batch * longest, _PASSES * self.pass_rows, room, widest))
        size = pool_size(contract, slot, max(free - self.most_rows * slot, 0), slots)
        if slots is not None and size > most:
            raise EngineError(f"slots {size} are more than the {most} that {self.name} takes; give fewer")
        size = min(size, most)
        self.pool, self.new_rows = (
            opened.enter_context(closing(Rows(device, 2 * contract.layers, count, row_bytes(contract, self.dtype))))
            for count in (size, self.most_rows)
        )
        self.pool.zero(0)
        self.slots = Slots(size)
        addresses = {name: self.pool.at(i) for i, name in enumerate(contract.cache_names())}
        addresses |= {name: self.new_rows.at(i) for i, name in enumerate(contract.new_names())}
        return addresses | {"logits": self._logits}

    @property
    def graph_failure(self) -> str | None:
        """Why steps are no longer captured as CUDA graphs; None while they are, or never were to be."""
        return self._program.graph_failure or (self._decide.graph_failure if self._decide else None)

    def padded(self, axis: str, size: int) -> int:
        """The bucket of `axis` that holds `size`; see `Buckets`."""
        return self._buckets.padded(axis, size)

    def _step(self, inputs: StepInputs) -> StepOutputs:
        if self._closed:
            raise EngineError(f"{self.name} is closed")
        shape = self._shape(inputs)
        self.device.make_current()
        try:
            found, decided, logits = self._queue(inputs, shape)
            self.device.synchronise()
        except EngineError:
            self._settle()
            raise
        found = {name: array.copy() for name, array in found.items()}
        decisions = Decisions(**{name: array.copy() for name, array in decided.items()}) if decided else None
        return StepOutputs(**found, decisions=decisions, logits=logits)

    def _shape(self, inputs: StepInputs) -> StepShape:
        """The sizes of a step; raises `EngineError` for one that this engine does not take."""
        (batch, queries), decoded = inputs.gather_indices.shape, inputs.decode_rows.shape[1]
        attends = bool(inputs.cache_indices.max(initial=-1) >= 0)
        shape = StepShape(
            profile=_CACHED if attends else _REFRESH,
            B=batch,
            N=max(self._longest, inputs.canvas.shape[1]),
            Q=queries,
            K=inputs.cache_indices.shape[1] if attends else 1,
            R=decoded,
            P=self.slots.size,
        )
        self._program.check(shape)
        if batch * queries > self.most_rows:
            raise EngineError(
                f"a step of {batch} x {queries} query rows is more than the {self.most_rows} that there is memory for; "
                "use smaller batches, or open it with fewer slots"
            )
        if inputs.sampling is not None:
            if self._decide is None:
                raise EngineError(f"{self.name} has no plan that draws and filters tokens; export the bundle again")
            self._decide.check(StepShape(0, B=batch, R=decoded))
        return shape

    def _queue(
        self, inputs: StepInputs, shape: StepShape
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], NDArray[np.float32] | None]:
        """Queue the step, and what follows it: rows to their slots, decisions, logits."""
        values = {name: getattr(inputs, name) for name in ("canvas", "gather_indices", "cache_indices", "decode_rows")}
        if shape.profile == _REFRESH:
            values["cache_indices"] = np.full((shape.B, 1), -1, dtype=np.int64)  # a plan has no empty axis
        found = self._program.queue(shape, values)
        if inputs.write_slots is not None:
            for row, slot, count in runs_of(inputs.write_slots):
                self.pool.copy(slot, self.new_rows, row, count)
        decided: dict[str, NDArray[Any]] = {}
        if inputs.sampling is not None and self._decide is not None:
            decided = self._decide.queue(StepShape(0, B=shape.B, R=shape.R), vars(inputs.sampling))
        logits = None
        if inputs.want_logits:
            logits = np.empty((shape.B, shape.R, self.contract.vocab_size), dtype=np.float32)
            self.device.download(logits, self._logits)
        return found, decided, logits

    def _settle(self) -> None:
        """After a failure: nothing queued may still touch what the next step uses."""
        with suppress(EngineError):
            self.device.synchronise()

    def close(self) -> None:
        """Free everything on the device, after the step that runs; safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.device.make_current()
            self._settle()
            self._opened.close()
