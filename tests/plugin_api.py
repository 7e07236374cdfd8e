"""Simulates the part of `tensorrt.plugin` that the plugins use, by its published rules, without TensorRT.

Symbolic sizes hold numbers here. As in TensorRT, only sizes fixed at build time may be read, and a symbol may not be
the right operand of arithmetic. Run as a program, it builds the launches of cases given as JSON, in a process where
Triton compiles. `plugin_host` does the same with the real `tensorrt.plugin`.
"""

import enum
import inspect
import json
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt


class ShapeExpr:
    def __init__(self, value: int, *, constant: bool = False) -> None:
        self._value, self._constant = value, constant

    def _with(self, other: Any, operation: Callable[[int, int], int]) -> "ShapeExpr":
        assert isinstance(other, (int, ShapeExpr)), other
        number = other._value if isinstance(other, ShapeExpr) else other
        return ShapeExpr(operation(self._value, number))

    def __add__(self, other: Any) -> "ShapeExpr":
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> "ShapeExpr":
        return self._with(other, lambda a, b: a - b)

    def __mul__(self, other: Any) -> "ShapeExpr":
        return self._with(other, lambda a, b: a * b)

    def __floordiv__(self, other: Any) -> "ShapeExpr":
        return self._with(other, lambda a, b: a // b)

    def constant_value(self) -> int:
        if not self._constant:
            raise RuntimeError("Not accessible for non-constant shape expressions.")
        return self._value


class SymInt32:
    def __init__(self, value: "int | ShapeExpr") -> None:
        self.value = value._value if isinstance(value, ShapeExpr) else value
        assert type(self.value) is int and -(2**31) <= self.value < 2**31, value


class SymIntExprs(list[SymInt32]):
    @classmethod
    def from_tuple(cls, values: Any) -> "SymIntExprs":
        return cls(values)


class TensorDesc:
    def __init__(self, shape: tuple[Any, ...], dtype: str) -> None:
        self.shape_expr, self.dtype = shape, dtype

    def like(self) -> "TensorDesc":
        return TensorDesc(self.shape_expr, self.dtype)


class KernelLaunchParams:
    def __init__(self) -> None:
        self.grid_x = self.grid_y = self.grid_z = self.block_x = self.block_y = self.block_z = self.shared_mem = 1


class AutoTuneCombination:
    def __init__(self, io_types: str, layouts: str, tactics: "list[int] | None" = None) -> None:
        assert layouts == "LINEAR"
        assert all(tactic > 0 for tactic in tactics or [])
        self.types, self.tactics = [part.strip() for part in io_types.split(",")], tactics


PluginFieldType = enum.Enum("PluginFieldType", "INT32")


class PluginField:
    def __init__(self, name: str, data: Any, kind: PluginFieldType) -> None:
        self.name, self.data, self.type = name, data, kind


class Plugin:
    describe: Any
    tune: Any
    launch: Any

    def __init__(self, inputs: list[str], outputs: int) -> None:
        self.inputs, self.output_count = inputs, outputs


class PluginApi(ModuleType):
    """The decorators, with TensorRT's checks."""

    TensorDesc, KernelLaunchParams, SymInt32, SymIntExprs = TensorDesc, KernelLaunchParams, SymInt32, SymIntExprs
    AutoTuneCombination = AutoTuneCombination

    def __init__(self) -> None:
        super().__init__("simulated_tensorrt.plugin")
        self.plugins: dict[str, Plugin] = {}

    @staticmethod
    def cdiv(first: Any, second: Any) -> ShapeExpr:
        assert isinstance(first, ShapeExpr), "the first must be symbolic"
        return first._with(second, lambda a, b: -(-a // b))

    @staticmethod
    def max(first: Any, second: Any) -> ShapeExpr:
        assert isinstance(first, ShapeExpr), "the first must be symbolic"
        return first._with(second, max)

    @staticmethod
    def min(first: Any, second: Any) -> ShapeExpr:
        assert isinstance(first, ShapeExpr), "the first must be symbolic"
        return first._with(second, min)

    @staticmethod
    def from_shape_expr(shape: tuple[Any, ...], dtype: str) -> TensorDesc:
        return TensorDesc(tuple(s if isinstance(s, ShapeExpr) else ShapeExpr(s, constant=True) for s in shape), dtype)

    def register(self, name: str) -> Callable[[Any], Any]:
        def accept(function: Any) -> Any:
            signature = inspect.signature(function)
            *tensors, numbers = signature.parameters.values()
            assert all(p.default is p.empty for p in signature.parameters.values())
            assert all(p.annotation is TensorDesc for p in tensors)
            assert numbers.annotation == npt.NDArray[np.int32]
            returned = signature.return_annotation
            count = 1 if returned is TensorDesc else len(typing.get_args(returned))
            assert name not in self.plugins
            self.plugins[name] = Plugin([p.name for p in tensors], count)
            self.plugins[name].describe = function
            return function

        return accept

    def autotune(self, name: str) -> Callable[[Any], Any]:
        def accept(function: Any) -> Any:
            names = list(inspect.signature(function).parameters)
            plugin = self.plugins[name]
            assert names in ([*plugin.inputs, "outputs"], [*plugin.inputs, "numbers", "outputs"])
            plugin.tune = function
            return function

        return accept

    def aot_impl(self, name: str) -> Callable[[Any], Any]:
        def accept(function: Any) -> Any:
            signature = inspect.signature(function)
            plugin = self.plugins[name]
            assert list(signature.parameters) == [*plugin.inputs, "numbers", "outputs", "tactic"]
            *texts, launch, integers = typing.get_args(signature.return_annotation)
            assert [set(typing.get_args(text)) for text in texts] == [{str, bytes}] * 2
            assert issubclass(launch, KernelLaunchParams) and issubclass(integers, SymIntExprs)
            plugin.launch = function
            return function

        return accept


def simulated_tensorrt() -> tuple[ModuleType, PluginApi]:
    """A simulated module for `register_plugins`, and its plugin module."""
    trt, api = ModuleType("simulated_tensorrt"), PluginApi()
    trt.PluginField, trt.PluginFieldType = PluginField, PluginFieldType  # type: ignore[attr-defined]
    trt.float16, trt.bfloat16, trt.float32, trt.int32 = "HALF", "BF16", "FLOAT", "INT32"  # type: ignore[attr-defined]
    sys.modules["simulated_tensorrt"], sys.modules["simulated_tensorrt.plugin"] = trt, api
    return trt, api


def describe(shapes: list[list[int]], fixed: list[list[int]], dtypes: list[str]) -> list[TensorDesc]:
    """Descriptions of inputs with these shapes; the axes in `fixed` are known when the engine is built."""
    return [
        TensorDesc(tuple(ShapeExpr(size, constant=axis in axes) for axis, size in enumerate(shape)), dtype)
        for shape, axes, dtype in zip(shapes, fixed, dtypes)
    ]


def launch_of(plugin: Plugin, inputs: list[TensorDesc], numbers: Any, tactic: int) -> dict[str, Any]:
    """The launch that TensorRT would make, as plain values."""
    outputs = plugin.describe(*inputs, numbers=numbers)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == plugin.output_count
    entry, ptx, launch, integers = plugin.launch(*inputs, numbers, outputs, tactic)
    grid = [SymInt32(size).value for size in (launch.grid_x, launch.grid_y, launch.grid_z)]
    return {
        "entry": entry,
        "ptx": ptx,
        "parameters": parameters_of(ptx),
        "grid": grid,
        "block": [launch.block_x, launch.block_y, launch.block_z],
        "shared": launch.shared_mem,
        "integers": [integer.value for integer in integers],
        "outputs": [([size._value for size in output.shape_expr], output.dtype) for output in outputs],
    }


def parameters_of(ptx: str) -> list[str]:
    """The types of a kernel's parameters, in order."""
    return ["int32" if ".u32" in line else "pointer" for line in ptx.splitlines() if ".param ." in line]


if __name__ == "__main__":
    from dpad.plugins.trt_face import register_plugins

    module, plugin_api = simulated_tensorrt()
    register_plugins(module, sys.argv[1])
    launches = []
    for case in json.loads(sys.stdin.read()):
        tensors = describe(case["shapes"], case["fixed"], case["dtypes"])
        values = np.array(case["numbers"], dtype=np.int32)
        launches.append(launch_of(plugin_api.plugins[case["plugin"]], tensors, values, case["tactic"]))
    Path(sys.argv[2]).write_text(json.dumps(launches))
