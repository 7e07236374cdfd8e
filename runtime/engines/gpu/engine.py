"""`GpuEngine` runs a compiled step on a GPU; everything large stays in the GPU's memory.

    engine = GpuEngine("torch-cuda", contract, "bfloat16", device, step, decide, opened)

The step is a `Program`, and so is `decide`, which draws tokens from the step's logits. A step uploads four index arrays
and downloads two numbers per decoded row. Keys and values stay on the device, and rows to keep are copied to their pool
slots after the step. Logits stay on the device too, where `decide` reads them if tokens are drawn or filtered. Shapes
are padded to buckets, and a shape that repeats is replayed as a CUDA graph. The canvas is always staged at its largest
length, so that N never makes a new shape.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.contract import StepContract
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.gpu.buckets import Buckets
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.graphs import MOST
from dpad.runtime.engines.gpu.kv_pool import Rows
from dpad.runtime.engines.gpu.program import Limits, Program
from dpad.runtime.engines.gpu.runner import Runner
from dpad.runtime.engines.gpu.step_shape import StepShape
from dpad.runtime.engines.slots import Slots, pool_size, row_bytes, runs_of, slot_bytes
from dpad.runtime.engines.step import Decisions, StepInputs, StepOutputs
from dpad.runtime.errors import EngineError

_REFRESH, _CACHED = 0, 1  # the profiles of a step
_SHARE = 0.8  # share of free memory for keys and values; the rest is for contexts, CUDA graphs and other processes
_PASSES = 4  # a pass of several sequences has at most 4 · `pass_rows` rows; the scheduler's budget is no larger
_PITCH = 2**31 - 1  # most bytes from one tensor to the next that CUDA's 2D copies accept


class GpuEngine(Engine):
    """An engine on a GPU. Threads may share it: one step runs at a time.

    `pass_rows` was computed for LLaDA-8B in bfloat16 on an H100. A step of 128 rows takes 7.15 ms there, of which
    reading 16 GB of weights takes 5.2 ms. When compute-bound, a row costs 2 · 8e9 / 786e12 s = 20 us, so 300 rows cost
    as much as the rest of the step.
    """

    pass_rows = 300

    def __init__(
        self,
        name: str,
        contract: StepContract,
        dtype: str,
        device: Device,
        step: Program,
        decide: Program | None,
        opened: ExitStack,
        *,
        slots: int | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        """Allocate the pool and the other buffers that steps need.

        Args:
            name, contract, dtype: see `Engine`.
            device: must be current, with no queued work.
            step: a program with the contract's inputs and outputs.
            decide: a program with the contract's `decide` inputs and outputs; without it the engine cannot sample.
            opened: closes both programs and the device; the engine takes it over, even if this fails.
            slots: size of the pool; see `pool_size` for its default and errors.
            cuda_graphs: whether to record CUDA graphs, for programs that do not record themselves.
        """
        super().__init__()
        self.name, self.contract, self.dtype = name, contract, dtype
        self.device, self._closed = device, False
        with opened:  # closes the programs and the device if the rest fails
            self._limits = step.limits
            self._longest = step.limits[_REFRESH]["N"][1]
            most = {axis: step.limits[_CACHED][axis][1] for axis in ("Q", "K", "R")}
            self._buckets = Buckets(contract, most, step.multiple)
            addresses = self._open_pool(opened, step.limits[_REFRESH], slots)
            self._step_runner = opened.enter_context(closing(Runner(step, device, addresses, cuda_graphs)))
            logits = {"logits": self._logits}
            self._decide_runner = (
                opened.enter_context(closing(Runner(decide, device, logits, cuda_graphs))) if decide else None
            )
            device.synchronise()
            self._opened = opened.pop_all()

    def _open_pool(self, opened: ExitStack, limits: Limits, slots: int | None) -> dict[str, int]:
        """Allocate logits, pool and new rows once and for all; returns the addresses of these tensors by name."""
        contract, device = self.contract, self.device
        batch, longest, decoded, most = (limits[axis][1] for axis in "BQRP")
        self._logits = device.alloc(batch * decoded * contract.vocab_size * 4)
        opened.callback(device.free, self._logits)
        slot, widest = slot_bytes(contract, self.dtype), _PITCH // row_bytes(contract, self.dtype)
        # New rows have memory of their own, because the step still reads the pool. Their number limits a pass: larger
        # passes would not be faster.
        free, most = int(device.free_memory() * _SHARE), min(most, widest)
        room = free // slot - longest - 1
        self.most_rows = max(longest, min(batch * longest, _PASSES * self.pass_rows, room, widest))
        size = pool_size(contract, slot, max(free - self.most_rows * slot, 0), slots)
        if slots is not None and size > most:
            raise EngineError(f"slots {size} are more than the {most} that {self.name} supports; give fewer")
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
        """Why the last capture of a CUDA graph failed; None if it succeeded."""
        runners = (self._step_runner, self._decide_runner)
        return next((failure for runner in runners if runner and (failure := runner.graphs.failure)), None)

    @property
    def recordings(self) -> int:
        """Number of the step's shapes that are recorded as CUDA graphs."""
        return len(self._step_runner.graphs)

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Within this block steps run without CUDA graphs, kernel by kernel, for comparison."""
        with ExitStack() as paused:
            for runner in (self._step_runner, self._decide_runner):
                if runner is not None:
                    paused.enter_context(runner.graphs.paused())
            yield

    def warm_up(self, rows: Sequence[int], seconds: float, advance: Callable[[int, int], None] | None = None) -> None:
        """Run and record the likely shapes of cached steps, so that no request waits for a recording.

        The largest shape comes first, so that later recordings reuse the memory that it took. Then come shapes of one
        sequence, of two, and so on, each from large to small. Shapes left when the time is over are recorded when
        requests repeat them. Kernels that the programs compiled are saved at the end, because a service may stop
        without closing the engine.
        """
        try:
            self._warm_likely(rows, seconds, advance)
        finally:
            with self._lock:
                for runner in (self._step_runner, self._decide_runner):
                    if runner is not None and not self._closed:
                        runner.keep()

    def _warm_likely(self, rows: Sequence[int], seconds: float, advance: Callable[[int, int], None] | None) -> None:
        shapes, end = self._likely(rows), perf_counter() + seconds
        for done, shape in enumerate(shapes):
            if perf_counter() > end:
                return
            with self._lock:
                self._warm(shape)
                if shape not in self._step_runner.graphs:
                    return  # the capture failed: there is no memory for more
            if advance is not None:
                advance(done + 1, len(shapes))

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
        """The shape of a step; raises `EngineError` for a shape that this engine does not support."""
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
        self._step_runner.check(shape)
        if batch * queries > self.most_rows:
            raise EngineError(
                f"a step of {batch} x {queries} query rows is more than the {self.most_rows} that memory has room for; "
                "use smaller batches, or open the bundle with fewer slots"
            )
        if inputs.sampling is not None:
            if self._decide_runner is None:
                raise EngineError(f"{self.name} has no program that draws and filters tokens; export the bundle again")
            self._decide_runner.check(StepShape(0, B=batch, R=decoded))
        return shape

    def _queue(
        self, inputs: StepInputs, shape: StepShape
    ) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], NDArray[np.float32] | None]:
        """Queue the step, then the copies of rows to their slots, the decisions and the download of logits."""
        values = {name: getattr(inputs, name) for name in ("canvas", "gather_indices", "cache_indices", "decode_rows")}
        if shape.profile == _REFRESH:
            values["cache_indices"] = np.full((shape.B, 1), -1, dtype=np.int64)  # in a plan no axis can be empty
        found = self._step_runner.queue(shape, values)
        if inputs.write_slots is not None:
            for row, slot, count in runs_of(inputs.write_slots):
                self.pool.copy(slot, self.new_rows, row, count)
        decided: dict[str, NDArray[Any]] = {}
        if inputs.sampling is not None and self._decide_runner is not None:
            decided = self._decide_runner.queue(StepShape(0, B=shape.B, R=shape.R), vars(inputs.sampling))
        logits = None
        if inputs.want_logits:
            logits = np.empty((shape.B, shape.R, self.contract.vocab_size), dtype=np.float32)
            self.device.download(logits, self._logits)
        return found, decided, logits

    def _likely(self, rows: Sequence[int]) -> list[StepShape]:
        """The shapes to record, in order: a refresh of the longest canvas, cached steps of `rows` rows a sequence."""
        sizes, limits = self._buckets.sizes, self._limits[_CACHED]
        queries = {size for each in rows if limits["Q"][0] <= (size := self.padded("Q", each)) <= limits["Q"][1]}

        def shape(profile: int, batch: int, rows: int, cached: int) -> StepShape:
            pool, decoded = self.slots.size, self.padded("R", 1)
            return StepShape(profile, B=batch, N=self._longest, Q=rows, K=cached, R=decoded, P=pool)

        cached_steps = [
            shape(_CACHED, batch, size, cached)
            for batch in range(1, self.contract.max_batch + 1)
            for cached in reversed(sizes["K"])
            for size in sorted(queries, reverse=True)
            if batch * size <= self.most_rows
        ]
        largest = sorted(cached_steps, key=lambda step: -step.B * step.Q * step.K)[:1]
        return [shape(_REFRESH, 1, sizes["Q"][-1], 1), *largest, *(s for s in cached_steps if s not in largest)][:MOST]

    def _warm(self, shape: StepShape) -> None:
        """Run `shape` twice, so that it is recorded. It reads padding only and keeps no rows."""
        if self._closed:
            raise EngineError(f"{self.name} is closed")
        self.device.make_current()
        values = {
            "canvas": np.zeros((shape.B, 1), dtype=np.int64),
            "gather_indices": np.zeros((shape.B, shape.Q), dtype=np.int64),
            "cache_indices": np.full((shape.B, shape.K), -1, dtype=np.int64),
            "decode_rows": np.zeros((shape.B, shape.R), dtype=np.int64),
        }
        try:
            for _ in range(2):
                self._step_runner.queue(shape, values)
                self.device.synchronise()
        except EngineError:
            self._settle()
            raise

    def _settle(self) -> None:
        """After a failure, wait for queued work, which must not touch buffers that the next step uses."""
        with suppress(EngineError):
            self.device.synchronise()

    def close(self) -> None:
        """Wait for a running step and free everything on the device; safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.device.make_current()
            self._settle()
            self._opened.close()
