"""Makes the calls of TensorRT's builder to a plugin, with the real registry, creator and `tensorrt.plugin`.

    plugin = create(trt, "dpad::attend", [scale_bits, 0])
    launch = launch_of(trt, plugin, [Port([2, 19, 2, 64], [2, 3], trt.float16), ...], tactic=1)

The calls and their order are those of the real builder: output types, output shapes, format combinations,
configuration, tactics, a clone, launch, kernel. Only the builder's symbolic sizes are simulated, since they belong to
the missing library: a `Number` is a `trt.IDimensionExpr` that also holds its value. Run as a program, it builds the
launches of cases given as JSON, like `plugin_api`.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from plugin_api import parameters_of
from real_trt import real_tensorrt

from dpad.plugins.trt_face import PLUGIN_VERSION, register_plugins


def number_type(trt: ModuleType) -> type:
    """The class of the builder's symbolic sizes; a size is `constant` if it is known when the engine is built."""

    class Number(trt.IDimensionExpr):  # type: ignore[misc]
        value: int
        constant: bool

        @classmethod
        def of(cls, value: int, constant: bool) -> "Number":
            made = cls.__new__(cls)  # the class has no constructor, since only the builder makes objects of it
            made.value, made.constant = value, constant
            return made

        def is_constant(self) -> bool:
            return self.constant

        def get_constant_value(self) -> int:
            return self.value if self.constant else -(2**63)

        def is_size_tensor(self) -> bool:
            return False

    return Number


class ExprBuilder:
    """`trt.IExprBuilder`: accepts only sizes that it made, and computes with them."""

    def __init__(self, trt: ModuleType) -> None:
        self.number, kinds = number_type(trt), trt.DimensionOperation
        self.operations = {
            kinds.SUM: lambda a, b: a + b,
            kinds.PROD: lambda a, b: a * b,
            kinds.MAX: max,
            kinds.MIN: min,
            kinds.SUB: lambda a, b: a - b,
            kinds.EQUAL: lambda a, b: int(a == b),
            kinds.LESS: lambda a, b: int(a < b),
            kinds.FLOOR_DIV: lambda a, b: a // b,
            kinds.CEIL_DIV: lambda a, b: -(-a // b),
        }

    def constant(self, value: int) -> Any:
        return self.number.of(value, True)

    def operation(self, kind: Any, first: Any, second: Any) -> Any:
        for one in (first, second):
            if not isinstance(one, self.number):
                raise TypeError(f"{one!r} is no size of the builder")
        value = self.operations[kind](first.value, second.value)
        return self.number.of(value, first.constant and second.constant)


class Launch:
    """`trt.KernelLaunchParams` and `trt.ISymExprs`, which the builder makes; they take 32-bit `trt.ISymExpr`s."""

    def __init__(self, trt: ModuleType) -> None:
        self.__dict__.update(trt=trt, values={})

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "nbSymExprs":
            self.values[name] = value
        elif name in vars(self.trt.KernelLaunchParams):
            self[name] = value
        else:
            raise AttributeError(f"KernelLaunchParams and ISymExprs have no {name}")

    def __setitem__(self, place: Any, value: Any) -> None:
        if not isinstance(value, self.trt.ISymExpr):
            raise TypeError(f"{place}: {value!r} is no trt.ISymExpr")
        number = value.number.value
        if not -(2**31) <= number < 2**31:
            raise OverflowError(f"{place}: {number} has more than 32 bits")
        self.values[place] = number


def create(trt: ModuleType, plugin: str, numbers: Any) -> Any:
    """Create a plugin as the ONNX parser does for a node with `aot=1`: by the registry, from a field of int32."""
    namespace, name = plugin.split("::")
    creator = trt.get_plugin_registry().get_creator(name, PLUGIN_VERSION, namespace)
    values = trt.PluginField("numbers", np.array(numbers, dtype=np.int32), trt.PluginFieldType.INT32)
    fields, phase = trt.PluginFieldCollection([values]), trt.TensorRTPhase.BUILD
    return creator.create_plugin(name, namespace, fields, phase, trt.QuickPluginCreationRequest.STRICT_AOT)


@dataclass(frozen=True)
class Port:
    """A tensor of a plugin: its shape, the axes with a size known when the engine is built, and its type."""

    shape: list[int]
    fixed: list[int]
    dtype: Any

    def described(self, trt: ModuleType) -> Any:
        """`trt.DynamicPluginTensorDesc`."""
        plain, dynamic = trt.PluginTensorDesc(), trt.DynamicPluginTensorDesc()
        plain.dims = trt.Dims([size if axis in self.fixed else -1 for axis, size in enumerate(self.shape)])
        plain.type, plain.format, plain.scale = self.dtype, trt.TensorFormat.LINEAR, 1.0
        dynamic.desc, dynamic.min, dynamic.opt, dynamic.max = plain, *[trt.Dims(self.shape)] * 3
        return dynamic


def outputs_of(plugin: Any, builder: ExprBuilder, inputs: list[Port]) -> list[Port]:
    """The first calls of the builder: types and shapes of the outputs."""
    types = plugin.get_output_data_types([port.dtype for port in inputs], [len(port.shape) for port in inputs])
    sizes = [[builder.number.of(n, axis in port.fixed) for axis, n in enumerate(port.shape)] for port in inputs]
    shapes = plugin.get_output_shapes(sizes, [], builder)
    assert len(types) == len(shapes) == plugin.get_num_outputs()
    made = [[size._expr for size in described.shape_expr] for described in plugin.output_descs]
    fixed = [[axis for axis, size in enumerate(shape) if size.constant] for shape in made]
    return [Port([size.value for size in shape], axes, dtype) for shape, axes, dtype in zip(made, fixed, types)]


def launch_of(trt: ModuleType, plugin: Any, inputs: list[Port], tactic: int) -> dict[str, Any]:
    """The launch that TensorRT would make, as plain values; raises if the builder would refuse."""
    builder, launch, integers = ExprBuilder(trt), Launch(trt), Launch(trt)
    outputs = outputs_of(plugin, builder, inputs)
    ports = [port.described(trt) for port in (*inputs, *outputs)]
    offered = plugin.get_supported_format_combinations(ports, len(inputs))
    choices = [offered[start : start + len(ports)] for start in range(0, len(offered), len(ports))]
    wanted = [port.desc.type for port in ports]
    assert wanted in [[one.type for one in choice] for choice in choices], (wanted, choices)
    assert all(one.format == trt.TensorFormat.LINEAR for choice in choices for one in choice)
    plugin.configure_plugin(ports[: len(inputs)], ports[len(inputs) :])
    assert tactic in (plugin.get_valid_tactics() or [0])
    plugin.set_tactic(tactic)
    plugin = plugin.clone()
    plugin.get_launch_params([], ports, len(inputs), launch, integers, builder)
    described = [port.desc for port in ports]
    entry, ptx = plugin.get_kernel(described[: len(inputs)], described[len(inputs) :])
    assert [*range(integers.values.pop("nbSymExprs"))] == [*integers.values]
    size = launch.values
    return {
        "entry": entry,
        "ptx": ptx.decode(),
        "parameters": parameters_of(ptx.decode()),
        "grid": [size["grid_x"], size["grid_y"], size["grid_z"]],
        "block": [size["block_x"], size["block_y"], size["block_z"]],
        "shared": size["shared_mem"],
        "integers": list(integers.values.values()),
        "outputs": [(port.shape, port.dtype.name) for port in outputs],
    }


def remember_sizes() -> None:
    """Let NVIDIA's subclass of `trt.ISymExpr` expose its size, which otherwise only the builder can read."""
    tensors = import_module("tensorrt_bindings.plugin._tensor")

    class Remembering(tensors.SymExprImpl):  # type: ignore[name-defined,misc]
        def __init__(self, expression: Any) -> None:
            super().__init__(expression)
            self.number = expression._expr

    tensors.SymExprImpl = Remembering


def main(capability: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trt = real_tensorrt(Path(folder))
    remember_sizes()
    register_plugins(trt, capability)
    launches = []
    for case in json.loads(sys.stdin.read()):
        kinds = [getattr(trt.DataType, name) for name in case["dtypes"]]
        ports = [Port(*port) for port in zip(case["shapes"], case["fixed"], kinds)]
        launches.append(launch_of(trt, create(trt, case["plugin"], case["numbers"]), ports, case["tactic"]))
    Path(sys.argv[2]).write_text(json.dumps(launches))


if __name__ == "__main__":
    main(sys.argv[1])
