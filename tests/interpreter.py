"""Runs the Triton kernel in Triton's own interpreter on machines without a GPU.

conftest.py imports it before anything can import the kernels, since Triton reads the mode when they are decorated.
"""

import os

import torch

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def widen_bfloat16_products() -> None:
    """Make Triton's interpreter widen bfloat16 operands of a product, which it would multiply as integers."""
    import numpy as np
    from triton.runtime import interpreter
    from triton.runtime.interpreter import TensorHandle, tl

    original = interpreter.InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):  # type: ignore[no-untyped-def]
        return original(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"
    widen_bfloat16_products()
