"""`TrtEngine`: a step compiled by TensorRT or TensorRT-RTX, with everything that is large on the GPU.

    engine = TrtEngine(tensorrt_rtx, bundle / "engines/x.plan", contract, "float16", CudaDevice())

A step sends four index arrays and brings back three numbers a decoded row; keys and values
stay on the device: a refresh writes them where the block's later steps read them, and one that
adds to the cache has them copied there behind it. Shapes come in buckets, and a shape that comes
again is replayed as a CUDA graph. The canvas travels at its full length, so that N never makes
a shape new.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.checks import check_cache, check_step
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.base import Engine, StepInputs, StepOutputs
from dpad.runtime.engines.bfloat16 import from_bits, to_bits
from dpad.runtime.engines.gpu.buckets import Buckets
from dpad.runtime.engines.gpu.cache import Addition, TrtCache
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.graphs import Graphs, Key
from dpad.runtime.engines.gpu.kv_pool import Buffer, KvPool
from dpad.runtime.engines.gpu.launch import Launch
from dpad.runtime.engines.gpu.staging import Shapes, Staging, bytes_of
from dpad.runtime.engines.gpu.step_shape import StepShape
from dpad.runtime.engines.tensorrt.plan import CACHED, REFRESH, TrtPlan
from dpad.runtime.errors import EngineError

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # numpy has no bfloat16: rows are bytes here
_PROFILES = ("refresh", "cached")
_SMALL = ("token_ids", "confidence", "odds_against")


class TrtEngine(Engine):
    """Threads may share it: one step runs at a time. It owns the device that it is given."""

    extends = True

    def __init__(
        self,
        trt: Any,
        plan: Path,
        contract: StepContract,
        dtype: str,
        device: Device,
        step_onnx: Path | None = None,
        *,
        name: str = "tensorrt",
        cuda_graphs: bool = True,
        host_code: bool = False,
        kernel_cache: str | None = None,
    ) -> None:
        """Open `plan`; see `TrtPlan` for the arguments and the errors."""
        self.name, self.contract, self.dtype = name, contract, dtype
        self._small_inputs, self._small_outputs = contract.inputs()[:4], contract.outputs()[: len(_SMALL)]
        self._device, self._lock, self._closed = device, threading.Lock(), False
        self._row_bytes = contract.kv_heads * contract.head_size * _ITEM_BYTES[dtype]
        with ExitStack() as opened:  # closes again what was opened, if the rest fails
            opened.callback(device.close)
            device.make_current()
            self._plan = TrtPlan(trt, plan, contract, dtype, device, step_onnx, host_code, kernel_cache, cuda_graphs)
            opened.callback(self._plan.close)
            self._open_buffers(opened, cuda_graphs and not self._plan.captures_itself)
            self._contexts = [self._plan.new_context(profile) for profile in (REFRESH, CACHED)]
            opened.callback(self._contexts.clear)
            self._opened = opened.pop_all()
        self._bound: list[Key | None] = [None, None]

    def _open_buffers(self, opened: ExitStack, cuda_graphs: bool) -> None:
        limits = self._plan.limits
        self._longest = limits[REFRESH]["N"][1]
        self._buckets = Buckets(self.contract, {axis: limits[CACHED][axis][1] for axis in ("Q", "K", "R")})
        self._graphs = Graphs(self._device, cuda_graphs)
        tensors = (2 * self.contract.layers, 2 * self.contract.layers, 1)
        pools = [KvPool(self._device, count, self._graphs.forget) for count in tensors]
        self._pool, self._scratch_pool, self._logits_pool = pools  # apart, or scratch would lie in what a cache left
        largest = [StepShape(p, **{axis: limit[axis][1] for axis in "BNQKRT"}) for p, limit in enumerate(limits)]
        self._sent = Staging(self._device, max(bytes_of(self._input_shapes(shape)) for shape in largest))
        opened.callback(self._sent.close)
        self._fetched = Staging(self._device, max(bytes_of(self._output_shapes(shape)) for shape in largest))
        opened.callback(self._fetched.close)
        # What a step reads that has no cache: one row of zeros for every tensor.
        size = largest[REFRESH].B * self._row_bytes
        self._nothing = Buffer(self._device.alloc(size), 0, 2 * self.contract.layers)
        opened.callback(self._device.free, self._nothing.address)
        self._device.fill(self._nothing.address, 0, size)
        self._own: dict[KvPool, Buffer] = {}  # for the rows and the logits of a step
        for closing in (*(pool.close for pool in pools), self._graphs.close):
            opened.callback(closing)

    @property
    def graph_failure(self) -> str | None:
        """Why steps are no longer captured as CUDA graphs; None while they are, or never were to be."""
        return self._graphs.failure

    def padded(self, axis: str, size: int) -> int:
        """The bucket of `axis` that holds `size`; see `Buckets`."""
        return self._buckets.padded(axis, size)

    def new_cache(self, batch: int, slots: int) -> TrtCache:
        """A cache that takes memory for `batch` × `slots` rows at its first refresh."""
        return TrtCache(self._pool, batch, slots, self._row_bytes)

    def rows_of(self, cache: TrtCache, rows: NDArray[np.bool_]) -> TrtCache:
        """A cache of its own with copies of the chosen rows, which has room for all of their canvases."""
        with self._turn(cache):
            return cache.rows_of(rows, max(cache.pitch, self._whole(cache)))

    def step(self, inputs: StepInputs, cache: TrtCache) -> StepOutputs:
        """Run one step. Raises `EngineError` before launch for inputs that the engine does not take.

        A refresh that fails leaves the cache empty. One that attends rows of it leaves it as it was, or, if it fails
        while its own rows are being added, with the rows that it attended.
        """
        return self._step(inputs, cache)[0]

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """One step with every input given and every output returned, in the order of the contract.

        For comparisons: it copies caches, and no other thread may step meanwhile. Rows in
        bfloat16 are float32 arrays here.
        """
        half = self.dtype == "bfloat16"
        names = [name for pair in self.contract.cache_names() for name in pair]
        batch, slots = feed[names[0]].shape[:2]
        cache = self.new_cache(batch, slots)
        caches = [to_bits(feed[name]) if half else np.ascontiguousarray(feed[name]) for name in names]
        buffer = cache.reserve(max(caches[0].nbytes, 1))
        for i, array in enumerate(caches):
            self._device.upload(buffer.at(i), array)
        self._device.synchronise()
        cache.wrote(np.tile(np.arange(slots), (batch, 1)))
        canvas, gather, cached, decoded = (feed[spec.name] for spec in self._small_inputs)
        outputs, launch = self._step(StepInputs(canvas, gather, cached, decoded, want_logits=True), cache)
        specs = self.contract.outputs(self.dtype)[len(_SMALL) + 1 :]
        rows = [np.empty(launch.shape.of(spec.axes), dtype=np.uint16 if half else spec.dtype) for spec in specs]
        for i, array in enumerate(rows):
            self._device.download(array, launch.written.at(i))
        self._device.synchronise()
        assert outputs.logits is not None
        found = [from_bits(array) for array in rows] if half else rows
        return [outputs.token_ids, outputs.confidence, outputs.odds_against, outputs.logits, *found]

    def _step(self, inputs: StepInputs, cache: TrtCache) -> tuple[StepOutputs, Launch]:
        check_step(inputs, self.contract, extends=True)
        check_cache(inputs, cache.batch, cache.slots)
        with self._turn(cache):
            launch = self._launch(inputs, cache)
            try:
                self._run(launch)
                if launch.addition is not None:
                    cache.append(launch.addition, launch.written)
                logits = self._fetch_logits(launch) if inputs.want_logits else None
                self._device.synchronise()
            except EngineError:
                self._settle()
                raise
            if launch.addition is not None:
                cache.appended(launch.addition)
            elif inputs.write_back:
                cache.wrote(inputs.gather_indices)
            token_ids, confidence, odds_against = (launch.outputs[name].array.copy() for name in _SMALL)
            return StepOutputs(token_ids, confidence, odds_against, logits), launch

    @contextmanager
    def _turn(self, cache: TrtCache) -> Iterator[None]:
        """Use the device alone, for a cache of this engine."""
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.name} is closed")
            if cache.pool is not self._pool:
                raise EngineError(f"the cache belongs to another engine than this {self.name}")
            self._device.make_current()
            yield

    def _launch(self, inputs: StepInputs, cache: TrtCache) -> Launch:
        """Choose the buffers and fill in the inputs."""
        batch, queries = inputs.gather_indices.shape
        rows = inputs.decode_rows.shape[1]
        attends = bool(inputs.cache_indices.max(initial=-1) >= 0)
        reads = inputs.cache_indices.shape[1] if attends or not inputs.write_back else 0
        found = cache.find(inputs.cache_indices) if reads else np.full((batch, 1), -1, dtype=np.int64)
        addition, pitch = None, cache.pitch
        # Additions follow a block-causal model's first refresh, its prompt: the cache gets its final layout at once,
        # or a batch would hold a second one when it moves.
        if inputs.write_back and (attends or self.contract.block_causal):
            addition = Addition.of(inputs, found)
            pitch = pitch if addition.rows <= pitch else max(addition.rows, self._whole(cache))
        shape = StepShape(
            profile=CACHED if reads else REFRESH,
            B=batch,
            N=max(self._longest, inputs.canvas.shape[1]),
            Q=queries,
            K=found.shape[1],
            R=rows,
            T=pitch if attends else 1,
        )
        shape.check(self._plan.limits[shape.profile], _PROFILES[shape.profile])
        if addition is not None:
            cache.make_room(pitch)
        source = cache.buffer if attends else None
        launch_inputs, sent = self._sent.fields(self._input_shapes(shape))
        outputs, fetched = self._fetched.fields(self._output_shapes(shape))
        launch_inputs["canvas"].array[:, : inputs.canvas.shape[1]] = inputs.canvas
        launch_inputs["gather_indices"].array[:] = inputs.gather_indices
        launch_inputs["cache_indices"].array[:] = found
        launch_inputs["decode_rows"].array[:] = inputs.decode_rows
        stride = batch * queries * self._row_bytes
        if inputs.write_back and addition is None:
            written = cache.reserve(max(stride, batch * self._whole(cache) * self._row_bytes))
        else:
            written = self._room(self._scratch_pool, stride)
        logits = self._room(self._logits_pool, batch * rows * self.contract.vocab_size * 4)
        return Launch(shape, launch_inputs, outputs, sent, fetched, source or self._nothing, written, logits, addition)

    def _room(self, pool: KvPool, stride: int) -> Buffer:
        """The engine's own buffer of `pool`, or a larger one in its place where it lacks `stride` bytes a tensor."""
        if pool not in self._own or self._own[pool].stride < stride:
            if pool in self._own:
                pool.give(self._own.pop(pool))
            self._own[pool] = pool.take(stride)
        return self._own[pool]

    def _whole(self, cache: TrtCache) -> int:
        """Rows that hold every slot of `cache`, in a size that comes again."""
        return min(self.padded("Q", cache.slots), self._plan.limits[CACHED]["T"][1])

    def _input_shapes(self, shape: StepShape) -> Shapes:
        return {spec.name: (spec.dtype, shape.of(spec.axes)) for spec in self._small_inputs}

    def _output_shapes(self, shape: StepShape) -> Shapes:
        return {spec.name: (spec.dtype, shape.of(spec.axes)) for spec in self._small_outputs}

    def _run(self, launch: Launch) -> None:
        """Queue the step: as a recording if there is one, else eagerly, and record it if it comes again."""
        if self._graphs.launch(launch.key):
            return
        profile = launch.shape.profile
        if self._bound[profile] != launch.key:
            self._bound[profile] = None
            self._plan.bind(self._contexts[profile], launch.shape, launch.addresses(self.contract))
            self._bound[profile] = launch.key
        self._queue(self._contexts[profile], launch)
        if self._graphs.wanted(launch.key):
            self._capture(launch)

    def _capture(self, launch: Launch) -> None:
        """Record the step in a context of its own.

        A recording holds only while the context it came from is left alone, and a context
        must run once after a change of shape before it may be recorded.
        """
        try:
            context = self._plan.new_context(launch.shape.profile)
            self._plan.bind(context, launch.shape, launch.addresses(self.contract))
            self._queue(context, launch)
        except EngineError as error:
            self._graphs.give_up(str(error))
            return
        self._graphs.capture(launch.key, context, lambda: self._queue(context, launch))

    def _queue(self, context: Any, launch: Launch) -> None:
        self._sent.upload(launch.sent)
        if not context.execute_async_v3(self._device.stream):
            raise self._plan.error("failed in a step")
        self._fetched.download(launch.fetched)

    def _fetch_logits(self, launch: Launch) -> NDArray[np.float32]:
        """Queue the copy of the logits [B, R, V] into an array of their own."""
        logits = np.empty((launch.shape.B, launch.shape.R, self.contract.vocab_size), dtype=np.float32)
        self._device.download(logits, launch.logits.address)
        return logits

    def _settle(self) -> None:
        """After a failure: nothing queued may still touch what the next step uses."""
        with suppress(EngineError):
            self._device.synchronise()

    def close(self) -> None:
        """Free everything on the device; safe to call twice. Caches that are still held become useless."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._device.make_current()
            self._settle()
            self._opened.close()
