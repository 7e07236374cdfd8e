"""Polygraphy runners of a step: they take every input, return every output, and report each run to the progress.

runs = Comparator.run([StepRunner("torch", reference, advance), SessionRunner(engine, advance)], data_loader=feeds)
"""

from collections import OrderedDict
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata

from dpad.export.parity.feeds import Feed
from dpad.export.progress import Advance
from dpad.models.torch_engine import TorchEngine
from dpad.runtime.engines.bfloat16 import from_bits, to_bits
from dpad.runtime.engines.gpu.engine import GpuEngine
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.engines.step import StepInputs
from dpad.runtime.errors import EngineError


class SessionRunner(OnnxrtRunner):  # type: ignore[misc]
    """Runs an engine's own ONNX Runtime session, so that the weights are not loaded twice."""

    def __init__(self, engine: OnnxEngine, advance: Advance) -> None:
        super().__init__(lambda: engine.session, name="engine")
        self._advance = advance

    def infer_impl(self, feed_dict: Feed) -> "OrderedDict[str, NDArray[Any]]":
        """Run one step and report it to `advance`."""
        outputs: OrderedDict[str, NDArray[Any]] = super().infer_impl(feed_dict)
        self._advance(1)
        return outputs


class StepRunner(BaseRunner):  # type: ignore[misc]
    """A Polygraphy runner for a step function that takes every input; reports each run to `advance`."""

    def __init__(self, name: str, engine: TorchEngine | GpuEngine, advance: Advance) -> None:
        super().__init__(name=name)
        self._engine, self._advance = engine, advance

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, dtypes and shapes of the inputs, from the contract."""
        metadata = TensorMetadata()
        for spec in self._engine.contract.inputs(self._engine.dtype):
            dtype = np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
            metadata.add(spec.name, dtype=dtype, shape=[a if isinstance(a, int) else -1 for a in spec.axes])
        return metadata

    def infer_impl(self, feed_dict: Feed) -> "OrderedDict[str, NDArray[Any]]":
        """Run one step."""
        names = [spec.name for spec in self._engine.contract.outputs(self._engine.dtype)]
        began = perf_counter()
        run = partial(run_plan, self._engine) if isinstance(self._engine, GpuEngine) else self._engine.run
        outputs = run(feed_dict)
        self.inference_time = perf_counter() - began
        self._advance(1)
        return OrderedDict(zip(names, outputs))


def run_plan(engine: GpuEngine, feed: Feed) -> list[NDArray[Any]]:
    """The outputs of a step over `feed`, whose caches [P, G, D] are written to the first P slots of the engine's pool.

    This is for comparisons only: it overwrites the pool, and no other thread may run a step at the same time. bfloat16
    rows are float32 arrays here, since numpy has no bfloat16. Slot 0 of `feed` must be zero, as in every pool.
    """
    half, device, contract = engine.dtype == "bfloat16", engine.device, engine.contract
    canvas, gather, cached, decoded, *pool = (feed[spec.name] for spec in contract.inputs())
    if (slots := len(pool[0])) > engine.slots.size:
        raise EngineError(
            f"a comparison needs {slots} slots of keys and values, and {engine.name} has memory for "
            f"{engine.slots.size}; use a larger GPU, or export with a smaller --max-batch"
        )
    device.make_current()
    held = [to_bits(tensor) if half else np.ascontiguousarray(tensor) for tensor in pool]
    for index, tensor in enumerate(held):
        device.upload(engine.pool.at(index), tensor)
    device.synchronise()
    outputs = engine.step(StepInputs(canvas, gather, cached, decoded, want_logits=True))
    shape = (*gather.shape, contract.kv_heads, contract.head_size)
    rows = [np.empty(shape, dtype=np.uint16 if half else engine.dtype) for _ in pool]
    for index, tensor in enumerate(rows):
        device.download(tensor, engine.new_rows.at(index))
    device.synchronise()
    assert outputs.logits is not None
    new = [from_bits(tensor) if half else tensor for tensor in rows]
    return [outputs.token_ids, outputs.odds_against, outputs.logits, *new]
