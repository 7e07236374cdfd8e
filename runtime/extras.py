"""The extras of pyproject.toml: the modules that each installs, and the command that installs it.

    install("rtx")                                          # pip install '.[rtx]' in a checkout of dpad
    with needed_by("engine eager", EngineUnavailable):      # "engine eager needs torch: pip install '.[export]' ..."
        import torch

Extras are always installed from a checkout: the `dpad` on PyPI is another project.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from dpad.runtime.errors import DpadError

EXTRAS = {
    "export": ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "polygraphy", "huggingface_hub"),
    "kernel": ("triton",),
    "torch": ("torch", "triton", "safetensors"),
    "rtx": ("tensorrt_rtx", "cuda"),
    "tensorrt": ("tensorrt", "cuda"),
    "tensorrt-lean": ("tensorrt_lean", "cuda"),
    "eval": ("lm_eval",),
    "serve": ("starlette", "uvicorn", "h11", "pydantic", "prometheus_client"),
    "ray": ("ray",),
}


def install(extra: str) -> str:
    """The command that installs `extra`, and where to run it."""
    return f"pip install '.[{extra}]' in a checkout of dpad"


@contextmanager
def needed_by(what: str, kind: type[DpadError]) -> Iterator[None]:
    """Raise `kind` if an import in this block lacks a module of an extra; the message says how to install it.

    `what` names the part that needs the module. If the module belongs to no extra, the `ModuleNotFoundError` passes.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        for extra, modules in EXTRAS.items():
            if module in modules:
                raise kind(f"{what} needs {module}: {install(extra)}") from error
        raise
