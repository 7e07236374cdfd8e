"""Compute capabilities of plans: the GPUs on which a plan of TensorRT-RTX runs, and their labels in names.

    label("8.9"), label(PORTABLE)       # "sm89", "portable"
    runs_on(PORTABLE, "12.0")           # True

Without a named target, TensorRT-RTX builds one plan for many GPUs and compiles the kernels when it runs. The lists
come from the message with which version 1.7.1 refuses a GPU.
"""

PORTABLE = "portable"  # stands for all of `_COMMON`, and every compute capability from `_FROM` on
_COMMON = ("8.0", "8.6", "8.9")
_NAMED = ("7.5",)  # runs only a plan that was built for it by name
_FROM = 12  # every compute capability with this major number or a higher one runs a portable plan
INSTEAD = "use engine torch-cuda, which needs no plan, or export with --target tensorrt instead of tensorrt-rtx"


def label(capability: str) -> str:
    """The form of a compute capability in names of engines and files."""
    return capability if capability == PORTABLE else f"sm{capability.replace('.', '')}"


def runs_on(built_for: str, capability: str) -> bool:
    """Whether a plan of TensorRT-RTX built for `built_for`, which may be `PORTABLE`, runs on a GPU of `capability`."""
    if built_for != PORTABLE:
        return built_for == capability
    return capability in _COMMON or int(capability.partition(".")[0]) >= _FROM


def rtx_takes(capability: str) -> bool:
    """Whether TensorRT-RTX runs on GPUs of `capability` at all. On 9.0 (Hopper) it builds plans but runs none."""
    return capability in _NAMED or runs_on(PORTABLE, capability)


def rtx_refuses(capability: str) -> str:
    """The message for a GPU on which TensorRT-RTX does not run."""
    taken = f"{', '.join((*_NAMED, *_COMMON))} and from {_FROM}.0 on"
    return f"TensorRT-RTX does not run on compute capability {capability}, only on {taken}; {INSTEAD}"
