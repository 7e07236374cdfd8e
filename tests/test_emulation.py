"""Emulated bfloat16 steps on a CPU, in float32 with every result rounded, compared with PyTorch's bfloat16."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import export, write_source
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from dpad.cli import main
from dpad.export.parity.compare import compare_bundle
from dpad.export.parity.emulation import emulated, emulated_engine
from dpad.export.parity.feeds import random_feeds
from dpad.export.progress import Progress
from dpad.models.torch_engine import open_torch_engine
from dpad.runtime.bundle.bundle import Bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("emulation")
    return export(write_source(folder / "source", "dream"), folder / "out", dtypes=("bfloat16", "float32"))


def test_every_result_is_a_bfloat16_near_to_that_of_pytorch(bundle: Bundle) -> None:
    """Fails if ONNX Runtime optimises the roundings away, or a value is rounded that PyTorch does not round."""
    contract, path = bundle.manifest.contract, bundle.path("bfloat16/step.onnx")
    names = [spec.name for spec in contract.outputs()]
    narrow = [spec.name for spec in contract.outputs("bfloat16") if spec.dtype == "bfloat16"]
    assert narrow == contract.new_names()
    reference = open_torch_engine(bundle, "bfloat16")
    with emulated_engine(path, contract) as engine:
        for _, feed in random_feeds(contract, "bfloat16", count=1, seed=0):
            ours, theirs = engine.session.run(names, feed), reference.run(feed)
            for name, mine, expected in zip(names, ours, theirs):
                if name in narrow:
                    assert not (mine.view(np.uint32) & 0xFFFF).any(), f"{name} is not rounded"
                close = 1e-2 if name in ("new_key.0", "new_value.0") else 5e-2  # before and after roundings accumulate
                if name in narrow or name == "logits":
                    assert np.abs(mine - expected).mean() < close * np.abs(expected).mean(), name


def test_nothing_else_changes(bundle: Bundle) -> None:
    """Fails if the emulated graph lacks an operator, or weights are copied into it."""
    path = bundle.path("bfloat16/step.onnx")
    before, after = onnx.load(path, load_external_data=False), onnx.load_from_string(emulated(path))
    kinds = [sorted(node.op_type for node in m.graph.node if node.op_type != "Cast") for m in (before, after)]
    assert kinds[0] == kinds[1] and after.ByteSize() < 2 * before.ByteSize()
    assert [each.name for each in before.graph.output] == [each.name for each in after.graph.output]
    types = {each.type.tensor_type.elem_type for each in [*after.graph.input, *after.graph.output]}
    assert types == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


@pytest.mark.parametrize(
    ("family", "weights"), [("llada", "full"), ("sdar", "full"), ("llada", "int4"), ("dream", "fp8")]
)
def test_parity_of_bfloat16(tmp_path: Path, family: str, weights: str) -> None:
    """Fails if a family or packed weights cannot be compared in bfloat16 on a machine without a GPU."""
    bundle = export(
        write_source(tmp_path / "source", family), tmp_path / "out", dtypes=("bfloat16",), weights=(weights,)
    )
    whole = (family, weights) == ("sdar", "full")
    report = compare_bundle(bundle, Progress(), steps=1, trajectories=whole, emulate=True)
    [engine] = (e for e in report["engines"] if e["engine"].startswith("onnxruntime-cpu"))
    assert engine["status"] == "passed" and "rounded to bfloat16" in engine["detail"]
    assert ("positions" in engine["trajectories"]) == whole


def test_wrong_weights_are_seen(tmp_path: Path) -> None:
    """Fails if the tolerance of bfloat16 is so large that a step with another model's weights passes."""
    bundle = export(write_source(tmp_path / "source"), tmp_path / "out", dtypes=("bfloat16",))
    [weights] = bundle.manifest.steps["bfloat16"].weights
    reference = load_file(bundle.path(weights))
    name = next(name for name in reference if name.endswith("blocks.1.ff_out.weight"))
    reference[name] = reference[name].flip(0)
    changed = tmp_path / "changed"
    changed.mkdir()
    graph = bundle.path("bfloat16/step.onnx")
    (changed / "step.onnx").write_bytes(graph.read_bytes())
    save_file(reference, changed / Path(weights).name, {"format": "pt"})
    feed = next(feed for _, feed in random_feeds(bundle.manifest.contract, "bfloat16", count=1, seed=0))
    logits = [spec.name for spec in bundle.manifest.contract.outputs()].index("logits")
    expected = open_torch_engine(bundle, "bfloat16").run(feed)[logits]
    off = []
    for path in (graph, changed / "step.onnx"):
        with emulated_engine(path, bundle.manifest.contract) as engine:
            off.append(float(np.abs(engine.session.run(["logits"], feed)[0] - expected).mean()))
    assert off[0] < 1e-1 * np.abs(expected).mean() < off[1]


def test_it_is_asked_for(bundle: Bundle) -> None:
    """Fails if parity skips bfloat16 without a message, or skips it with `emulate=True`."""
    arguments = ["parity", str(bundle.directory), "--engine", "onnxruntime-cpu", "--steps", "1", "--no-trajectories"]
    without = CliRunner().invoke(main, arguments)
    assert without.exit_code == 0 and "skipped onnxruntime-cpu (bfloat16)" in without.output
    assert "--emulate" in without.output
    asked = CliRunner().invoke(main, [*arguments, "--emulate"])
    assert asked.exit_code == 0 and "passed  onnxruntime-cpu (bfloat16)" in asked.output
