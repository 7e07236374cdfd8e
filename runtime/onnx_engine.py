"""`OnnxEngine`: a step in ONNX Runtime, on the CPU or a CUDA device.

    engine = OnnxEngine(bundle / "float32/step.onnx", contract, "float32", provider="cpu")

Inputs and outputs are bound, so the caches are never copied for a step. On a CPU they are
numpy arrays that ONNX Runtime reads in place; on another device they live there and are
sent once a block, after the refresh.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dpad.runtime.contract import StepContract
from dpad.runtime.engine import Engine, StepInputs, StepOutputs
from dpad.runtime.errors import EngineError, EngineUnavailable
from dpad.runtime.machine import library_version

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass
class OnnxCache:
    """Keys and values of every layer, [B, T, G, D] each, in graph input order.

    `arrays` on the host and `bound` where the step reads them: the same memory on a CPU.
    """

    arrays: list[NDArray[Any]]
    bound: list[ort.OrtValue]
    binding: ort.IOBinding


class OnnxEngine(Engine):
    """Runs `step.onnx`; sessions may be shared by threads, caches may not."""

    def __init__(self, path: Path, contract: StepContract, dtype: str, provider: str = "cpu", threads: int = 0) -> None:
        """Open the model; `threads` 0 lets ONNX Runtime use every core.

        Raises `EngineUnavailable` if this build of ONNX Runtime lacks the provider, and
        `EngineError` with ONNX Runtime's own words if it cannot load the file.
        """
        require_provider(provider)
        self.name = f"onnxruntime-{provider}"
        self.contract, self.dtype, self._device = contract, dtype, provider
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(path, options, providers=[PROVIDERS[provider]])
        except Exception as error:
            raise EngineError(f"ONNX Runtime cannot open {path}: {error}") from error
        self._check_signature(path)

    def _check_signature(self, path: Path) -> None:
        for kind, have, want in (
            ("input", self._session.get_inputs(), self.contract.inputs(self.dtype)),
            ("output", self._session.get_outputs(), self.contract.outputs(self.dtype)),
        ):
            if [tensor.name for tensor in have] != [spec.name for spec in want]:
                raise EngineError(f"{path}: its {kind}s are not those of the contract; export the bundle again")

    def new_cache(self, batch: int, slots: int) -> OnnxCache:
        """Zeroed caches for `batch` canvases of `slots` positions, bound once."""
        shape = (batch, slots, self.contract.kv_heads, self.contract.head_size)
        names = [name for pair in self.contract.cache_names() for name in pair]
        arrays = [np.zeros(shape, dtype=self.dtype) for _ in names]
        cache = OnnxCache(arrays, [self._bound(array) for array in arrays], self._session.io_binding())
        for name, value in zip(names, cache.bound):
            cache.binding.bind_ortvalue_input(name, value)
        return cache

    def _bound(self, array: NDArray[Any]) -> ort.OrtValue:
        """`array` where the step reads it: in place on a CPU (which shares its memory), else a copy."""
        return ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)

    def step(self, inputs: StepInputs, cache: OnnxCache) -> StepOutputs:
        """Run one step; a failure inside ONNX Runtime is raised as `EngineError`."""
        binding = cache.binding
        for name in ("canvas", "gather_indices", "cache_indices", "decode_rows"):
            array = np.ascontiguousarray(getattr(inputs, name))
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        names = list(self._outputs(inputs))
        binding.clear_binding_outputs()
        for name in names:
            binding.bind_output(name, "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed in a step: {error}") from error
        outputs = dict(zip(names, (value.numpy() for value in binding.get_outputs())))
        if inputs.write_back:
            self._write_back(inputs.gather_indices, outputs, cache)
        return StepOutputs(outputs["token_ids"], outputs["confidence"], outputs["odds_against"], outputs.get("logits"))

    def _outputs(self, inputs: StepInputs) -> Iterator[str]:
        yield from ("token_ids", "confidence", "odds_against")
        if inputs.want_logits:
            yield "logits"
        if inputs.write_back:
            yield from (name for pair in self.contract.new_names() for name in pair)

    def _write_back(self, gather: NDArray[np.int64], outputs: dict[str, Any], cache: OnnxCache) -> None:
        rows, columns = np.nonzero(gather >= 0)
        slots = gather[rows, columns]
        new = (name for pair in self.contract.new_names() for name in pair)
        for array, name in zip(cache.arrays, new):
            array[rows, slots] = outputs[name][rows, columns]
        if self._device != "cpu":
            for array, value in zip(cache.arrays, cache.bound):
                value.update_inplace(array)

    def close(self) -> None:
        """Drop the session."""
        self.__dict__.pop("_session", None)


def require_provider(provider: str) -> None:
    """Raise `EngineUnavailable`, with the way out, unless ONNX Runtime can use `provider`."""
    if PROVIDERS[provider] in ort.get_available_providers():
        return
    # An extra cannot take the base dependency away, so both packages may be there.
    steps = ["pip uninstall -y onnxruntime"] if library_version("onnxruntime") else []
    steps.append("pip install --force-reinstall --no-deps onnxruntime-gpu")
    raise EngineUnavailable(
        f"ONNX Runtime {ort.__version__} here has no {PROVIDERS[provider]}; "
        f"onnxruntime-gpu must take the place of onnxruntime: {' && '.join(steps)}"
    )
