"""The TensorRT plugins: their registration, and that their launches compute the op.

TensorRT's builder cannot be installed where these tests run. Triton's interpreter executes the launch that a plugin
returns (grid, integers, order of arguments). The launch comes from a simulation of the plugin interface with its
published rules, and from the real interface with the registry and NVIDIA's own Python (`make test-trt-api`). On a GPU
`make gpu-check` launches the same PTX.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import plugin_api
import pytest
import tensorrt_rtx
import torch
from block_reference import LENGTH
from bundles import export, write_source
from checkpoints import FAMILIES
from interpreter import DEVICE, GPU
from onnx import helper
from real_trt import REAL_API
from test_build import as_tensorrt, no_ops
from test_kernel import assert_close, random_inputs

from dpad.export.engines import recipe as engines
from dpad.export.engines.plan import build_plan
from dpad.export.engines.plugin_graph import FILE_NAME, write_plugin_step
from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.plugins import onnx_face, tiling, triton_kernel, trt_face
from dpad.plugins.checks import check_kernel
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.errors import AttentionError, EngineBuildError, ExportError, KernelCompileError

CAPABILITY = "9.0"
ROWS = [[2, 3]] * 3 + [[1, 2]] * 2 + [[], []]  # fixed axes: heads and head size


Launches = Callable[..., list[dict[str, Any]]]  # (cases, compute capability) -> launches


@pytest.fixture(params=["simulated", pytest.param("real", marks=REAL_API)])
def launches(request: pytest.FixtureRequest, tmp_path: Path) -> Launches:
    """A function that returns the plugins' launches, from a process in which Triton compiles."""

    def launch(cases: list[dict[str, Any]], capability: str = CAPABILITY) -> list[dict[str, Any]]:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        program = {"simulated": "plugin_api.py", "real": "plugin_host.py"}[request.param]
        command = [sys.executable, str(Path(__file__).with_name(program)), capability, str(tmp_path / "launches.json")]
        ran = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, env=environment)
        assert ran.returncode == 0, ran.stderr
        return json.loads((tmp_path / "launches.json").read_text())

    return launch


def case(plugin: str, inputs: list[torch.Tensor], numbers: list[int], tactic: int = 1) -> dict[str, Any]:
    names = {torch.float16: "HALF", torch.bfloat16: "BF16", torch.float32: "FLOAT", torch.int32: "INT32"}
    fixed = ROWS if len(inputs) == 7 else [[1], [], [2, 3]]
    return {
        "plugin": plugin,
        "shapes": [list(tensor.shape) for tensor in inputs],
        "fixed": fixed,
        "dtypes": [names[tensor.dtype] for tensor in inputs],
        "numbers": numbers,
        "tactic": tactic,
    }


def outputs_of(launch: dict[str, Any]) -> list[torch.Tensor]:
    """Tensors of NaN with the shapes and dtypes that the plugin declares for its outputs."""
    dtypes = {"HALF": torch.float16, "BF16": torch.bfloat16, "FLOAT": torch.float32}
    return [torch.full(shape, float("nan"), dtype=dtypes[dtype], device=DEVICE) for shape, dtype in launch["outputs"]]


def execute(launch: dict[str, Any], inputs: list[torch.Tensor], constants: dict[str, Any]) -> list[torch.Tensor]:
    """Run a launch with TensorRT's arguments: inputs, integers, outputs."""
    assert f".visible .entry {launch['entry']}(" in launch["ptx"]
    name = launch["entry"].split("_")[0]
    kernel = getattr(triton_kernel, name)
    outputs = outputs_of(launch)
    spare = [None] if name == "attend" and len(outputs) == 1 else []
    passed = ["pointer"] * len(inputs) + ["int32"] * len(launch["integers"]) + ["pointer"] * len(outputs)
    assert launch["parameters"] == passed
    kernel[tuple(launch["grid"])](*inputs, *launch["integers"], *outputs, *spare, **constants)
    return outputs


def plugin_inputs(seed: int, dtype: torch.dtype, size: int) -> list[torch.Tensor]:
    inputs = random_inputs(seed, dtype, 2, 19, 700, 2, 2, size)
    return [*inputs[:5], inputs[5].int(), inputs[6].int()]


@pytest.mark.parametrize(("dtype", "block"), [(torch.float16, 0), (torch.bfloat16, 0), (torch.float16, 4)])
def test_one_plugin_computes_the_op(launches: Launches, dtype: torch.dtype, block: int) -> None:
    """Fails if grid, integers or their order are wrong for the kernel, with any tactic."""
    inputs = plugin_inputs(1, dtype, 64)
    tiles = tiling.tactics(CAPABILITY, block > 0)
    made = launches([case("dpad::attend", inputs, [tiling.scale_bits(0.125), block], tactic) for tactic in tiles])
    assert len(tiles) == 3 - (block > 0) == len({launch["entry"] for launch in made})
    assert min(launch["shared"] for launch in made) <= 48 << 10  # available without an attribute
    for tile, launch in zip(tiles.values(), made):
        assert launch["block"] == [tile.warps * 32, 1, 1]
        (out,) = execute(launch, inputs, tiling.attend_constants(64, tile, False, block > 0))
        assert out.shape == inputs[0].shape
        assert_close(out, [*inputs[:5], inputs[5].long(), inputs[6].long()], 0.125, block)


# Compute capability, dtype, shape, blocks, requested parts, and parts that fill the GPU.
PARTS = {
    "two": ("9.0", torch.float16, (2, 19, 700, 2, 2, 96), 4, 2, 2),
    "four": ("9.0", torch.bfloat16, (2, 19, 700, 2, 2, 96), 0, 4, 4),
    "fewer": ("8.6", torch.float16, (1, 48, 300, 2, 4, 64), 0, 16, 14),
}


@pytest.mark.parametrize("name", ["two", "four", pytest.param("fewer", marks=REAL_API)])  # fills a whole GPU
def test_two_plugins_compute_the_op_in_parts(launches: Launches, name: str) -> None:
    """Fails if the combined parts differ from the op, or more parts are written or allocated than the shape needs."""
    capability, dtype, (batch, rows, *others), block, splits, needed = PARTS[name]
    _, (tactic, tile), *_ = tiling.tactics(capability, block > 0).items()
    inputs = random_inputs(2, dtype, batch, rows, *others)
    inputs = [*inputs[:5], inputs[5].int(), inputs[6].int()]
    query, size = inputs[0], inputs[0].shape[3]
    numbers = [tiling.scale_bits(0.1), block, splits]
    [first] = launches([case("dpad::attend_parts", inputs, numbers, tactic)], capability)
    partial, log_weight = execute(first, inputs, tiling.attend_constants(size, tile, True, block > 0))
    assert len(partial) == len(log_weight) and partial.shape[1] == size
    count = query.numel() // size
    assert needed * count <= len(partial) <= splits * count
    parts = [partial, log_weight, query]
    [second] = launches([case("dpad::combine_parts", parts, [splits], tactic=0)], capability)
    assert first["integers"][-2] == second["integers"][-1] == needed
    (out,) = execute(second, parts, tiling.combine_constants(size, splits))
    assert out.dtype == dtype and out.shape == query.shape
    assert_close(out, [*inputs[:5], inputs[5].long(), inputs[6].long()], 0.1, block)


def test_formats_and_tactics() -> None:
    """Fails if a plugin offers a dtype or tactic without a kernel, or registers with a version that loses integers."""
    trt, api = plugin_api.simulated_tensorrt()
    trt_face._registered.discard(trt.__name__)
    trt.__version__, good = "10.13", trt.PluginField
    trt.PluginField = lambda name, data, kind: good(name, data[:1].repeat(len(data)), kind)  # before 10.16, numpy 2
    with pytest.raises(
        KernelCompileError, match=r"10\.13 reads a plugin's numbers wrongly with numpy .*10\.16 or later"
    ):
        trt_face.register_plugins(trt, "8.6")
    trt.PluginField = good
    trt_face.register_plugins(trt, "8.6")
    trt_face.register_plugins(trt, CAPABILITY)
    with pytest.raises(KernelCompileError, match=r"7\.5 is not one of 8\.0, .*native"):
        trt_face.register_plugins(trt, "7.5")
    assert set(api.plugins) == {"dpad::attend", "dpad::attend_parts", "dpad::combine_parts"}
    for name, plugin in api.plugins.items():
        numbers = [np.array([1, 0, 2], dtype=np.int32)] if "attend" in name else []
        (choice,) = plugin.tune(*[None] * len(plugin.inputs), *numbers, None)
        assert len(choice.types) == len(plugin.inputs) + plugin.output_count
        if "attend" in name:
            assert choice.tactics == [1, 2, 3]
            assert choice.types[:7] == ["FP16|BF16"] * 5 + ["INT32"] * 2


@pytest.fixture(scope="module", params=[*FAMILIES, "sdar"])
def step(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    source = write_source(folder / "source", request.param)
    bundle, _ = export_bundle(str(source), folder / "out", ExportSettings(dtypes=("float16",)), Progress())
    return bundle.path("float16/step.onnx")


@pytest.mark.parametrize("splits", [1, 4])
def test_the_plugin_step_has_no_function_body(step: Path, splits: int) -> None:
    """Fails if the plugin step still has a function body for the op, or a node lacks the plugin's integers."""
    before = onnx.load(str(step), load_external_data=False)
    model = onnx.load(str(write_plugin_step(step, splits)), load_external_data=False)
    layers = [node for node in before.graph.node if node.op_type == onnx_face.OP_TYPE]
    [mask] = [node for node in before.graph.node if node.op_type == onnx_face.MASK_TYPE]
    assert layers and not model.functions
    custom = [node for node in model.graph.node if node.domain == "dpad"]
    names = ["attend"] if splits == 1 else ["attend_parts", "combine_parts"]
    assert [node.op_type for node in custom] == names * len(layers)
    attributes = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in custom]
    assert all(a["plugin_namespace"] == b"dpad" and a["plugin_version"] == b"1" and a["aot"] == 1 for a in attributes)
    meant = {a.name: helper.get_attribute_value(a) for a in [*layers[0].attribute, *mask.attribute]}
    numbers = [tiling.scale_bits(meant["scale"]), meant.get("block", 0)]
    assert numbers[1] == (LENGTH["sdar"] if before.graph.name.endswith("sdar") else 0)
    assert attributes[0]["numbers"] == numbers + [splits] * (splits > 1)
    casts = [node for node in model.graph.node if node.op_type == "Cast" and node.output[0].endswith("_int32")]
    assert sorted(node.input[0] for node in casts) == ["cache_indices", "gather_indices"]
    assert {node.output[-1] if splits == 1 else node.output[0] for node in custom} >= {n.output[0] for n in layers}
    known = {o for node in model.graph.node for o in node.output} | {i.name for i in model.graph.input}
    known |= {tensor.name for tensor in model.graph.initializer}
    assert all(name in known for node in model.graph.node for name in node.input if name)
    assert [t.external_data for t in model.graph.initializer] == [t.external_data for t in before.graph.initializer]


def test_a_model_without_the_op_is_refused(step: Path, tmp_path: Path) -> None:
    """Fails if a plugin step is made from a model without the op, or with invalid splits."""
    plugin_step = write_plugin_step(step, 1)
    with pytest.raises(ExportError, match="has 0 SuffixMask nodes, not one"):
        write_plugin_step(plugin_step, 1)
    with pytest.raises(ExportError, match="splits 0 is outside 1 to 16"):
        write_plugin_step(step, 0)


def test_heads_without_a_kernel_are_refused_before_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if heads without a kernel are refused only by the builder."""
    monkeypatch.setitem(sys.modules, "tensorrt", as_tensorrt())
    monkeypatch.setattr(engines, "check_kernel", lambda size, dtype: check_kernel(size + 8, dtype))
    settings: dict[str, Any] = {"targets": ("tensorrt",), "dtypes": ("float16",), "capabilities": ("8.9",)}
    with pytest.raises(AttentionError, match="not a multiple of 16 .*use native attention"):
        export(write_source(tmp_path / "source"), tmp_path / "out", attention="plugin", **settings)
    assert not (tmp_path / "out").exists()


@no_ops
def test_a_plugin_engine_is_built_from_the_plugin_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if plugins are registered too late, or the file, the version or the attention is not in the key.

    TensorRT-RTX stands in for TensorRT. It cannot parse plugin nodes, so its parser gets the step without plugins.
    """
    trt, api = as_tensorrt(), plugin_api.PluginApi()
    parsed: list[Path] = []

    class Parser:
        def __init__(self, *arguments: Any) -> None:
            self.parser = tensorrt_rtx.OnnxParser(*arguments)

        def parse_from_file(self, path: str) -> bool:
            if Path(path).name == "decide.onnx":
                return bool(self.parser.parse_from_file(path))
            assert set(api.plugins) == {"dpad::attend", "dpad::attend_parts", "dpad::combine_parts"}
            parsed.append(Path(path))
            return bool(self.parser.parse_from_file(str(Path(path).with_name("step.onnx"))))

    trt.OnnxParser = Parser  # type: ignore[attr-defined]
    for name, module in (("tensorrt", trt), ("tensorrt.plugin", api)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(trt_face, "_registered", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings: dict[str, Any] = {"targets": ("tensorrt",), "dtypes": ("float16",), "capabilities": ("8.9",)}
    bundle = export(write_source(tmp_path / "source"), tmp_path / "out", attention="plugin", **settings)
    assert [path.name for path in parsed] == [FILE_NAME]
    [entry] = bundle.manifest.engines
    assert (entry.attention, entry.plugin_version) == ("plugin", trt_face.fingerprint())
    monkeypatch.setattr(trt_face.metadata, "version", lambda name: "0")
    assert trt_face.fingerprint() != entry.plugin_version
    assert entry.onnx == f"float16/{FILE_NAME}"
    assert entry.step_sha256 == bundle.manifest.files[entry.onnx].sha256
    assert entry.file == "engines/tensorrt-sm89-float16-plugin.plan"
    assert replace(entry, plugin_version="8").key() != entry.key()
    assert Bundle.open(bundle.directory).manifest == bundle.manifest


def test_an_old_tensorrt_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a TensorRT without ahead-of-time plugins gives an AttributeError."""
    monkeypatch.setattr(trt_face, "_registered", set())
    monkeypatch.setitem(sys.modules, "tensorrt_rtx.plugin", plugin_api.ModuleType("tensorrt_rtx.plugin"))
    with pytest.raises(EngineBuildError, match="has no ahead-of-time plugins.*or native attention"):
        build_plan(tensorrt_rtx, tmp_path, SimpleNamespace(), "float16", "8.9", Progress(), attention="plugin")  # type: ignore[arg-type]


def test_without_triton_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the error for missing Triton does not name the extra to install."""
    monkeypatch.setitem(sys.modules, "dpad.plugins.compile", None)
    contract = SimpleNamespace()
    with pytest.raises(EngineBuildError, match=r"needs Triton: pip install '\.\[kernel\]' in a checkout"):
        build_plan(tensorrt_rtx, tmp_path, contract, "float16", "8.9", Progress(), attention="plugin")  # type: ignore[arg-type]


def test_without_a_gpu_this_ran_in_the_interpreter() -> None:
    """Fails if Triton's interpreter is off on a machine without a GPU."""
    assert GPU or type(triton_kernel.attend).__name__ == "InterpretedFunction"
