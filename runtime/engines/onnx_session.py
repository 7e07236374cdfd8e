"""`open_session` opens a program of a bundle in ONNX Runtime, on its CPU or its CUDA provider.

session = open_session(bundle / "float32/step.onnx", "cpu", threads=2)
check_signature(path, session, contract.inputs("float32"), contract.outputs("float32"))
outputs = run(session, binding)
"""

import os
from pathlib import Path
from warnings import warn

import onnxruntime as ort

from dpad.runtime.contract import TensorSpec
from dpad.runtime.engines.machine import available_memory, library_version
from dpad.runtime.errors import EngineError, EngineUnavailable

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

# CUDA graphs (enable_cuda_graph) stay off: ONNX Runtime's own recordings were not yet tested with a step.
_PROVIDER_OPTIONS: dict[str, dict[str, str]] = {
    "cpu": {},
    "cuda": {
        "arena_extend_strategy": "kSameAsRequested",  # the default doubles, and takes up to twice the memory
        "use_tf32": "0",  # a float32 step must agree with PyTorch, which multiplies in full float32
    },
}

_ONNX_TYPES = {"float32": "tensor(float)"}  # other types have numpy's names

# Level 1 accumulates products with packed weights in float32; the default, 4, would round the rows to int8 as well.
_PACKED_PRODUCTS = ("session.qdq_matmulnbits_accuracy_level", "1")

_PREPARED = 3  # memory of bfloat16 weights together with their float32 copies, relative to the weight files


def open_session(path: Path, provider: str, threads: int = 0, model: bytes | None = None) -> ort.InferenceSession:
    """Open `path`, or `model` in its place, on `provider` ("cpu" or "cuda"), with this project's settings.

    When ONNX Runtime opens a file, it makes a transposed copy of the weights, converted to float32 if they are stored
    narrower. If memory has no room for the copy, weights are converted in every step, which is slow and causes a
    warning. Raises `EngineUnavailable` if the provider is missing or does not start, and `EngineError` if the file
    cannot be loaded.
    """
    require_provider(provider)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry(*_PACKED_PRODUCTS)
    if model is not None:  # for a file ONNX Runtime finds the folder itself, even through the links of a hub's cache
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    wanted = PROVIDERS[provider]
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        raise EngineError(
            f"{path!r} is not valid UTF-8, and ONNX Runtime cannot open such a path; rename the directory"
        ) from None
    size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    roomy = provider != "cpu" or _PREPARED * size < available_memory()
    if not roomy:
        warn(
            f"{path.parent} holds {size / 1e9:.1f} GB and only {available_memory() / 1e9:.1f} GB of memory are "
            f"available: weights are converted in every step, which is slow; {_PREPARED * size / 1e9:.0f} GB of memory "
            "avoid it",
            stacklevel=2,
        )
        # Each converted weight is freed before the next is made; an arena would keep the memory of all of them.
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
    if wanted not in session.get_providers():  # ONNX Runtime falls back to the CPU without an error
        raise EngineUnavailable(
            f"ONNX Runtime {ort.__version__} could not start {wanted}: its CUDA or cuDNN libraries are missing or have "
            "another version (pip install 'onnxruntime-gpu[cuda,cudnn]')"
        )
    return session


def require_provider(provider: str) -> None:
    """Raise `EngineUnavailable`, with the commands that help, unless ONNX Runtime has `provider`."""
    if PROVIDERS[provider] in ort.get_available_providers():
        return
    # An extra cannot remove the base dependency, so both packages may be installed.
    steps = ["pip uninstall -y onnxruntime"] if library_version("onnxruntime") else []
    steps.append("pip install --force-reinstall --no-deps onnxruntime-gpu")
    raise EngineUnavailable(
        f"the installed ONNX Runtime {ort.__version__} has no {PROVIDERS[provider]}; "
        f"onnxruntime-gpu must replace onnxruntime: {' && '.join(steps)}"
    )


def check_signature(
    path: Path, session: ort.InferenceSession, inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    """Raise `EngineError` unless the file has exactly these `inputs` and `outputs`."""
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
                    here = f"but {spec.dtype} {list(spec.axes)} in the contract"
                    raise EngineError(f"{path}: {told}, {here}; export the bundle again")
    except UnicodeDecodeError as error:
        raise EngineError(f"{path}: a name in it is not valid UTF-8: {error}; export the bundle again") from error


def run(session: ort.InferenceSession, binding: ort.IOBinding) -> list[ort.OrtValue]:
    """Run the session and return its bound outputs; raises `EngineError` if ONNX Runtime fails."""
    try:
        session.run_with_iobinding(binding)
        return list(binding.get_outputs())
    except Exception as error:
        raise EngineError(f"ONNX Runtime failed in a step: {error}") from error
