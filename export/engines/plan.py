"""Builds a TensorRT or TensorRT-RTX plan from a traced step; the library is an argument.

    import tensorrt_rtx
    plan = build_plan(tensorrt_rtx, onnx_path, contract, "float16", "8.9", progress)
    path.write_bytes(plan.data)

With a compute capability set, TensorRT-RTX builds on a machine without a GPU. Networks are strongly typed: the dtype is
the ONNX file's. The builder is driven directly rather than through Polygraphy, which picks TensorRT or TensorRT-RTX
once a process by an environment variable and keeps the parser's and builder's own errors in its log.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from dpad.export.engines.timing import TimingCache
from dpad.export.progress import Advance, Progress
from dpad.runtime.bundle.manifest import BuildFlags
from dpad.runtime.bundle.variant import rows_dtype
from dpad.runtime.contract import StepContract, TensorSpec
from dpad.runtime.engines.capability import PORTABLE, label
from dpad.runtime.engines.machine import Machine
from dpad.runtime.engines.tensorrt.log import make_logger
from dpad.runtime.errors import EngineBuildError
from dpad.runtime.extras import install

# (smallest, most likely, largest) of each dynamic axis.
Ranges = dict[str, tuple[int, int, int]]

_NO_FLAGS = BuildFlags()
_MOST_ELEMENTS = 2**31 - 1  # of a tensor
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")  # the builder logs this once per profile


@dataclass(frozen=True)
class Plan:
    """A compiled engine.

    Attributes:
        data: its bytes, in the builder's own memory, since a copy would be as large as the weights.
        activations: device memory in bytes of a step at the largest shapes, without weights, caches and logits
            (0: unknown).
    """

    data: memoryview
    activations: int


def profiles(contract: StepContract) -> dict[str, Ranges]:
    """Two optimisation profiles: refresh (all rows, no cache) and cached (one block).

    Block length and window set the most likely sizes; max batch and max length set the limits. R is limited to one
    block per sequence, since it sets the memory of the logits. K is at least 1, since engines pad an empty axis with
    one -1. A block-causal model computes one block in every step except the first, which computes the prompt and reads
    no cache.

    The pool has at most a slot for every token of the largest batch and one that padding reads, within the largest
    number of elements of a tensor.
    """
    longest, block = contract.max_length, min(contract.block_length, contract.max_length)
    batch, canvas = (1, 1, contract.max_batch), (1, max(longest // 2, 1), longest)
    rows = (1, block, block)
    most = min(contract.max_batch * longest + 1, _MOST_ELEMENTS // (contract.kv_heads * contract.head_size))
    pool = (1, min(longest + 1, most), most)
    # A Gaussian schedule keeps about half of scale · window / k; text behind the blank adds to it.
    kept = 0 if contract.block_causal else contract.window // 4
    step_rows = (1, min(block + kept, longest), longest)
    return {
        "refresh": {"B": batch, "N": canvas, "Q": canvas, "K": (1, 1, 1), "R": rows, "P": pool},
        "cached": {"B": batch, "N": canvas, "Q": step_rows, "K": canvas, "R": rows, "P": pool},
    }


def build_plan(
    trt: ModuleType,
    onnx_path: Path,
    contract: StepContract,
    variant: str,
    capability: str,
    progress: Progress,
    flags: BuildFlags = _NO_FLAGS,
    attention: str = "native",
    decides: bool = False,
) -> Plan:
    """Compile for one compute capability ("8.9"), or, with TensorRT-RTX, for all that it supports (`PORTABLE`).

    `variant` is the step's variant as in the manifest. With `attention` "plugin" the file holds plugin nodes, and the
    plugins are registered before it is parsed. `decides` says that the file is decide.onnx, which has one profile and
    no weights. Raises `EngineBuildError` with the builder's own message.
    """
    check_capability(trt, capability)
    if attention == "plugin":
        _register_plugins(trt, capability)
    inputs = contract.decide_inputs() if decides else contract.inputs(rows_dtype(variant))
    flags = replace(flags, strip_weights=flags.strip_weights and not decides)
    activations = [0]
    logger = make_logger(trt, lambda line: activations.extend(int(size) for size in _ACTIVATIONS.findall(line)))
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # the bindings raise it for a null pointer
        raise EngineBuildError(f"{trt.__name__} gives no builder ({error}):\n{logger.words()}") from error
    network = builder.create_network(network_flags(trt, attention))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        problems = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineBuildError(f"{trt.__name__} cannot parse {onnx_path}:\n" + "\n".join(problems or [logger.words()]))
    config = builder.create_builder_config()
    _target(trt, config, capability)
    set_flags(trt, config, flags)
    ranges = profiles(contract)
    for name in ("cached",) if decides else ranges:
        config.add_optimization_profile(_profile(builder, inputs, ranges[name]))
    timings = TimingCache(trt, capability)
    timings.attach(config)
    with progress.task(f"build {trt.__name__} plan, {label(capability)}") as advance:
        monitor = _monitor(trt, advance)
        config.progress_monitor = monitor
        data = builder.build_serialized_network(network, config)
    if monitor.cancelled:
        raise KeyboardInterrupt
    if data is None:
        raise EngineBuildError(
            f"{trt.__name__} could not build {onnx_path.name} ({variant}) for compute capability {capability}:\n"
            f"{logger.words()}{_hint(flags)}"
        )
    timings.save(config)
    return Plan(memoryview(data), max(activations))


def check_capability(trt: ModuleType, capability: str) -> None:
    """Raise `EngineBuildError`, which lists the known ones, if the library cannot target a compute capability."""
    known = [*capabilities(trt), *([PORTABLE] if hasattr(trt, "ComputeCapability") else [])]
    if capability not in known:
        here = ", ".join(known) or "none: it builds for this machine's GPU, and there is no GPU here"
        raise EngineBuildError(f"{trt.__name__} cannot target compute capability {capability} (it knows {here})")


def _register_plugins(trt: ModuleType, capability: str) -> None:
    from dpad.plugins.trt_face import register_plugins

    try:
        register_plugins(trt, capability)
    except ImportError as error:
        raise EngineBuildError(f"plugin attention needs Triton: {install('kernel')} ({error})") from error
    except AttributeError as error:
        version = getattr(trt, "__version__", "here")
        raise EngineBuildError(
            f"{trt.__name__} {version} has no ahead-of-time plugins ({error}); take 10.16 or later, or native attention"
        ) from error


def network_flags(trt: Any, attention: str) -> int:
    """Flags of a network: strongly typed, where the version has that flag, and plugins compiled ahead of time."""
    names = ["STRONGLY_TYPED", *(["PREFER_AOT_PYTHON_PLUGINS"] if attention == "plugin" else [])]
    flags = trt.NetworkDefinitionCreationFlag
    return sum(1 << int(getattr(flags, name)) for name in names if hasattr(flags, name))


def set_flags(trt: Any, config: Any, flags: BuildFlags) -> None:
    """Put `flags` into a builder configuration."""
    kinds = trt.BuilderFlag
    if flags.strip_weights:
        config.set_flag(kinds.STRIP_PLAN)
        config.set_flag(kinds.REFIT_IDENTICAL if hasattr(kinds, "REFIT_IDENTICAL") else kinds.REFIT)
    if flags.version_compatible:
        config.set_flag(kinds.VERSION_COMPATIBLE)
    if flags.lean:
        config.set_flag(kinds.EXCLUDE_LEAN_RUNTIME)
    if flags.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if flags.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, flags.workspace << 20)


def _hint(flags: BuildFlags) -> str:
    """How to solve a failure that the builder's own message does not explain."""
    if flags.strip_weights and Machine.current().gpu is None:
        return "\na build without weights needs a GPU, and there is none here; leave --strip-weights out"
    if flags.workspace is not None:
        return f"\nthe workspace may be too small: --workspace limits it to {flags.workspace} MiB"
    return ""


def capabilities(trt: ModuleType) -> list[str]:
    """Compute capabilities that this library can target, such as "8.9".

    TensorRT-RTX targets a fixed list on any machine; TensorRT targets only the GPU of this machine.
    """
    if not hasattr(trt, "ComputeCapability"):
        gpu = Machine.current().gpu
        return [gpu.compute_capability] if gpu else []
    names = [name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    return sorted((f"{name[:-1]}.{name[-1]}" for name in names), key=float)


def _target(trt: Any, config: Any, capability: str) -> None:
    """Set the target; for `PORTABLE` none is set, which TensorRT-RTX takes as every GPU it supports."""
    if hasattr(trt, "ComputeCapability") and capability != PORTABLE:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), 0)


def _profile(builder: Any, inputs: list[TensorSpec], ranges: Ranges) -> Any:
    profile = builder.create_optimization_profile()
    for spec in inputs:
        sizes = [(axis,) * 3 if isinstance(axis, int) else ranges[axis] for axis in spec.axes]
        profile.set_shape(spec.name, *(tuple(size[i] for size in sizes) for i in range(3)))
    return profile


def _monitor(trt: Any, advance: Advance) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Counts the builder's steps; an interrupt stops the build at the next one."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            pass

        def phase_finish(self, name: str) -> None:
            pass

        def step_complete(self, name: str, step: int) -> bool:
            try:
                advance(1)
            except KeyboardInterrupt:
                self.cancelled = True
            return not self.cancelled

    return Monitor()
