"""The root of this package's errors, and the errors of the op and its kernels.

`dpad.runtime.errors` shows the whole tree; its root is defined here because every folder may import this one.
"""


class DpadError(Exception):
    """Base of all errors of this package."""


class AttentionError(DpadError, ValueError):
    """Inputs that `sparse_suffix_attention` cannot take; names the value and the limit."""


class KernelCompileError(DpadError):
    """A kernel could not be compiled into a form that a plain launch can run; says why."""
