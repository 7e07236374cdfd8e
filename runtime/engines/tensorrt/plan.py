"""`TrtPlan` opens a compiled plan, checks it, refits its weights if needed, and creates execution contexts.

    plan = TrtPlan(trt, path, contract.inputs("float16"), contract.outputs("float16"), device, profiles=2)
    plan.limits[1]["Q"]              # (smallest, largest) in the second profile
    context = plan.new_context(1)

The library (`tensorrt`, `tensorrt_lean` or `tensorrt_rtx`) is an argument. Where the libraries differ, the code tests
whether the module has the attribute in question. Polygraphy's `TrtRunner` is made for checks, not for serving, so the
runtime does not use it. A plan is executable code: callers must have compared its hash with the manifest
(`Bundle.open`, `require_match`).
"""

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dpad.runtime.contract import TensorSpec
from dpad.runtime.engines import user_cache
from dpad.runtime.engines.capability import INSTEAD
from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.program import Limits
from dpad.runtime.engines.gpu.step_shape import StepShape
from dpad.runtime.engines.tensorrt.log import make_logger
from dpad.runtime.errors import EngineError, EngineMismatch


class TrtPlan:
    """The deserialised engine and the memory that all of its contexts share."""

    def __init__(
        self,
        trt: Any,
        path: Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        device: Device,
        *,
        profiles: int = 1,
        step_onnx: Path | None = None,
        host_code: bool = False,
        kernel_cache: str | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        """Open `path`.

        Args:
            trt: the module `tensorrt`, `tensorrt_lean` or `tensorrt_rtx`.
            path: the plan.
            inputs, outputs, profiles: the tensors and the number of profiles that the plan must have.
            device: the device that runs the plan; must be current.
            step_onnx: the ONNX file whose weights refit a weight-stripped plan.
            host_code: allow the plan to contain host code. Version-compatible plans of TensorRT contain it, a runtime
                of their own, unless they are lean; no others do.
            kernel_cache: name of the file in the user's cache folder for kernels that TensorRT-RTX compiles here.
            cuda_graphs: let TensorRT-RTX record CUDA graphs.

        Raises:
            EngineMismatch: TensorRT-RTX reports that the plan cannot run here.
            EngineError: any other failure, with the library's own words.
        """
        self.logger = make_logger(trt)
        self._trt, self._device, self._path = trt, device, path
        self._memory = 0
        self.inputs, self.outputs = inputs, outputs
        self._kernel_file = kernel_cache
        self._runtime: Any = None
        self._kernels: Any = None
        self._config: Any = None
        self._engine = self._deserialise(host_code)
        if step_onnx is not None:
            self._refit(step_onnx)
        self._check_signature(profiles)
        self.limits = [self._limits(profile) for profile in range(profiles)]
        self._config = self._runtime_config(cuda_graphs)
        self._memory_size = int(self._engine.device_memory_size_v2)
        self._memory = device.alloc(max(self._memory_size, 1))

    @property
    def captures_itself(self) -> bool:
        """Whether the library itself records CUDA graphs (TensorRT-RTX), so that the engine must not."""
        return bool(self._trt.__name__ == "tensorrt_rtx" and hasattr(self._trt, "CudaGraphStrategy"))

    def new_context(self, profile: int) -> Any:
        """An execution context for `profile`. All contexts share one block of memory, so only one may run at a time."""
        context = self._create_context()
        if context is None:
            raise self.error("gives no execution context")
        if not context.set_optimization_profile_async(profile, self._device.stream):
            raise self.error(f"cannot use profile {profile}")
        context.set_device_memory(self._memory, self._memory_size)
        return context

    def bind(self, context: Any, shape: StepShape, addresses: Mapping[str, int]) -> None:
        """Set the shape and the address of every tensor of a step in a context."""
        for spec in self.inputs:
            if not context.set_input_shape(spec.name, shape.of(spec.axes)):
                raise self.error(f"refuses {spec.name} of shape {shape.of(spec.axes)}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self.error(f"refuses the address of {name}")

    def keep_kernels(self) -> None:
        """Save the kernels that TensorRT-RTX has compiled here; without them the next start compiles again."""
        if self._kernels is not None and self._kernel_file is not None:
            with suppress(Exception):  # a failure costs only that the next start compiles again
                user_cache.write(self._kernel_file, bytes(self._kernels.serialize()))

    def close(self) -> None:
        """Save compiled kernels and free everything; contexts must be gone. Safe to call twice."""
        self.keep_kernels()
        self._config = self._kernels = self._engine = self._runtime = None
        if self._memory:
            self._device.free(self._memory)
            self._memory = 0

    def _deserialise(self, host_code: bool) -> Any:
        try:
            with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
                self._runtime = self._start()
                if host_code:
                    self._runtime.engine_host_code_allowed = True
                self._check_validity(plan)
                engine = self._runtime.deserialize_cuda_engine(plan)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise self.error(f"cannot be opened ({error})") from error
        if engine is None:
            raise self.error("cannot be deserialised")
        return engine

    def _start(self) -> Any:
        """Start the library's runtime; if it fails, as with an old driver, the `EngineError` has the library's words.

        After a failure the bindings still return an object, which is empty: using or freeing it crashes the process.
        """
        runtime = self._trt.Runtime(self.logger)
        if self.logger.problems:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(runtime))  # so that it is never freed
            raise self.error("cannot be opened")
        return runtime

    def _check_validity(self, plan: mmap.mmap) -> None:
        """Ask TensorRT-RTX, before deserialising, whether the plan fits this machine; TensorRT cannot tell."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        validity, bits = self._runtime.get_engine_validity(plan)
        if validity != self._trt.EngineValidity.INVALID:
            return
        kinds = self._trt.EngineInvalidityDiagnostics
        names = [name for name in dir(kinds) if name.isupper() and int(getattr(kinds, name)) & int(bits)]
        way = f"\n{INSTEAD}" if "UNSUPPORTED_CC" in names else ""
        told = f"{', '.join(names) or 'no reason given'}): {self.logger.words()}{way}"
        raise EngineMismatch(f"{self._path} cannot run on this machine ({told}")

    def _refit(self, step_onnx: Path) -> None:
        """Put the weights of `step_onnx` into a plan that was built without them."""
        try:
            refitter = self._trt.Refitter(self._engine, self.logger)
            parser = self._trt.OnnxParserRefitter(refitter, self.logger)
        except TypeError as error:  # the bindings raise it for a null pointer
            raise self.error(f"cannot be refitted ({error})") from error
        done = parser.refit_from_file(str(step_onnx))
        if missing := refitter.get_missing_weights():
            raise self.error(
                f"lacks {len(missing)} weights after a refit from {step_onnx} (first {sorted(missing)[0]!r})"
            )
        if not done:
            problems = [str(parser.get_error(i)) for i in range(parser.num_errors)]
            raise self.error(f"cannot be refitted from {step_onnx}: {'; '.join(problems)}")
        if not refitter.refit_cuda_engine():
            raise self.error(f"refused the weights of {step_onnx}")

    def _check_signature(self, profiles: int) -> None:
        engine, kinds, modes = self._engine, self._trt.DataType, self._trt.TensorIOMode
        types = {"int64": kinds.INT64, "float32": kinds.FLOAT, "float16": kinds.HALF, "bfloat16": kinds.BF16}
        sides = ((modes.INPUT, self.inputs), (modes.OUTPUT, self.outputs))
        want = {spec.name: (mode, types[spec.dtype]) for mode, specs in sides for spec in specs}
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        have = {name: (engine.get_tensor_mode(name), engine.get_tensor_dtype(name)) for name in names}
        for spec in self.inputs:
            fits = have.get(spec.name) == want[spec.name]
            sizes = engine.get_tensor_profile_shape(spec.name, 0)[2] if fits else ()
            if any(isinstance(axis, int) and axis != size for axis, size in zip(spec.axes, sizes)):
                have.pop(spec.name)
        if wrong := sorted(name for name in want.keys() | have.keys() if want.get(name) != have.get(name)):
            raise EngineError(f"{self._path}: tensor {wrong[0]!r} does not fit the contract; export the bundle again")
        if (found := engine.num_optimization_profiles) != profiles:
            raise EngineError(f"{self._path} has {found} profiles instead of {profiles}; export the bundle again")

    def _limits(self, profile: int) -> Limits:
        limits: dict[str, tuple[int, int]] = {}
        for spec in self.inputs:
            low, _, high = self._engine.get_tensor_profile_shape(spec.name, profile)
            limits |= {axis: (a, b) for axis, a, b in zip(spec.axes, low, high) if isinstance(axis, str)}
        return limits

    def _runtime_config(self, cuda_graphs: bool) -> Any:
        """The runtime configuration of TensorRT-RTX: its own CUDA graphs, and a cache of compiled kernels.

        With `EAGER` it compiles a shape's kernels before the shape first runs. By default it would run generic kernels
        first and replace them later, so that the same request could round differently the next time, and a seed would
        not determine the text.
        """
        if not self.captures_itself:
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        strategies = self._trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if cuda_graphs else strategies.DISABLED
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if self._kernel_file is not None:
            kernels = config.create_runtime_cache()
            if saved := user_cache.read(self._kernel_file):
                kernels.deserialize(saved)  # returns False for a cache of another machine, which is ignored
            if config.set_runtime_cache(kernels):  # if not, the cache stays empty, and saving it would erase the file
                self._kernels = kernels
        return config

    def _create_context(self) -> Any:
        if self._config is not None:
            return self._engine.create_execution_context(runtime_config=self._config)
        return self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def error(self, what: str) -> EngineError:
        """An `EngineError` that says `what` went wrong with the plan, in the library's own words."""
        return EngineError(f"{self._path} {what}: {self.logger.words()}")
