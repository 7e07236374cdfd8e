"""`HostTrt`: simulates the part of TensorRT's API that the engine uses, with `HostDevice` and ONNX Runtime.

    trt = HostTrt(device, step_onnx, contract, "float32", decide=(decide_plan, decide_onnx))
    engine = open_trt_engine(trt, plan, contract, "float32", device, decide=decide_plan)

It simulates a missing library and hardware; it is not a mock of the project's code. An execution reads its inputs at
the bound addresses, runs the same step.onnx (or decide.onnx, for that plan) in ONNX Runtime, and writes its outputs to
their addresses. Everything that TensorRT documents as an error or as undefined is a `HostFault`: shapes outside the
active profile, a missing or unaligned address, outputs that overlap inputs, missing activation memory, a capture before
an execution with the same shapes, changes to a context whose recording is still launched.
"""

import enum
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from checkpoints import contract_of
from host_cuda import GARBAGE, HostDevice, HostFault

from dpad.export.engines.plan import profiles
from dpad.models.checkpoint.checkpoint import Checkpoint
from dpad.runtime.contract import StepContract, TensorSpec
from dpad.runtime.engines.bfloat16 import from_bits, to_bits
from dpad.runtime.engines.gpu.device import ALIGNMENT
from dpad.runtime.engines.gpu.engine import GpuEngine
from dpad.runtime.engines.tensorrt.engine import open_trt_engine

ACTIVATION_BYTES = 4096
Kind = enum.Enum("Kind", "INT64 FLOAT HALF BF16")
Mode = enum.Enum("Mode", "INPUT OUTPUT")
Strategy = enum.Enum("Strategy", "STATIC USER_MANAGED")
Validity = enum.Enum("Validity", "VALID SUBOPTIMAL INVALID")
GraphStrategy = enum.Enum("GraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
Specialization = enum.Enum("Specialization", "LAZY EAGER NONE")
Diagnostics = enum.IntEnum("Diagnostics", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4})
KINDS = {"int64": Kind.INT64, "float32": Kind.FLOAT, "float16": Kind.HALF, "bfloat16": Kind.BF16}


class Logger:
    """`trt.ILogger`."""

    ERROR = 1


class HostTrt:
    """Replaces the module `tensorrt` or, with `rtx`, `tensorrt_rtx`."""

    ILogger, DataType, TensorIOMode, ExecutionContextAllocationStrategy = Logger, Kind, Mode, Strategy

    def __init__(
        self,
        device: HostDevice,
        step: Path,
        contract: StepContract,
        dtype: str = "float32",
        *,
        rtx: bool = False,
        decide: tuple[Path, Path] | None = None,
    ) -> None:
        """`decide` is a plan, recognised by its bytes, and the ONNX file that it stands for."""
        self.__name__ = "tensorrt_rtx" if rtx else "tensorrt"
        self.device, self.contract, self.dtype, self.rtx = device, contract, dtype, rtx
        self.counts: Counter[str] = Counter()
        self.most_contexts = 99  # the memory holds so many
        self.stripped, self.takes_kernels = False, True
        self.missing: list[str] = []  # weights that are missing in a refit
        self.refitted_from: list[str] = []
        self.validity = (Validity.VALID, 0)
        self.kernels: list[bytes] = []  # data loaded into the kernel cache
        self.configs: list[Any] = []
        ranges = list(profiles(contract).values())
        self.program = Program(step, contract.inputs(dtype), contract.outputs(dtype), ranges)
        self.deciding: dict[bytes, Program] = {}
        if decide is not None:
            plan, onnx = decide
            specs = contract.decide_inputs(), contract.decide_outputs()
            self.deciding[plan.read_bytes()] = Program(onnx, *specs, ranges[:1])
        if rtx:
            self.CudaGraphStrategy, self.DynamicShapesKernelSpecializationStrategy = GraphStrategy, Specialization
            self.EngineValidity, self.EngineInvalidityDiagnostics = Validity, Diagnostics

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        """`trt.Runtime`."""
        runtime = SimpleNamespace(engine_host_code_allowed=False)
        self.runtime = runtime

        def deserialize(plan: Any) -> Any:
            if bytes(plan[:6]) == b"broken":
                logger.log(Logger.ERROR, "simulated: the plan has a bad magic number")
                return None
            return HostEngine(self, logger, self.deciding.get(bytes(plan), self.program))

        runtime.deserialize_cuda_engine = deserialize
        if self.rtx:
            runtime.get_engine_validity = lambda plan: self.validity
        return runtime

    def Refitter(self, engine: "HostEngine", logger: Any) -> Any:  # noqa: N802
        """`trt.Refitter`."""

        def refit() -> bool:
            engine.complete = not self.missing
            return engine.complete

        return SimpleNamespace(engine=engine, get_missing_weights=lambda: self.missing, refit_cuda_engine=refit)

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:  # noqa: N802
        """`trt.OnnxParserRefitter`."""

        def refit(path: str) -> bool:
            self.refitted_from.append(path)
            return Path(path).exists() and not self.missing

        return SimpleNamespace(refit_from_file=refit, num_errors=1, get_error=lambda i: "simulated parser error")


class Program:
    """The source of a plan: an ONNX file, its tensors, and the ranges of its axes in each profile."""

    def __init__(self, onnx: Path, inputs: list[TensorSpec], outputs: list[TensorSpec], ranges: list[Any]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs, self.ranges = inputs, outputs, ranges


class HostEngine:
    """`ICudaEngine` with the profiles that the builder sets."""

    device_memory_size_v2 = ACTIVATION_BYTES

    def __init__(self, trt: HostTrt, logger: Any, program: Program) -> None:
        self.trt, self.logger, self.session = trt, logger, program.session
        self.complete = not (trt.stripped and program is trt.program)
        self.inputs = {spec.name: spec for spec in program.inputs}
        self.outputs = {spec.name: spec for spec in program.outputs}
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)
        self.ranges, self.num_optimization_profiles = program.ranges, len(program.ranges)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Kind:
        return KINDS[(self.inputs | self.outputs)[name].dtype]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        sizes = [(a,) * 3 if isinstance(a, int) else self.ranges[profile][a] for a in self.inputs[name].axes]
        return [tuple(size[i] for size in sizes) for i in range(3)]

    def create_runtime_config(self) -> Any:
        """`IRuntimeConfig` of TensorRT-RTX."""
        config = SimpleNamespace(cuda_graph_strategy=GraphStrategy.DISABLED, strategy=Strategy.STATIC, cache=None)
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache) or self.trt.takes_kernels
        config.create_runtime_cache = lambda: SimpleNamespace(
            serialize=lambda: b"compiled kernels", deserialize=lambda blob: self.trt.kernels.append(blob) or True
        )
        self.trt.configs.append(config)
        return config

    def create_execution_context(self, strategy: Any = None, runtime_config: Any = None) -> "HostContext | None":
        """`IExecutionContext`; only contexts with user-managed memory are simulated."""
        if (runtime_config.strategy if runtime_config else strategy) is not Strategy.USER_MANAGED:
            raise HostFault("a context would allocate activation memory of its own")
        self.trt.counts["contexts"] += 1
        if self.trt.counts["contexts"] > self.trt.most_contexts:
            self.logger.log(Logger.ERROR, "simulated: no memory")
            return None
        return HostContext(self)


class HostContext:
    """`IExecutionContext`."""

    def __init__(self, engine: HostEngine) -> None:
        self.engine, self.device = engine, engine.trt.device
        self.profile: int | None = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)
        self.version = 0  # increases with every change
        self.settled: Any = None  # the shapes of the last enqueue outside a capture

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory, self.version = (address, size), self.version + 1

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile, self.version = profile, self.version + 1
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.profile is None:
            raise HostFault("a shape is set before the profile")
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        if len(shape) != len(low) or not all(a <= size <= b for a, size, b in zip(low, shape, high)):
            self.engine.logger.log(Logger.ERROR, f"simulated: {name} {shape} is outside {low} to {high}")
            return False
        self.shapes[name], self.version = shape, self.version + 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % ALIGNMENT:
            raise HostFault(f"the address of {name} is not aligned")
        self.addresses[name], self.version = address, self.version + 1
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """Check everything now, and queue the computation."""
        trt = self.engine.trt
        trt.counts["executions"] += 1
        if stream != self.device.stream or not self.engine.complete:
            raise HostFault("executed on another stream, or before the weights were there")
        if missing := (set(self.engine.names) - set(self.addresses)) | (set(self.engine.inputs) - set(self.shapes)):
            raise HostFault(f"no address or no shape for {sorted(missing)}")
        if self.memory[1] < ACTIVATION_BYTES:
            raise HostFault("activation memory was not set")
        shapes, addresses, version = dict(self.shapes), dict(self.addresses), self.version
        if self.device.recording is None:
            self.settled = shapes
        elif self.settled != shapes:
            raise HostFault("captured before the context ran once with these shapes")

        recorded = self.device.recording is not None

        def compute() -> None:
            if recorded and self.version != version:
                raise HostFault("a graph is launched after its context was changed")
            trt.counts["replays"] += recorded
            self._compute(shapes, addresses)

        self.device.queue(compute)
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        engine = self.engine
        sizes = {a: n for name, spec in engine.inputs.items() for a, n in zip(spec.axes, shapes[name])}
        for name, spec in engine.inputs.items():
            if any(isinstance(a, str) and sizes[a] != n for a, n in zip(spec.axes, shapes[name])):
                raise HostFault(f"{name} of shape {shapes[name]} does not fit the other inputs")
        shapes = shapes | {
            name: tuple(sizes[a] if isinstance(a, str) else a for a in spec.axes)
            for name, spec in engine.outputs.items()
        }
        spans = {name: (addresses[name], self._bytes(name, shapes[name])) for name in engine.names}
        spans["activation memory"] = self.memory
        for written in [*engine.outputs, "activation memory"]:
            for other in spans.keys() - {written}:
                (a, m), (b, n) = spans[written], spans[other]
                if a < b + n and b < a + m:
                    raise HostFault(f"{written} overlaps {other}")
        feed = {name: self._tensor(name, addresses[name], shapes[name]).copy() for name in engine.inputs}
        feed = {name: from_bits(a) if a.dtype == np.uint16 else a for name, a in feed.items()}
        self.device.view(*self.memory).fill(GARBAGE)
        for name, value in zip(engine.outputs, engine.session.run(list(engine.outputs), feed)):
            target = self._tensor(name, addresses[name], shapes[name])
            np.copyto(target, to_bits(value) if target.dtype == np.uint16 else value)

    def _dtype(self, name: str) -> Any:
        dtype = (self.engine.inputs | self.engine.outputs)[name].dtype
        return np.dtype("uint16" if dtype == "bfloat16" else dtype)  # a float32 step stands for a bfloat16 plan

    def _bytes(self, name: str, shape: tuple[int, ...]) -> int:
        return int(np.prod(shape)) * self._dtype(name).itemsize

    def _tensor(self, name: str, address: int, shape: tuple[int, ...]) -> Any:
        view = self.device.view(address, self._bytes(name, shape))
        return np.frombuffer(view, self._dtype(name)).reshape(shape) if view.size else np.empty(shape)


@contextmanager
def opened(
    directory: Path, rtx: bool = False, decides: bool = True, memory: int | None = None, **settings: Any
) -> Iterator[GpuEngine]:
    """The engine of a checkpoint on simulated hardware; at the end all memory must be free.

    `memory` is the size of the device's memory; `decides` says whether there is a decide plan.
    """
    contract = contract_of(Checkpoint.open(directory))
    device = HostDevice() if memory is None else HostDevice(memory)
    plan, decide = directory / "host.plan", directory / "decide.plan"
    plan.write_bytes(b"a plan of the simulation")
    decide.write_bytes(b"a plan that decides")
    trt = HostTrt(device, directory / "step.onnx", contract, rtx=rtx, decide=(decide, directory / "decide.onnx"))
    settings |= {"decide": decide} if decides else {}
    with open_trt_engine(trt, plan, contract, "float32", device, **settings) as engine:
        engine.simulation, engine.hardware = trt, device  # type: ignore[attr-defined]
        yield engine
    assert device.leaks() == []
