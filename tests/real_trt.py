"""Imports TensorRT's real Python bindings without its libraries, as the standard for `make test-trt-api`.

    trt = real_tensorrt(tmp_path)      # `tensorrt`, with a real plugin registry and `tensorrt.plugin`

The bindings need symbols of three libraries. The lean runtime has some of them. Those of the builder and the parser
come from stubs, compiled here, that return null. So a builder cannot be created, but everything else is real.
"""

import ctypes
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BINDINGS = Path(__file__).resolve().parent.parent / ".venv-trt"
_LEAN = BINDINGS / "tensorrt_lean_libs/libnvinfer_lean.so.11"
_STUBS = {
    "libnvinfer.so.11": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "getBuilderPluginRegistry",
    ),
    "libnvonnxparser.so.11": (
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getNvOnnxParserVersion",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
}


def missing() -> str:
    """Why the bindings cannot be imported here; empty if they can."""
    if not _LEAN.exists():
        return "TensorRT's bindings are not installed: make test-trt-api"
    return "" if shutil.which("cc") else "stubs of TensorRT's libraries need a C compiler (cc)"


# The marks of tests that need the bindings.
REAL_API = [pytest.mark.trt_api, pytest.mark.skipif(bool(missing()), reason=missing())]


def real_tensorrt(folder: Path) -> ModuleType:
    """Import the bindings with stubs written to `folder`; later calls return the same module."""
    if "tensorrt" in sys.modules:
        return sys.modules["tensorrt"]
    for name, symbols in _STUBS.items():
        ctypes.CDLL(str(_stub(folder / name, symbols)))  # the bindings find a loaded library of this name
    sys.path.append(str(BINDINGS))
    module = import_module("tensorrt")
    import_module("tensorrt.plugin")
    return module


def _stub(path: Path, symbols: tuple[str, ...]) -> Path:
    """Compile a library whose functions return null; it links the lean runtime, which has getPluginRegistry."""
    code = "".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols)
    link = ["-Wl,--no-as-needed", str(_LEAN), f"-Wl,-rpath,{_LEAN.parent}", f"-Wl,-soname,{path.name}"]
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-x", "none", *link, "-o", str(path)]
    subprocess.run(command, input=code, text=True, check=True, capture_output=True)
    return path
