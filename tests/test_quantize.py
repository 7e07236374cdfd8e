"""The W8A8 step: its int8 products, its error relative to float32, and that it is only used on request."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import export, write_source
from click.testing import CliRunner

import dpad
from dpad.cli import main
from dpad.export.parity.feeds import random_feeds
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.select import open_engine
from dpad.runtime.engines.step import StepInputs

NAME = "onnxruntime-cpu-w8a8"


@pytest.fixture(scope="module", params=["llada", "dream"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("w8a8")
    return export(write_source(folder / "source", request.param), folder / "out", dtypes=("w8a8",))


def logits(engine: Engine) -> list[np.ndarray]:
    """The logits of uncached steps over random canvases."""
    found = []
    for mode, feed in random_feeds(engine.contract, engine.dtype, 2, seed=3):
        if mode == "none":
            arrays = (feed[name] for name in ("canvas", "gather_indices", "cache_indices", "decode_rows"))
            found.append(engine.step(StepInputs(*arrays, want_logits=True)).logits)
    return found


def test_w8a8_brings_the_float32_step_and_is_not_the_default(bundle: Bundle) -> None:
    """Fails if the W8A8 step is chosen by default, or exported without the float32 step."""
    assert set(bundle.manifest.steps) == {"float32", "w8a8"}
    with open_engine(bundle) as engine:
        assert engine.name == "onnxruntime-cpu"
    with dpad.load(bundle.directory, engine=NAME) as model:
        assert (model.engine.name, model.engine.dtype) == (NAME, "float32")  # of its inputs and caches
        generation = model.generate("w7 w8 w9", gen_length=32, block_length=16, cache="dual")
        assert len(generation.canvas) and generation.nfe > 0


def test_int8_alone_says_too_little(bundle: Bundle, tmp_path: Path) -> None:
    """Fails if `int8` as a dtype is accepted, or the error does not name both options that it can mean."""
    source = bundle.directory.parent / "source"
    told = "int8 is not a dtype of a step; use --dtype w8a8 for .* or --weights int8 for "
    with pytest.raises(errors.ExportError, match=told):
        export(source, tmp_path / "out", dtypes=("float32", "int8"))
    ran = CliRunner().invoke(main, ["export", "no-such-model", "--out", str(tmp_path / "out"), "--dtype", "int8"])
    assert ran.exit_code == 2 and re.search(told, ran.stderr.splitlines()[-1])


def test_products_with_weights_are_int8_but_the_second_of_each_mlp(bundle: Bundle) -> None:
    """Fails if another product than the second of an MLP stays in float32, or that one does not."""
    graph = onnx.load(bundle.path("w8a8/step.onnx"), load_external_data=False).graph
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    found = Counter(weights.get(node.input[1]) for node in graph.node if node.op_type.startswith("MatMul"))
    layers = bundle.manifest.contract.layers
    assert found == {onnx.TensorProto.INT8: 6 * layers + 1, onnx.TensorProto.FLOAT: layers}


def test_logits_are_near_those_of_float32_and_not_the_same(bundle: Bundle) -> None:
    """Fails if the logits differ too much from float32, or not at all, as when the float32 step runs."""
    with open_engine(bundle, "onnxruntime-cpu") as exact, open_engine(bundle, NAME) as quantized:
        for wanted, have in zip(logits(exact), logits(quantized), strict=True):
            difference = np.abs(have - wanted).mean() / np.abs(wanted).mean()
            assert 1e-4 < difference < 0.2


def test_files_may_be_read_by_whoever_may_read_the_step(bundle: Bundle) -> None:
    """Fails if only the owner can read the weights, so that a service of another user cannot."""
    folder = bundle.path("w8a8/step.onnx").parent
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
