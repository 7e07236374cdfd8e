"""Checks that ONNX Runtime runs all nodes of a step on the GPU.

It silently assigns a node to the CPU if its CUDA provider lacks a kernel, and then every step copies and waits. A
session that may not fall back to the CPU refuses such a model and names the node.
"""

from typing import Any

from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.variant import DYNAMIC, is_quantized
from dpad.runtime.engines.machine import library_version
from gpu.session import Failures, Session
from gpu.worker import told

_PROVIDER = "CUDAExecutionProvider"
_OPENS = 10.0  # seconds that opening a session may take


def check(session: Session, bundle: Bundle) -> dict[str, Any]:
    """For every step of `bundle` and for `decide`: "on the GPU", or the error.

    A step with packed weights may need the CPU; this is reported but is not a failure.
    """
    import onnxruntime

    if _PROVIDER not in onnxruntime.get_available_providers():
        missing = library_version("onnxruntime-gpu") is not None
        why = f"the installed ONNX Runtime {onnxruntime.__version__} has no {_PROVIDER}"
        return {"skipped": why, "failures": [f"onnxruntime-gpu is installed, and {why}"] if missing else []}
    failures, models = Failures(), dict[str, str]()
    files = {name: step.onnx for name, step in bundle.manifest.steps.items() if name != DYNAMIC}
    for name, file in {**files, "decide": bundle.manifest.decide}.items():
        if session.left() < _OPENS:
            models[name] = "out of time"
            continue
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            onnxruntime.InferenceSession(bundle.path(file), options, providers=[_PROVIDER])
            models[name] = "on the GPU"
        except Exception as error:  # ONNX Runtime has error classes of its own
            models[name] = told(error)
            failures.unless(is_quantized(name), f"{name} does not run on the GPU alone: {told(error)}")
    return {"models": models, "failures": failures.told}
