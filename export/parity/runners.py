"""A step as Polygraphy runs it: every input given, every output returned, each run told to the progress display.

runs = Comparator.run([StepRunner("torch", reference, advance), SessionRunner(engine, advance)], data_loader=feeds)
"""

from collections import OrderedDict
from time import perf_counter
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata

from dpad.export.parity.feeds import Feed
from dpad.export.parity.plan_runner import run_plan
from dpad.export.progress import Advance
from dpad.models.torch_engine import TorchEngine
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.engines.tensorrt.engine import TrtEngine


class SessionRunner(OnnxrtRunner):  # type: ignore[misc]
    """The session of an engine, fed as Polygraphy feeds sessions: no second copy of the weights."""

    def __init__(self, engine: OnnxEngine, advance: Advance) -> None:
        super().__init__(lambda: engine.session, name="engine")
        self._advance = advance

    def infer_impl(self, feed_dict: Feed) -> "OrderedDict[str, np.ndarray[Any, Any]]":
        """One step, told to `advance`."""
        outputs: OrderedDict[str, np.ndarray[Any, Any]] = super().infer_impl(feed_dict)
        self._advance(1)
        return outputs


class StepRunner(BaseRunner):  # type: ignore[misc]
    """A step whose every input is given, as a Polygraphy runner; every one is told to `advance`."""

    def __init__(self, name: str, engine: TorchEngine | TrtEngine, advance: Advance) -> None:
        super().__init__(name=name)
        self._engine, self._advance = engine, advance

    def get_input_metadata_impl(self) -> TensorMetadata:
        """Names, dtypes and shapes of the contract."""
        metadata = TensorMetadata()
        for spec in self._engine.contract.inputs(self._engine.dtype):
            dtype = np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)
            metadata.add(spec.name, dtype=dtype, shape=[a if isinstance(a, int) else -1 for a in spec.axes])
        return metadata

    def infer_impl(self, feed_dict: Feed) -> "OrderedDict[str, np.ndarray[Any, Any]]":
        """One step."""
        names = [spec.name for spec in self._engine.contract.outputs(self._engine.dtype)]
        began = perf_counter()
        outputs = (
            run_plan(self._engine, feed_dict) if isinstance(self._engine, TrtEngine) else self._engine.run(feed_dict)
        )
        self.inference_time = perf_counter() - began
        self._advance(1)
        return OrderedDict(zip(names, outputs))
