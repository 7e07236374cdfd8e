"""`OnnxEngine`: a step in ONNX Runtime, the same code on the CPU and on a CUDA device.

    engine = OnnxEngine(bundle / "float32/step.onnx", contract, "float32", provider="cpu")
    cache = engine.new_cache(batch=1, slots=canvas.shape[1])
    engine.step(inputs, cache)

The cache is the last refresh's own output, on the engine's device: ONNX Runtime writes it
there and later steps read it there; only the cache `extend`, which keeps rows of earlier refreshes,
joins them to the new ones, on the CPU. `CacheRows` knows which row holds which position. Only
indices, and the few numbers a step decides, cross the bus.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dpad.runtime.bundle.variant import rows_dtype, suffix
from dpad.runtime.checks import check_cache, check_step
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.base import Engine, StepInputs, StepOutputs
from dpad.runtime.engines.machine import available_memory, library_version
from dpad.runtime.engines.rows import CacheRows
from dpad.runtime.errors import EngineError, EngineUnavailable

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

_ONNX_TYPES = {"int64": "tensor(int64)", "float32": "tensor(float)"}
_ONNX_TYPES |= {name: f"tensor({name})" for name in ("float16", "bfloat16")}
_ELEMENT_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}  # onnx.TensorProto.DataType

# Products with packed weights add up in float32; the default, 4, would round the rows to int8 as well.
_PACKED_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "1")

_PREPARED = 3  # bfloat16 weights, and the same in float32, over the size of the former


@dataclass
class OnnxCache:
    """Keys and values of every layer, [B, T, G, D] each, as inputs bound to the next step.

    T is the number of rows of the last refresh, 0 before the first, and the rows hold `positions` [B, T]. `indices` are
    the other inputs: ONNX Runtime may read the host's memory in place, so they outlive the run.
    """

    batch: int
    slots: int
    binding: ort.IOBinding
    rows: CacheRows
    values: list[ort.OrtValue] = field(default_factory=list)
    positions: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 0), dtype=np.int64))
    indices: dict[str, ort.OrtValue] = field(default_factory=dict)


class OnnxEngine(Engine):
    """Runs `step.onnx`; threads may share an engine, but not a cache."""

    def __init__(
        self,
        path: Path,
        contract: StepContract,
        variant: str,
        provider: str = "cpu",
        threads: int = 0,
        model: bytes | None = None,
    ) -> None:
        """Open the model; `threads` 0 lets ONNX Runtime use every core.

        `variant` is that of the step; the engine has the dtype of its rows and caches. `model` takes
        the place of what is at `path`, where its weights lie. `session` is ONNX Runtime's own. Raises
        `EngineUnavailable` if this build of it lacks the provider or cannot start it, and `EngineError` with ONNX
        Runtime's own words if it cannot load the file.
        """
        self.name = f"onnxruntime-{provider}{suffix(variant)}"
        self.contract, self.dtype, self._device = contract, rows_dtype(variant), provider
        self.extends = self.narrows = provider == "cpu"  # rows are joined, and taken out, on the host
        self.session = open_session(path, provider, threads, model)
        try:
            self._check_signature(path)
        except UnicodeDecodeError as error:
            raise EngineError(f"{path}: a name in it is no UTF-8 text: {error}; export the bundle again") from error
        self._cache_names = [name for pair in contract.cache_names() for name in pair]
        self._new_names = [name for pair in contract.new_names() for name in pair]

    def _check_signature(self, path: Path) -> None:
        for kind, have, want in (
            ("input", self.session.get_inputs(), self.contract.inputs(self.dtype)),
            ("output", self.session.get_outputs(), self.contract.outputs(self.dtype)),
        ):
            if [tensor.name for tensor in have] != [spec.name for spec in want]:
                raise EngineError(f"{path}: its {kind}s are not those of the contract; export the bundle again")
            for tensor, spec in zip(have, want):
                fixed = [(size, axis) for size, axis in zip(tensor.shape, spec.axes) if isinstance(axis, int)]
                sizes_differ = any(size != axis for size, axis in fixed if isinstance(size, int))
                if tensor.type != _ONNX_TYPES[spec.dtype] or sizes_differ or len(tensor.shape) != len(spec.axes):
                    told = f"{kind} {spec.name} is {tensor.type} {tensor.shape}"
                    raise EngineError(
                        f"{path}: {told}, and {spec.dtype} {list(spec.axes)} in the contract; export the bundle again"
                    )

    def new_cache(self, batch: int, slots: int) -> OnnxCache:
        """An empty cache for `batch` canvases of `slots` positions; it takes no memory until a refresh."""
        cache = OnnxCache(batch, slots, self.session.io_binding(), CacheRows(batch, slots))
        self._empty(cache)
        return cache

    def _empty(self, cache: OnnxCache) -> None:
        shape = (cache.batch, 0, self.contract.kv_heads, self.contract.head_size)
        nothing = ort.OrtValue.ortvalue_from_shape_and_type(shape, _ELEMENT_TYPES[self.dtype], self._device, 0)
        self._keep(cache, [nothing] * len(self._cache_names), np.empty((cache.batch, 0), dtype=np.int64))

    def _keep(self, cache: OnnxCache, values: list[ort.OrtValue], positions: NDArray[np.int64]) -> None:
        """Let `values`, whose rows hold `positions` [B, T], be the cache from now on."""
        for name, value in zip(self._cache_names, values):
            cache.binding.bind_ortvalue_input(name, value)
        cache.rows.wrote(positions)
        cache.values, cache.positions = values, positions

    def _extend(self, cache: OnnxCache, new: list[ort.OrtValue], inputs: StepInputs) -> None:
        """Let the attended rows and `new`, those of the step, be the cache: on the host, where `extends` holds."""
        lines, rows = np.arange(cache.batch)[:, None], cache.rows.find(inputs.cache_indices)
        joined = [
            np.concatenate([old.numpy()[lines, rows], fresh.numpy()], axis=1) for old, fresh in zip(cache.values, new)
        ]
        positions = np.concatenate([inputs.cache_indices, inputs.gather_indices], axis=1)
        self._keep(cache, [ort.OrtValue.ortvalue_from_numpy(array) for array in joined], positions)

    def rows_of(self, cache: OnnxCache, rows: NDArray[np.bool_]) -> OnnxCache:
        """A cache of its own with copies of the chosen rows."""
        chosen = self.new_cache(int(rows.sum()), cache.slots)
        values = [ort.OrtValue.ortvalue_from_numpy(value.numpy()[rows]) for value in cache.values]
        self._keep(chosen, values, cache.positions[rows])
        return chosen

    def step(self, inputs: StepInputs, cache: OnnxCache) -> StepOutputs:
        """Run one step; a failure inside ONNX Runtime is raised as `EngineError`.

        A refresh that fails leaves the cache empty, one that attends rows of it leaves it as it was.
        """
        check_step(inputs, self.contract, extends=self.extends)
        check_cache(inputs, cache.batch, cache.slots)
        binding, attends = cache.binding, bool(inputs.cache_indices.max(initial=-1) >= 0)
        self._bind_inputs(inputs, cache, attends)
        names = ["token_ids", "confidence", "odds_against", *(["logits"] if inputs.want_logits else [])]
        binding.clear_binding_outputs()
        for name in names:
            binding.bind_output(name, "cpu")
        if inputs.write_back:
            if cache.positions.size and not attends:
                self._empty(cache)  # before the run, so that old and new rows are never held together
            for name in self._new_names:
                binding.bind_output(name, self._device, 0)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(f"ONNX Runtime failed in a step: {error}") from error
        values = binding.get_outputs()
        if inputs.write_back:
            self._check_rows(values[len(names) :], inputs)
        if inputs.write_back and attends:
            self._extend(cache, values[len(names) :], inputs)
        elif inputs.write_back:
            self._keep(cache, values[len(names) :], inputs.gather_indices)
        arrays = [value.numpy() for value in values[: len(names)]]
        return StepOutputs(arrays[0], arrays[1], arrays[2], arrays[3] if inputs.want_logits else None)

    def _check_rows(self, new: list[ort.OrtValue], inputs: StepInputs) -> None:
        """Raise `EngineError` unless the rows to cache are those of `inputs`: later steps find them by their place."""
        wanted = [*inputs.gather_indices.shape, self.contract.kv_heads, self.contract.head_size]
        for name, value in zip(self._new_names, new):
            if value.shape() != wanted:
                told = f"engine {self.name} gave {name} of shape {value.shape()}, and {wanted} was asked for"
                raise EngineError(f"{told}: it is not the step of this bundle; export the bundle again")

    def _bind_inputs(self, inputs: StepInputs, cache: OnnxCache, attends: bool) -> None:
        """Bind all but the caches, which stay bound from one refresh to the next."""
        cached = cache.rows.find(inputs.cache_indices)
        for name, array in (
            ("canvas", inputs.canvas),
            ("gather_indices", inputs.gather_indices),
            ("cache_indices", cached if attends else cached[:, :0]),  # else all of it is padding
            ("decode_rows", inputs.decode_rows),
        ):
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._device, 0)
            cache.binding.bind_ortvalue_input(name, value)
            cache.indices[name] = value

    def close(self) -> None:
        """Drop the session."""
        self.__dict__.pop("session", None)

    def __getattr__(self, name: str) -> Any:
        """Asked for what is not there."""
        if name == "session":
            raise EngineError(f"{self.name} is closed")
        raise AttributeError(name)


def open_session(path: Path, provider: str, threads: int = 0, model: bytes | None = None) -> ort.InferenceSession:
    """A session over `path`, or `model` in its place, on `provider` ("cpu" or "cuda"), with this project's settings.

    ONNX Runtime prepares weights when it opens a file: transposed, and in float32 where they are stored narrower.
    Where memory has no room for both, they are prepared anew in every step, which is slow, and a warning says so.
    Raises `EngineUnavailable` if the provider is missing or does not start, `EngineError` if
    the file cannot be loaded.
    """
    require_provider(provider)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry(*_PACKED_PRODUCTS)
    if model is not None:  # else it knows the folder, and that where a link leads to: a hub's cache is all links
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    wanted = PROVIDERS[provider]
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise EngineError(
            f"{path!r} is no UTF-8 text, and ONNX Runtime opens no such path; rename the directory"
        ) from None
    size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    roomy = provider != "cpu" or _PREPARED * size < available_memory()
    if not roomy:
        warn(
            f"{path.parent} holds {size / 1e9:.1f} GB and {available_memory() / 1e9:.1f} GB of memory are available: "
            f"weights are prepared in every step, which is slow; {_PREPARED * size / 1e9:.0f} GB would do",
            stacklevel=2,
        )
        # Each prepared weight is given back before the next is made; an arena would keep the memory of them all.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    try:
        session = ort.InferenceSession(
            path if model is None else model,
            options,
            providers=[(wanted, _PROVIDER_OPTIONS[provider])],
            disabled_optimizers=[] if roomy else ["ConstantFolding"],
        )
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
