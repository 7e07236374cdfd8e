"""The root of this package's errors, and the one that the op itself raises.

The tree is drawn in `dpad.runtime.errors`; its root lies here because every folder imports this one.
"""


class DpadError(Exception):
    """Base of all errors of this package."""


class AttentionError(DpadError, ValueError):
    """Inputs that `sparse_suffix_attention` cannot take; names the value and the limit."""


class KernelCompileError(DpadError):
    """A kernel could not be compiled into something that a plain launch can run; says why."""
