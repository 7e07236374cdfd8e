"""Compute capabilities of plans: which GPUs a plan of TensorRT-RTX runs on, and how plans are named by it.

    label("8.9"), label(PORTABLE)       # "sm89", "portable"
    runs_on(PORTABLE, "12.0")           # True

TensorRT-RTX makes one plan for many GPUs where no target is named: it compiles kernels when it runs. The lists are what
version 1.7.1 says of its own plans where it refuses a GPU.
"""

PORTABLE = "portable"  # in place of a compute capability: all of `_COMMON`, and those from `_FROM` on
_COMMON = ("8.0", "8.6", "8.9")
_NAMED = ("7.5",)  # only in a plan that names it
_FROM = 12  # the major number from which on all are taken
INSTEAD = "take engine torch-cuda, which needs no plan, or export with --target tensorrt in place of tensorrt-rtx"


def label(capability: str) -> str:
    """How a compute capability stands in names of engines and files."""
    return capability if capability == PORTABLE else f"sm{capability.replace('.', '')}"


def runs_on(built_for: str, capability: str) -> bool:
    """Whether a plan of TensorRT-RTX that is `built_for` a compute capability, or portable, runs on a GPU."""
    if built_for != PORTABLE:
        return built_for == capability
    return capability in _COMMON or int(capability.partition(".")[0]) >= _FROM


def rtx_takes(capability: str) -> bool:
    """Whether TensorRT-RTX runs on such GPUs at all: not on 9.0 (Hopper), though it builds there."""
    return capability in _NAMED or runs_on(PORTABLE, capability)


def rtx_refuses(capability: str) -> str:
    """What to say of a GPU that it does not take."""
    taken = f"{', '.join((*_NAMED, *_COMMON))} and from {_FROM}.0 on"
    return f"TensorRT-RTX does not run on compute capability {capability}, only on {taken}; {INSTEAD}"
