"""Checks the product's use of plugins against TensorRT's real Python API: `make test-trt-api`.

test_trt_plugin.py tests the plugins' launches, also with the real API.
"""

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import plugin_api
import pytest
import real_trt
from bundles import export, write_source
from onnx import helper
from plugin_host import ExprBuilder, Port, create, launch_of, outputs_of, remember_sizes
from pybind_signatures import bind
from real_trt import REAL_API, real_tensorrt

from dpad.export.engines.plugin_graph import write_plugin_step
from dpad.plugins import tiling, trt_face

pytestmark = REAL_API
CAPABILITY = "9.0"


@pytest.fixture(scope="module")
def trt(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The real module, with the project's plugins in its registry."""
    module = real_tensorrt(tmp_path_factory.mktemp("stubs"))
    remember_sizes()
    trt_face.register_plugins(module, CAPABILITY)
    return module


def rows(trt: ModuleType, dtype: Any) -> list[Port]:
    """The inputs of an `attend` with 2 sequences, 19 rows, 700 cached rows, 4 query heads and 2 key heads."""
    query, new, cache = [2, 19, 4, 64], [2, 19, 2, 64], [703, 2, 64]
    ports = [Port(query, [2, 3], dtype), Port(new, [2, 3], dtype), Port(new, [2, 3], dtype)]
    ports += [Port(cache, [1, 2], dtype)] * 2
    return [*ports, Port([2, 700], [], trt.int32), Port([2, 19], [], trt.int32)]


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if these tests are skipped without a reason."""
    assert real_trt.missing() == ""
    monkeypatch.setattr(real_trt.shutil, "which", lambda name: None)
    assert "C compiler" in real_trt.missing()
    monkeypatch.setattr(real_trt, "_LEAN", Path("nowhere"))
    assert "make test-trt-api" in real_trt.missing()


def test_the_registry_has_the_plugins(trt: ModuleType) -> None:
    """Fails if the registry does not find a plugin by name, version and namespace, as the parser does."""
    for name in ("attend", "attend_parts", "combine_parts"):
        creator = trt.get_plugin_registry().get_creator(name, trt_face.PLUGIN_VERSION, trt_face.NAMESPACE)
        [field] = creator.field_names
        assert (field.name, field.type) == ("numbers", trt.PluginFieldType.INT32)
    assert trt.get_plugin_registry().get_creator("attend", "2", trt_face.NAMESPACE) is None


def test_plugins_are_compiled_ahead_of_time(trt: ModuleType) -> None:
    """Fails if a plugin would call Python when the engine runs, or its integers are lost."""
    plugin = create(trt, "dpad::attend", [7, 0])
    assert isinstance(plugin, trt.IPluginV3QuickAOTBuild) and not isinstance(plugin, trt.IPluginV3QuickRuntime)
    assert plugin.attrs["numbers"].dtype == np.int32 and plugin.attrs["numbers"].tolist() == [7, 0]
    assert (plugin.plugin_name, plugin.plugin_namespace, plugin.plugin_version) == ("attend", "dpad", "1")
    other = create(trt, "dpad::attend", [8, 4])
    assert plugin.attrs["numbers"].tolist() == [7, 0] and other.attrs["numbers"].tolist() == [8, 4]
    assert plugin.clone().attrs["numbers"].tolist() == [7, 0]
    # An engine holds only what the plugin launches, since the interface has no fields to serialise.
    assert not hasattr(trt.IPluginV3QuickAOTBuild, "get_fields_to_serialize")


def test_outputs_are_described_without_sizes_and_with(trt: ModuleType) -> None:
    """Fails if a description of outputs reads a size that the builder does not know yet, or a shape is wrong."""
    for dtype in (trt.float16, trt.bfloat16):
        [out] = outputs_of(create(trt, "dpad::attend", [1, 0]), ExprBuilder(trt), rows(trt, dtype))
        assert out == Port([2, 19, 4, 64], [2, 3], dtype)
        parts = outputs_of(create(trt, "dpad::attend_parts", [1, 0, 8]), ExprBuilder(trt), rows(trt, dtype))
        assert parts == [Port([8 * 2 * 19 * 4, 64], [1], trt.float32), Port([8 * 2 * 19 * 4], [], trt.float32)]
        combine = create(trt, "dpad::combine_parts", [8])
        inputs = [*parts, rows(trt, dtype)[0]]
        assert outputs_of(combine, ExprBuilder(trt), inputs) == [Port([2, 19, 4, 64], [2, 3], dtype)]


def test_the_nodes_of_a_step_are_what_the_registry_has(trt: ModuleType, tmp_path: Path) -> None:
    """Fails if the parser would find no plugin for a node, or a node lacks an attribute of the plugin."""
    export(write_source(tmp_path / "source"), tmp_path / "out", dtypes=("float16",))
    model = onnx.load(str(write_plugin_step(tmp_path / "out/float16/step.onnx", 8)), load_external_data=False)
    made: dict[str, Port] = {}
    nodes = [node for node in model.graph.node if node.domain == "dpad"]
    assert {node.op_type for node in nodes} == {"attend_parts", "combine_parts"}
    for node in nodes:
        given = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        place = (node.op_type, given["plugin_version"].decode(), given["plugin_namespace"].decode())
        fields = {field.name for field in trt.get_plugin_registry().get_creator(*place).field_names}
        assert given.keys() - {"plugin_version", "plugin_namespace", "aot"} == fields and given["aot"] == 1
        plugin = create(trt, f"{place[2]}::{node.op_type}", given["numbers"])
        known = rows(trt, trt.float16)
        inputs = known if node.op_type == "attend_parts" else [*(made[name] for name in node.input[:2]), known[0]]
        assert len(inputs) == len(node.input)
        outputs = outputs_of(plugin, ExprBuilder(trt), inputs)
        made |= dict(zip(node.output, outputs, strict=True))
    assert [made[node.output[0]] for node in nodes if len(node.output) == 1] == [known[0]] * (len(nodes) // 2)


def formats(trt: ModuleType, name: str, numbers: list[int], ports: list[Port]) -> tuple[list[list[str]], list[int]]:
    """Types of all ports in each combination that a plugin supports, and its tactics for those of `ports`."""
    plugin = create(trt, name, numbers)
    every = [port.described(trt) for port in (*ports, *outputs_of(plugin, ExprBuilder(trt), ports))]
    offered = plugin.get_supported_format_combinations(every, len(ports))
    plugin.configure_plugin(every[: len(ports)], every[len(ports) :])
    names = [one.type.name for one in offered]
    return [names[at : at + len(every)] for at in range(0, len(names), len(every))], sorted(plugin.get_valid_tactics())


def test_formats_and_tactics(trt: ModuleType) -> None:
    """Fails if dtypes can be mixed, or a tactic without a tile is offered."""
    tactics = list(tiling.tactics(CAPABILITY))
    assert tactics == [1, 2, 3]
    halves = [[half] * 5 + ["INT32"] * 2 for half in ("HALF", "BF16")]
    half = trt.float16
    assert formats(trt, "dpad::attend", [1, 0], rows(trt, half)) == ([[*h, h[0]] for h in halves], tactics)
    assert formats(trt, "dpad::attend", [1, 4], rows(trt, half))[1] == [2, 3]  # with blocks the registers suffice
    parts = [[*h, "FLOAT", "FLOAT"] for h in halves]
    assert formats(trt, "dpad::attend_parts", [1, 0, 8], rows(trt, half)) == (parts, tactics)
    ports = [Port([1216, 64], [1], trt.float32), Port([1216], [], trt.float32), rows(trt, half)[0]]
    both = [["FLOAT", "FLOAT", name, name] for name in ("HALF", "BF16")]
    assert formats(trt, "dpad::combine_parts", [8], ports) == (both, [])


SIMULATED = ("ShapeExpr", "SymInt32", "SymIntExprs", "TensorDesc", "KernelLaunchParams", "AutoTuneCombination")
FUNCTIONS = ("register", "autotune", "aot_impl", "cdiv", "max", "min", "from_shape_expr")


def takes_no_more(simulated: Any, real: Any) -> None:
    """Raise `TypeError` if the simulation accepts a positional call that the real function does not."""
    parameters = inspect.signature(simulated).parameters.values()
    parameters = [one for one in parameters if one.kind is not one.KEYWORD_ONLY]  # only tests pass those
    needed = [one for one in parameters if one.default is one.empty]
    for count in range(len(needed), len(parameters) + 1):
        inspect.signature(real).bind(*range(count))


def test_the_simulation_takes_no_more_than_the_real_interface(trt: ModuleType) -> None:
    """Fails if a class, a function or an argument of the simulated `tensorrt.plugin` does not exist in the real one."""
    trtp = trt.plugin
    named = {name for name, kind in vars(plugin_api).items() if getattr(kind, "__module__", "") == "plugin_api"}
    named -= {"Plugin", "PluginApi", "simulated_tensorrt", "describe", "launch_of", "parameters_of"}
    assert named == {*SIMULATED, "PluginField", "PluginFieldType"}
    api = {name for name, value in vars(plugin_api.PluginApi).items() if callable(getattr(plugin_api.PluginApi, name))}
    assert {name for name in api if not name.startswith("_")} - {*SIMULATED} == {*FUNCTIONS}
    for name in SIMULATED:
        simulated, real = getattr(plugin_api, name), getattr(trtp, name)
        for member, value in vars(simulated).items():
            if inspect.isfunction(value) and (not member.startswith("_") or member in vars(real)):
                takes_no_more(value, getattr(real, member))  # also dunder methods that both define
            elif isinstance(value, classmethod):
                takes_no_more(getattr(simulated, member), getattr(real, member))
    for name in FUNCTIONS:
        takes_no_more(getattr(plugin_api.PluginApi(), name), getattr(trtp, name))
    pairs = (
        (plugin_api.TensorDesc((), "HALF"), trtp.TensorDesc()),
        (plugin_api.KernelLaunchParams(), trtp.KernelLaunchParams()),
    )
    for made, real in pairs:
        assert all(hasattr(real, attribute) for attribute in vars(made)), vars(made)
    simulated, _ = plugin_api.simulated_tensorrt()
    for name, value in vars(simulated).items():
        assert not isinstance(value, str) or name.startswith("__") or getattr(trt, name).name == value
    assert all(hasattr(trt.PluginFieldType, kind.name) for kind in plugin_api.PluginFieldType)
    field = "numbers", np.array([1, 2], dtype=np.int32), trt.PluginFieldType.INT32
    bind(trt.PluginField.__init__, *field[: len(inspect.signature(plugin_api.PluginField).parameters)])
    assert all(hasattr(trt.PluginField(*field), name) for name in vars(plugin_api.PluginField(*field)))
    with pytest.raises(TypeError):
        takes_no_more(lambda first, second, third: None, trtp.cdiv)


def register_wrong(trt: ModuleType, name: str, grid: Any, annotation: Any = None) -> None:
    """Register a plugin with one output like its input and a launch with `grid`."""
    trtp = trt.plugin

    def describe(query, numbers):  # type: ignore[no-untyped-def]
        return query.like()

    def launch(query, numbers, outputs, tactic):  # type: ignore[no-untyped-def]
        params = trtp.KernelLaunchParams()
        params.grid_x = grid(query)
        return "entry", ".version 8.0", params, trtp.SymIntExprs.from_tuple([trtp.SymInt32(1)])

    tensor = annotation or trtp.TensorDesc
    describe.__annotations__ = {"query": tensor, "numbers": np.ndarray[Any, np.dtype[np.int32]], "return": tensor}
    launch.__annotations__ = {"return": tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]}
    trtp.register(f"dpad::{name}")(describe)
    trtp.aot_impl(f"dpad::{name}")(launch)


def test_a_wrong_plugin_is_refused(trt: ModuleType) -> None:
    """Fails if these tests would accept a plugin that the builder refuses."""
    inputs = [Port([2, 3], [1], trt.float16)]
    register_wrong(trt, "right", lambda query: query.shape_expr[0])
    made = launch_of(trt, create(trt, "dpad::right", [1]), inputs, 0)
    assert (made["grid"], made["integers"], made["outputs"]) == ([2, 1, 1], [1], [([2, 3], "HALF")])
    register_wrong(trt, "numpy_grid", lambda query: np.int64(3))  # accepted silently, but then without any size
    with pytest.raises(AttributeError, match="value"):
        launch_of(trt, create(trt, "dpad::numpy_grid", [1]), inputs, 0)
    register_wrong(trt, "reads_a_size", lambda query: query.shape_expr[0].constant_value())
    with pytest.raises(RuntimeError, match="non-constant"):
        launch_of(trt, create(trt, "dpad::reads_a_size", [1]), inputs, 0)
    with pytest.raises(ValueError, match="already has a defintion for 'right'"):
        register_wrong(trt, "right", lambda query: 1)
    with pytest.raises((TypeError, ValueError)):
        register_wrong(trt, "text_types", lambda query: 1, annotation="TensorDesc")
    with pytest.raises(AssertionError, match="Unexpected attribute"):
        creator = trt.get_plugin_registry().get_creator("right", "1", "dpad")
        other = trt.PluginField("splits", np.array([1], dtype=np.int32), trt.PluginFieldType.INT32)
        creator.create_plugin("right", "dpad", trt.PluginFieldCollection([other]), trt.TensorRTPhase.BUILD)
