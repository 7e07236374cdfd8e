"""`open_session`: a program of a bundle in ONNX Runtime, on its CPU or its CUDA provider.

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

# CUDA graphs (enable_cuda_graph) stay off: whether ONNX Runtime's own recordings hold for a step is not known yet.
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

_PREPARED = 3  # bfloat16 weights, and the same in float32, over the size of the former


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


def check_signature(
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


def run(session: ort.InferenceSession, binding: ort.IOBinding) -> list[ort.OrtValue]:
    """The outputs that are bound; raises `EngineError` if ONNX Runtime fails."""
    try:
        session.run_with_iobinding(binding)
        return list(binding.get_outputs())
    except Exception as error:
        raise EngineError(f"ONNX Runtime failed in a step: {error}") from error
