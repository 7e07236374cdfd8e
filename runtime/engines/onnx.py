"""`OnnxEngine`: a step in ONNX Runtime, the same code on the CPU and on a CUDA device.

    engine = OnnxEngine(bundle / "float32/step.onnx", contract, "float32", decide=bundle / "decide.onnx")
    slots = engine.slots.take(70)
    engine.step(inputs)

The pool is bound once and read where it lies; new rows are copied into it on its own side of the bus. Only indices, and
the few numbers that are decided a row, cross it: the second program reads the logits where the first left them.
"""

import os
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from dpad.runtime.bundle.variant import rows_dtype, suffix
from dpad.runtime.contract import StepContract, TensorSpec
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.machine import available_memory, library_version
from dpad.runtime.engines.onnx_pool import DevicePool, HostPool, Pool
from dpad.runtime.engines.slots import Slots, pool_size, runs_of, slot_bytes
from dpad.runtime.engines.step import Decisions, Sampling, StepInputs, StepOutputs
from dpad.runtime.errors import EngineError, EngineUnavailable
from dpad.runtime.extras import install

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# CUDA graphs (enable_cuda_graph) stay off: they replay fixed shapes, and here they change with every pass.
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {
        "arena_extend_strategy": "kSameAsRequested",  # doubling would take up to twice what is needed
        "use_tf32": "0",  # a float32 step must agree with PyTorch, which multiplies in full float32
    },
}

_ONNX_TYPES = {"float32": "tensor(float)"}  # of others as in numpy

# Products with packed weights add up in float32; the default, 4, would round the rows to int8 as well.
_PACKED_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "1")

# CUDA: of 8B weights on an H100, two operations a weight and row at 786 TFLOP/s, against 7 ms to read 16 GB. CPU: least
# squares of relative errors over 90 shapes of `tiny` on one thread, 1 to 8 sequences of 16 to 256 rows; 11 to 18.
_PASS_ROWS = {"cuda": 300, "cpu": 12}

_PREPARED = 3  # bfloat16 weights, and the same in float32, over the size of the former


class OnnxEngine(Engine):
    """Runs `step.onnx`, and `decide.onnx` where a step asks for more than the likeliest tokens."""

    def __init__(
        self,
        path: Path,
        contract: StepContract,
        variant: str,
        provider: str = "cpu",
        threads: int = 0,
        model: bytes | None = None,
        decide: Path | None = None,
        slots: int | None = None,
        device: Device | None = None,
    ) -> None:
        """Open the model; `threads` 0 lets ONNX Runtime use every core.

        `variant` is that of the step; the engine has the dtype of its rows and pool. `model` takes
        the place of what is at `path`, where its weights lie. `decide` is the second program, opened when a step first
        asks for it. `slots` is the size of the pool, see `pool_size`. `device` is where the pool lies, None: where
        the provider computes. `session` is ONNX Runtime's own.

        Raises `EngineUnavailable` if this build of it lacks the provider or cannot start it, and `EngineError` with
        ONNX Runtime's own words if it cannot load the file.
        """
        super().__init__()
        self.name = f"onnxruntime-{provider}{suffix(variant)}"
        self.contract, self.dtype, self._place = contract, rows_dtype(variant), provider
        self.pass_rows = _PASS_ROWS[provider]
        self._path, self._decide, self._threads = path, decide, threads
        self.session = open_session(path, provider, threads, model)
        _check_signature(path, self.session, contract.inputs(self.dtype), contract.outputs(self.dtype))
        self._decider: ort.InferenceSession | None = None
        self._device = device = _cuda_device() if provider == "cuda" and device is None else device
        free = available_memory() if device is None else device.free_memory()
        size = pool_size(contract, slot_bytes(contract, self.dtype), free, slots)
        own = (contract, self.dtype, size)
        self._pool: Pool = HostPool(*own) if device is None else DevicePool(*own, provider, device)
        self.slots = Slots(size)
        self._binding = self.session.io_binding()
        for name, value in zip(contract.cache_names(), self._pool.values):
            self._binding.bind_ortvalue_input(name, value)

    def padded(self, axis: str, size: int) -> int:
        """On CUDA a multiple of 4: the masked attention kernel that needs little memory takes no other Q + K."""
        if self._place != "cuda" or axis not in ("Q", "K"):
            return size
        return min(-(-size // 4) * 4, self.contract.max_length)

    def _step(self, inputs: StepInputs) -> StepOutputs:
        arrays = {name: getattr(inputs, name) for name in ("canvas", "gather_indices", "cache_indices", "decode_rows")}
        held = self._bind(self._binding, arrays)
        outputs = ["token_ids", "odds_against"]
        for name in outputs:
            self._binding.bind_output(name, "cpu")
        if inputs.want_logits or inputs.sampling is not None:
            outputs.append("logits")
            self._binding.bind_output("logits", self._place, 0)
        if inputs.write_slots is not None:
            for name in self.contract.new_names():
                self._binding.bind_output(name, self._place, 0)
        try:
            values = _run(self.session, self._binding)
        finally:
            self._binding.clear_binding_outputs()  # else it would keep the new rows until the next step
        del held
        if inputs.write_slots is not None:
            new = values[len(outputs) :]
            self._check_rows(new, inputs)
            self._pool.write(new, runs_of(inputs.write_slots))
        decisions = None if inputs.sampling is None else self._decisions(values[2], inputs.sampling)
        logits = values[2].numpy() if inputs.want_logits else None
        return StepOutputs(values[0].numpy(), values[1].numpy(), decisions, logits)

    def _decisions(self, logits: ort.OrtValue, sampling: Sampling) -> Decisions:
        """What the second program says of `logits`, which stay where they are."""
        session = self._decider = self._decider or self._open_decider()
        binding = session.io_binding()
        binding.bind_ortvalue_input("logits", logits)
        held = self._bind(binding, vars(sampling))
        names = [spec.name for spec in self.contract.decide_outputs()]
        for name in names:
            binding.bind_output(name, "cpu")
        values = _run(session, binding)
        del held
        return Decisions(**{name: value.numpy() for name, value in zip(names, values)})

    def _open_decider(self) -> ort.InferenceSession:
        if self._decide is None:
            raise EngineError(
                f"{self._path} has no decide.onnx beside it, which draws tokens and measures entropies and margins; "
                "export the bundle again, or decode greedily"
            )
        session = open_session(self._decide, self._place, self._threads)
        _check_signature(self._decide, session, self.contract.decide_inputs(), self.contract.decide_outputs())
        return session

    def _bind(self, binding: ort.IOBinding, arrays: dict[str, NDArray[Any]]) -> list[ort.OrtValue]:
        """Bind inputs; what is returned must outlive the run, for ONNX Runtime may read the host's memory in place."""
        values = []
        for name, array in arrays.items():
            value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._place, 0)
            binding.bind_ortvalue_input(name, value)
            values.append(value)
        return values

    def _check_rows(self, new: list[ort.OrtValue], inputs: StepInputs) -> None:
        """Raise `EngineError` unless the rows to keep are those of `inputs`: later steps find them by their slot."""
        wanted = [*inputs.gather_indices.shape, self.contract.kv_heads, self.contract.head_size]
        for name, value in zip(self.contract.new_names(), new):
            if value.shape() != wanted:
                told = f"engine {self.name} gave {name} of shape {value.shape()}, and {wanted} was asked for"
                raise EngineError(f"{told}: it is not the step of this bundle; export the bundle again")

    def close(self) -> None:
        """Drop the sessions and the pool, after the step that runs."""
        with self._lock:
            for name in ("session", "_binding", "_decider", "_pool"):
                self.__dict__.pop(name, None)
            if self._device is not None:
                self._device.close()

    def __getattr__(self, name: str) -> Any:
        """Asked for what is not there."""
        if name in ("session", "_binding"):
            raise EngineError(f"{self.name} is closed")
        raise AttributeError(name)


def _run(session: ort.InferenceSession, binding: ort.IOBinding) -> list[ort.OrtValue]:
    """The outputs that are bound; raises `EngineError` if ONNX Runtime fails."""
    try:
        session.run_with_iobinding(binding)
        return list(binding.get_outputs())
    except Exception as error:
        raise EngineError(f"ONNX Runtime failed in a step: {error}") from error


def _cuda_device() -> Device:
    try:
        from dpad.runtime.engines.gpu.cuda import CudaDevice
    except ModuleNotFoundError as error:
        raise EngineUnavailable(f"ONNX Runtime on CUDA needs cuda-bindings: {install('gpu')}") from error
    return CudaDevice()


def _check_signature(
    path: Path, session: ort.InferenceSession, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    """Raise `EngineError` unless the file takes `inputs` and gives `outputs`."""
    try:
        found = [("input", session.get_inputs(), inputs), ("output", session.get_outputs(), outputs)]
        for kind, have, want in found:
            if [tensor.name for tensor in have] != [spec.name for spec in want]:
                raise EngineError(f"{path}: its {kind}s are not those of the contract; export the bundle again")
            for tensor, spec in zip(have, want):
                fixed = [(size, axis) for size, axis in zip(tensor.shape, spec.axes) if isinstance(axis, int)]
                sizes_differ = any(size != axis for size, axis in fixed if isinstance(size, int))
                if (
                    tensor.type != _ONNX_TYPES.get(spec.dtype, f"tensor({spec.dtype})")
                    or sizes_differ
                    or len(tensor.shape) != len(spec.axes)
                ):
                    told = f"{kind} {spec.name} is {tensor.type} {tensor.shape}"
                    here = f"and {spec.dtype} {list(spec.axes)} in the contract"
                    raise EngineError(f"{path}: {told}, {here}; export the bundle again")
    except UnicodeDecodeError as error:
        raise EngineError(f"{path}: a name in it is no UTF-8 text: {error}; export the bundle again") from error


def open_session(path: Path, provider: str, threads: int = 0, model: bytes | None = None) -> ort.InferenceSession:
    """A session over `path`, or `model` in its place, on `provider` ("cpu" or "cuda"), with this project's settings.

    ONNX Runtime prepares weights when it opens a file: transposed, and in float32 where they are stored narrower. Where
    memory has no room for both, they are prepared anew in every step, which is slow, and a warning says so. Raises
    `EngineUnavailable` if the provider is missing or does not start, `EngineError` if the file cannot be loaded.
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
