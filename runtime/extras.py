"""The extras of pyproject.toml: what they bring, and how they are installed.

    install("rtx")                                          # pip install '.[rtx]' in a checkout of dpad
    with needed_by("engine eager", EngineUnavailable):      # "engine eager needs torch: pip install '.[export]' ..."
        import torch

Always from a checkout: the `dpad` on PyPI is another project.
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
    """The command that installs `extra`, and where."""
    return f"pip install '.[{extra}]' in a checkout of dpad"


@contextmanager
def needed_by(what: str, kind: type[DpadError]) -> Iterator[None]:
    """Imports in this block: a missing module of an extra is a `kind` that says how `what` gets it.

    Raises `ModuleNotFoundError` as it is if the module belongs to no extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        for extra, modules in EXTRAS.items():
            if module in modules:
                raise kind(f"{what} needs {module}: {install(extra)}") from error
        raise
