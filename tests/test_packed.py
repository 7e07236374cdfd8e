"""Packed weights: contents of the files, results of engines, error relative to full weights, and refusals."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from bundles import export, write_source
from checkpoints import FAMILIES
from decoding import run
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dpad
from dpad.export.parity.compare import compare_bundle, require_passed
from dpad.export.parity.report import parity_lines
from dpad.export.progress import Progress
from dpad.export.step.pack import GROUPS
from dpad.models.checkpoint.checkpoint import load_model, parse_config
from dpad.models.compiled.open import open_compiled
from dpad.models.torch_engine import open_torch_engine
from dpad.runtime import errors
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.variant import PACKED
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.engines.select import open_engine

# Largest error of a weight, relative to the largest weight with the same scale: half a step of the codes, and for
# float8 half of the last of four digits. In int4 a weight of more than 7 steps becomes 7.
BOUNDS = {"int8": 0.5 / 127, "int4": 1 / 8, "fp8": 1 / 16}


@pytest.fixture(scope="module", params=FAMILIES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("packed")
    source = write_source(folder / "source", request.param, torch_dtype="bfloat16")
    return export(source, folder / "out", dtypes=("float32",), weights=("full", *PACKED))


def reference(tensors: dict[str, torch.Tensor], name: str, weights: str) -> np.ndarray:
    """The weight [N, K] in float64, from the bytes and the format's definition, without this project's code."""
    scale = tensors[f"{name}.scale"].double().numpy()
    raw = tensors[f"{name}.{weights}"].view(torch.uint8).numpy()
    if weights == "int8":
        codes = np.where(raw > 127, raw.astype(int) - 256, raw)
    elif weights == "int4":
        codes = np.empty((raw.shape[0], 2 * raw.shape[1]), int)
        codes[:, 0::2], codes[:, 1::2] = raw % 16, raw // 16
        codes = np.where(codes > 7, codes - 16, codes)
    else:
        exponent, digits = (raw // 8) % 16, raw % 8
        small = digits / 8 * 2.0**-6
        codes = np.where(raw > 127, -1.0, 1.0) * np.where(
            exponent == 0, small, (1 + digits / 8) * 2.0 ** (exponent - 7.0)
        )
    scale = scale if scale.ndim == 2 else scale[None]
    turned = np.empty(codes.shape)
    for group in range(len(scale)):
        rows = slice(group * len(codes) // len(scale), (group + 1) * len(codes) // len(scale))
        turned[rows] = codes[rows] * scale[group]
    return turned.T


def shares(full: np.ndarray, groups: int) -> np.ndarray:
    """For each weight [N, K] the largest one with the same scale."""
    blocks = np.abs(full).reshape(len(full), groups, -1)
    return np.broadcast_to(blocks.max(axis=2, keepdims=True), blocks.shape).reshape(full.shape)


@pytest.mark.parametrize("weights", PACKED)
def test_codes_and_scales_are_the_weights(bundle: Bundle, weights: str) -> None:
    """Fails if codes and scales differ too much from the full weights, or other weights than the layers' are packed."""
    step = bundle.manifest.steps[f"float32-weights-{weights}"]
    full, packed = (load_file(bundle.path(s.weights[0])) for s in (bundle.manifest.steps["float32"], step))
    names = [name.removesuffix(f".{weights}") for name in packed if name.endswith(f".{weights}")]
    assert len(names) == 7 * bundle.manifest.contract.layers
    for name in full.keys() - set(names):
        assert torch.equal(packed[name], full[name])
    for name in names:
        wanted, scale = full[name].double().numpy(), packed[f"{name}.scale"]
        groups = 1 if weights == "fp8" else wanted.shape[1] // 32
        assert scale.shape == ((len(wanted),) if weights == "fp8" else (groups, len(wanted)))
        have = reference(packed, name, weights)
        assert (np.abs(have - wanted) <= BOUNDS[weights] * shares(wanted, groups) * 1.001).all()


@pytest.mark.parametrize("weights", PACKED)
@pytest.mark.parametrize("wrong", ["no scale", "another scale", "not packed"])
def test_packed_weights_that_do_not_fit_are_refused(bundle: Bundle, tmp_path: Path, weights: str, wrong: str) -> None:
    """Fails if codes without scales, or with a wrong shape, give an error of the library."""
    step = f"float32-weights-{weights}"
    tensors = load_file(bundle.path(bundle.manifest.steps[step].weights[0]))
    codes = next(name for name in tensors if name.endswith(f".{weights}"))
    scale = f"{codes.removesuffix(weights)}scale"
    if wrong == "no scale":
        del tensors[scale]
    elif wrong == "another scale":
        tensors[scale] = tensors[scale][..., 1:].contiguous()
    else:
        tensors[codes.removesuffix(f".{weights}")] = tensors.pop(codes)
    save_file(tensors, tmp_path / "model.safetensors")
    architecture, config = parse_config(bundle.manifest.model_config)
    with pytest.raises(errors.CheckpointError):
        load_model(architecture, config, (tmp_path / "model.safetensors",), torch.float32)


@pytest.mark.parametrize("weights", PACKED)
def test_eager_torch_unpacks_what_the_file_says(bundle: Bundle, weights: str) -> None:
    """Fails if the reference of parity unpacks other weights than the format's definition."""
    step = f"float32-weights-{weights}"
    tensors = load_file(bundle.path(bundle.manifest.steps[step].weights[0]))
    model = open_torch_engine(bundle, step).program.model
    for name in [name.removesuffix(".scale") for name in tensors if name.endswith(".scale")]:
        module, _, weight = name.rpartition(".")
        have = getattr(model.get_submodule(module), weight)
        np.testing.assert_allclose(have.double().numpy(), reference(tensors, name, weights), rtol=1e-6)


@pytest.mark.parametrize("weights", PACKED)
def test_steps_for_pytorch_to_compile_have_their_weights(bundle: Bundle, weights: str) -> None:
    """Fails if the engine opens other weights or lacks its own name, or int8 and int4 decode other tokens."""
    options = GenerationOptions(gen_length=16, block_length=16, cache="none")
    requests, variant = [Request((5, 6, 7))], f"float32-weights-{weights}"
    theirs = run(open_torch_engine(bundle, variant), requests, options)
    with open_compiled(bundle, variant, "cpu", compiled=False) as engine:
        ours = run(engine, requests, options)
        assert engine.name == f"torch-cpu-weights-{weights}"
    assert weights == "fp8" or [one.tokens for one in ours] == [one.tokens for one in theirs]


def test_every_format_computes_what_torch_does_with_the_same_weights(bundle: Bundle) -> None:
    """Fails if a step differs by more than rounding, or the error of packing is not reported."""
    engines = [f"onnxruntime-cpu-weights-{weights}" for weights in PACKED]
    report = require_passed(compare_bundle(bundle, Progress(), engines=engines, steps=1, trajectories=False))
    moved = {}
    for engine in (engine for engine in report["engines"] if engine["status"] == "passed"):
        assert engine["steps"]["logits"]["checked"] == "max"
        moved[engine["variant"].rpartition("-")[2]] = engine["packing"]["relative"]
    assert 0 < moved["int8"] < moved["fp8"] < moved["int4"] < 1
    assert sum("packed weights change" in line for line in parity_lines(report)) == len(PACKED)


@pytest.mark.parametrize("weights", PACKED)
def test_whole_decodes_are_those_of_torch(bundle: Bundle, weights: str) -> None:
    """Fails if an engine opened by name runs another step, or decodes other tokens than torch."""
    options = GenerationOptions(gen_length=64, block_length=16, cache="dual", temperature=0.7)
    requests = [Request((5, 6, 7), seed=1), Request((8, 9, 10, 11, 12), seed=2)]
    with open_engine(bundle, f"onnxruntime-cpu-weights-{weights}") as engine:
        assert (engine.name, engine.dtype) == (f"onnxruntime-cpu-weights-{weights}", "float32")
        ours = run(engine, requests, options)
    theirs = run(open_torch_engine(bundle, f"float32-weights-{weights}"), requests, options)
    assert [(one.tokens, one.committed) for one in ours] == [(one.tokens, one.committed) for one in theirs]
    assert min(one.nfe for one in ours) > 4


def test_packed_steps_have_to_be_asked_for(bundle: Bundle) -> None:
    """Fails if a packed step is chosen by default, for instance because the exact step does not run here."""
    with dpad.load(bundle.directory) as model:
        assert model.engine.name == "onnxruntime-cpu"
    steps = bundle.manifest.steps
    kept = {"bfloat16": steps["float32"], "float32-weights-int4": steps["float32-weights-int4"]}
    with pytest.raises(errors.EngineUnavailable, match="weights-int4: runs, but .* choose it"):
        open_engine(Bundle(bundle.directory, replace(bundle.manifest, steps=kept)))


def test_a_bundle_of_nothing_else_opens(tmp_path: Path) -> None:
    """Fails if a bundle of packed weights contains the full ones, or cannot be loaded without an engine's name."""
    bundle = export(write_source(tmp_path / "source"), tmp_path / "out", weights=("int4",))
    assert set(bundle.manifest.steps) == {"float32-weights-int4"}
    with dpad.load(bundle.directory) as model:
        assert model.engine.name == "onnxruntime-cpu-weights-int4"
        assert len(model.generate("w7 w8", gen_length=32).canvas) == 36


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_onnxruntime_multiplies_packed(bundle: Bundle, tmp_path: Path, weights: str) -> None:
    """Fails if ONNX Runtime does not fuse DequantizeLinear and MatMul, so that every step unpacks the weights."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(bundle.path(f"float32-weights-{weights}/step.onnx"), options)
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    assert Counter(node.op_type for node in nodes)["MatMulNBits"] == 7 * bundle.manifest.contract.layers


@pytest.mark.parametrize("weights", PACKED)
def test_the_graph_is_standard_onnx_over_the_files_bytes(bundle: Bundle, weights: str) -> None:
    """Fails if a product uses full weights, or weights are stored in the graph too."""
    path = bundle.path(f"float32-weights-{weights}/step.onnx")
    model = onnx.load(path, load_external_data=False)
    layers = bundle.manifest.contract.layers
    kinds = {"int8": onnx.TensorProto.INT8, "int4": onnx.TensorProto.INT4, "fp8": onnx.TensorProto.FLOAT8E4M3FN}
    assert Counter(node.op_type for node in model.graph.node)["DequantizeLinear"] == 7 * layers
    assert Counter(tensor.data_type for tensor in model.graph.initializer)[kinds[weights]] == 7 * layers
    assert {opset.domain for opset in model.opset_import} == {"", "dpad"}
    assert path.stat().st_size < 200_000


def test_sixteen_bit_rows_have_sixteen_bit_scales(tmp_path: Path) -> None:
    """Fails if float16 with packed weights exceeds float16's tolerance, or its scales are not in float16."""
    source = write_source(tmp_path / "source")
    bundle = export(source, tmp_path / "out", dtypes=("float16",), weights=("int4", "fp8"), group=16)
    for step in bundle.manifest.steps.values():
        with safe_open(bundle.path(step.weights[0]), framework="pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys() if name.endswith("scale")} == {"F16"}  # noqa: SIM118
    report = require_passed(compare_bundle(bundle, Progress(), steps=1, trajectories=False))
    assert [engine["variant"] for engine in report["engines"] if engine["status"] == "passed"] == [
        *bundle.manifest.steps
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weights": ("int4",), "group": 128}, "96 inputs, which is not a multiple of the group 128; use --group 32"),
        ({"weights": ("int8",), "group": 24}, "24 inputs is not one of 16, 32"),
        ({"weights": ("int3",)}, "'int3' is not one of full, int8, int4, fp8"),
        ({"weights": ("int4",), "dtypes": ("w8a8",)}, "w8a8 needs full weights: add --weights full"),
    ],
)
def test_what_cannot_be_packed_is_refused_with_a_way_out(tmp_path: Path, settings: dict, said: str) -> None:
    """Fails if a setting is refused only during the export, or the error lacks the way out."""
    source = write_source(tmp_path / "source")
    with pytest.raises(errors.ExportError, match=said):
        export(source, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_widths_without_any_group_are_refused(tmp_path: Path) -> None:
    """Fails if the error suggests a group that does not divide the width."""
    source = write_source(tmp_path / "source", mlp_width=100)
    with pytest.raises(errors.ExportError, match="100 inputs.*--weights fp8"):
        export(source, tmp_path / "out", weights=("int8",))
    assert all(100 % group for group in GROUPS)


MEASURE = """
import sys
from pathlib import Path
from dpad.export.step.pack import Packing, place_packed
from dpad.export.progress import Progress
from dpad.models.checkpoint.checkpoint import Checkpoint

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

checkpoint = Checkpoint.open(Path(sys.argv[1]))
before = peak()
place_packed(checkpoint, Path(sys.argv[2]), "float16", Packing("int8"), Progress())
print(peak() - before)
"""


def test_shards_are_packed_one_at_a_time(tmp_path: Path) -> None:
    """Fails if packing takes more memory than one shard and the libraries."""
    source = write_source(tmp_path / "source", width=512, heads=8, kv_heads=8, mlp_width=2048, layers=20, shards=20)
    sizes = [path.stat().st_size for path in source.glob("*.safetensors")]
    command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(sizes) == 20
    assert int(ran.stdout) < 7 * max(sizes) < sum(sizes) / 2
