"""`OnnxEngine`: a step in ONNX Runtime, the same code on the CPU and on a CUDA device.

    engine = OnnxEngine(bundle / "float32/step.onnx", contract, "float32", provider="cpu")
    cache = engine.new_cache(batch=1, slots=canvas.shape[1])
    engine.step(inputs, cache)

The cache is the last refresh's own output, on the engine's device: ONNX Runtime writes it
there, later steps read it there, and no row is ever copied. `CacheRows` knows which row
holds which position. Only indices, and the few numbers a step decides, cross the bus.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dpad.runtime.checks import check_cache, check_step
from dpad.runtime.contract import StepContract
from dpad.runtime.engine import Engine, StepInputs, StepOutputs
from dpad.runtime.errors import EngineError, EngineUnavailable
from dpad.runtime.machine import library_version
from dpad.runtime.rows import CacheRows

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# CUDA graphs (enable_cuda_graph) stay off: they replay fixed shapes at fixed addresses, and here the
# number of masks changes with every step and the caches move with every refresh.
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {
        "arena_extend_strategy": "kSameAsRequested",  # doubling would take up to twice what the caches need
        "use_tf32": "0",  # a float32 step must agree with PyTorch, which multiplies in full float32
    },
}

_ELEMENT_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}  # onnx.TensorProto.DataType

_INTERFACES = {"int8": "float32"}  # dtype of the caches, where it is not the step's


@dataclass
class OnnxCache:
    """Keys and values of every layer, [B, T, G, D] each, as inputs bound to the next step.

    T is the number of rows of the last refresh, 0 before the first. `indices` are the other
    inputs: ONNX Runtime may read the host's memory in place, so they outlive the run.
    """

    batch: int
    slots: int
    binding: ort.IOBinding
    rows: CacheRows
    filled: bool = False
    indices: dict[str, ort.OrtValue] = field(default_factory=dict)


class OnnxEngine(Engine):
    """Runs `step.onnx`; threads may share an engine, but not a cache."""

    def __init__(self, path: Path, contract: StepContract, dtype: str, provider: str = "cpu", threads: int = 0) -> None:
        """Open the model; `threads` 0 lets ONNX Runtime use every core.

        Caches of an int8 step are float32, so `dtype` of the engine is.
        Raises `EngineUnavailable` if this build of ONNX Runtime lacks the provider or cannot
        start it, and `EngineError` with ONNX Runtime's own words if it cannot load the file.
        """
        self.name = f"onnxruntime-{provider}" + ("-int8" if dtype == "int8" else "")
        self.contract, self.dtype, self._device = contract, _INTERFACES.get(dtype, dtype), provider
        self._session = open_session(path, provider, threads)
        self._check_signature(path)
        self._cache_names = [name for pair in contract.cache_names() for name in pair]
        self._new_names = [name for pair in contract.new_names() for name in pair]

    def _check_signature(self, path: Path) -> None:
        for kind, have, want in (
            ("input", self._session.get_inputs(), self.contract.inputs(self.dtype)),
            ("output", self._session.get_outputs(), self.contract.outputs(self.dtype)),
        ):
            if [tensor.name for tensor in have] != [spec.name for spec in want]:
                raise EngineError(f"{path}: its {kind}s are not those of the contract; export the bundle again")

    def new_cache(self, batch: int, slots: int) -> OnnxCache:
        """An empty cache for `batch` canvases of `slots` positions; it takes no memory until a refresh."""
        cache = OnnxCache(batch, slots, self._session.io_binding(), CacheRows(batch, slots))
        self._empty(cache)
        return cache

    def _empty(self, cache: OnnxCache) -> None:
        shape = (cache.batch, 0, self.contract.kv_heads, self.contract.head_size)
        nothing = ort.OrtValue.ortvalue_from_shape_and_type(shape, _ELEMENT_TYPES[self.dtype], self._device, 0)
        self._keep(cache, [nothing] * len(self._cache_names), np.empty((cache.batch, 0), dtype=np.int64))

    def _keep(self, cache: OnnxCache, values: Iterable[ort.OrtValue], gather: NDArray[np.int64]) -> None:
        """Let `values`, whose rows hold the positions `gather` [B, T], be the cache from now on."""
        for name, value in zip(self._cache_names, values):
            cache.binding.bind_ortvalue_input(name, value)
        cache.rows.wrote(gather)
        cache.filled = gather.shape[1] > 0

    def step(self, inputs: StepInputs, cache: OnnxCache) -> StepOutputs:
        """Run one step; a failure inside ONNX Runtime is raised as `EngineError`.

        A refresh that fails leaves the cache empty.
        """
        check_step(inputs, self.contract)
        check_cache(inputs, cache.batch, cache.slots)
        self._bind_inputs(inputs, cache)
        binding = cache.binding
        names = ["token_ids", "confidence", "odds_against", *(["logits"] if inputs.want_logits else [])]
        binding.clear_binding_outputs()
        for name in names:
            binding.bind_output(name, "cpu")
        if inputs.write_back:
            if cache.filled:  # before the run, so that old and new rows are never held together
                self._empty(cache)
            for name in self._new_names:
                binding.bind_output(name, self._device, 0)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed in a step: {error}") from error
        values = binding.get_outputs()
        if inputs.write_back:
            self._keep(cache, values[len(names) :], inputs.gather_indices)
        arrays = [value.numpy() for value in values[: len(names)]]
        return StepOutputs(arrays[0], arrays[1], arrays[2], arrays[3] if inputs.want_logits else None)

    def _bind_inputs(self, inputs: StepInputs, cache: OnnxCache) -> None:
        """Bind all but the caches, which stay bound from one refresh to the next."""
        cached = cache.rows.find(inputs.cache_indices)
        reads = cache.filled and not inputs.write_back
        for name, array in (
            ("canvas", inputs.canvas),
            ("gather_indices", inputs.gather_indices),
            ("cache_indices", cached if reads else cached[:, :0]),  # else all of it is padding
            ("decode_rows", inputs.decode_rows),
        ):
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)
            cache.binding.bind_ortvalue_input(name, value)
            cache.indices[name] = value

    def close(self) -> None:
        """Drop the session."""
        self.__dict__.pop("_session", None)


def open_session(path: Path, provider: str, threads: int = 0) -> ort.InferenceSession:
    """A session over `path` on `provider` ("cpu" or "cuda"), with this project's settings.

    Raises `EngineUnavailable` if the provider is missing or does not start, `EngineError` if
    the file cannot be loaded.
    """
    require_provider(provider)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    wanted = PROVIDERS[provider]
    try:
        session = ort.InferenceSession(path, options, providers=[(wanted, _PROVIDER_OPTIONS[provider])])
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot open {path}: {error}") from error
    if wanted not in session.get_providers():  # it falls back to the CPU without an error
        raise EngineUnavailable(
            f"ONNX Runtime {ort.__version__} could not start {wanted}: its CUDA or cuDNN libraries are missing or of "
            "another version (pip install 'onnxruntime-gpu[cuda,cudnn]')"
        )
    return session


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
