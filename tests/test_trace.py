"""The traced step: its signature, its weights by reference, and its values in ONNX Runtime."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from checkpoints import (
    BLOCK_CAUSAL,
    FAMILIES,
    MASK,
    VOCAB,
    contract_of,
    export_step,
    random_weights,
    raw_config,
    write_checkpoint,
)
from cuda_kernels import lacking
from numpy.typing import NDArray

from dpad.export.step.trace import attach_weights, check_onnx, trace_step
from dpad.models.checkpoint.checkpoint import Checkpoint, load_model
from dpad.models.step import Step
from dpad.plugins import onnx_face
from dpad.runtime.contract import TensorSpec
from dpad.runtime.errors import ExportError

each_family = pytest.mark.parametrize("family", FAMILIES)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float16"])

ONNX_TYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT64: "int64",
}


def graph_of(directory: Path) -> onnx.ModelProto:
    """The graph without its weights."""
    return onnx.load(directory / "step.onnx", load_external_data=False)


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Name, dtype and axes of a value in the file."""
    tensor = value.type.tensor_type
    axes = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return TensorSpec(value.name, ONNX_TYPES[tensor.elem_type], axes)


@each_family
@each_dtype
def test_signature_is_the_contract(make_bundle: Any, family: str, dtype: str) -> None:
    """Fails if a name, dtype, order or axis differs, so that an engine would bind a wrong tensor."""
    directory = make_bundle(family, dtype=dtype)
    graph, contract = graph_of(directory).graph, contract_of(Checkpoint.open(directory))
    assert [spec_of(value) for value in graph.input] == contract.inputs(dtype)
    assert [spec_of(value) for value in graph.output] == contract.outputs(dtype)


@each_family
@each_dtype
def test_checker_and_one_node_a_layer(make_bundle: Any, family: str, dtype: str) -> None:
    """Fails if the file is not valid ONNX, the op is inlined or has no body, or every layer makes its own mask."""
    directory = make_bundle(family, dtype=dtype)
    check_onnx(directory / "step.onnx", Checkpoint.open(directory).shards)
    model = graph_of(directory)
    nodes = [node for node in model.graph.node if node.domain == onnx_face.DOMAIN]
    kinds = [onnx_face.MASK_TYPE, onnx_face.OP_TYPE]
    assert [node.op_type for node in nodes] == [*kinds, onnx_face.OP_TYPE]
    assert [(f.domain, f.name) for f in model.functions] == [(onnx_face.DOMAIN, kind) for kind in kinds]
    scale = onnx.helper.get_node_attr_value(nodes[1], "scale")
    assert scale == pytest.approx(32**-0.5)


@pytest.mark.parametrize("family", [*FAMILIES, *BLOCK_CAUSAL])
@each_dtype
def test_all_of_it_runs_on_a_gpu(make_bundle: Any, family: str, dtype: str) -> None:
    """Fails if an operator has no kernel in ONNX Runtime's CUDA provider, or shapes are computed (on the CPU)."""
    assert not lacking(graph_of(make_bundle(family, dtype=dtype)))


@each_family
@each_dtype
def test_weights_are_references_into_the_safetensors(make_bundle: Any, family: str, dtype: str) -> None:
    """Fails if an offset is wrong by one byte, or weights are copied into the graph."""
    directory = make_bundle(family, dtype=dtype)
    header, data_start = read_safetensors(directory / "model.safetensors")
    seen = set()
    for tensor in graph_of(directory).graph.initializer:
        inline = tensor.data_location != onnx.TensorProto.EXTERNAL
        assert not inline or (tensor.name not in header and np.prod(tensor.dims) <= VOCAB), tensor.name
        if inline:
            continue
        place = {entry.key: entry.value for entry in tensor.external_data}
        begin, end = header[tensor.name]["data_offsets"]
        assert place["location"] == "model.safetensors"
        assert (int(place["offset"]), int(place["length"])) == (data_start + begin, end - begin)
        assert list(tensor.dims) == header[tensor.name]["shape"]
        seen.add(tensor.name)
    assert seen == header.keys()
    assert (directory / "step.onnx").stat().st_size < 100_000


def read_safetensors(path: Path) -> tuple[dict[str, Any], int]:
    """The header, parsed without the library, and the offset of the data."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


@each_family
def test_the_file_does_not_grow_with_the_vocabulary(make_bundle: Any, family: str) -> None:
    """Fails if a constant as long as the vocabulary is folded into the graph, which for LLaDA is 1 MB."""
    inline = {
        tensor.name: int(np.prod(tensor.dims))
        for tensor in graph_of(make_bundle(family)).graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    }
    assert max(inline.values()) < VOCAB, inline


@each_family
def test_bytes_read_back_are_the_weights(make_bundle: Any, family: str) -> None:
    """Fails if the weights that ONNX loads differ from the checkpoint."""
    directory = make_bundle(family)
    loaded = onnx.load(directory / "step.onnx", load_external_data=True)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in loaded.graph.initializer}
    for name, weight in random_weights(raw_config(family)).items():
        np.testing.assert_array_equal(arrays[name], weight.numpy())


@each_family
@each_dtype
def test_no_path_of_this_machine_in_the_file(make_bundle: Any, family: str, dtype: str) -> None:
    """Fails if the graph contains stack traces or absolute paths."""
    directory = make_bundle(family, dtype=dtype)
    content = (directory / "step.onnx").read_bytes()
    root = Path(trace_step.__code__.co_filename).resolve().parents[1]
    for text in (str(root), str(directory), "site-packages", "/home", "/root", "/tmp", ".py"):
        assert text.encode() not in content, text


@each_family
def test_tracing_twice_gives_the_same_bytes(make_bundle: Any, family: str, tmp_path: Path) -> None:
    """Fails if tracing is not deterministic; bundles are compared by hash."""
    directory = make_bundle(family)
    write_checkpoint(tmp_path, raw_config(family), random_weights(raw_config(family)))
    assert export_step(tmp_path).read_bytes() == (directory / "step.onnx").read_bytes()


def test_shards_are_each_referenced(tmp_path: Path) -> None:
    """Fails if a tensor of a sharded checkpoint refers to a wrong file."""
    raw = raw_config("llada", layers=1)
    write_checkpoint(tmp_path, raw, random_weights(raw), shards=3)
    export_step(tmp_path)
    check_onnx(tmp_path / "step.onnx", Checkpoint.open(tmp_path).shards)
    for tensor in graph_of(tmp_path).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            file = {entry.key: entry.value for entry in tensor.external_data}["location"]
            assert tensor.name in read_safetensors(tmp_path / file)[0]


@pytest.mark.parametrize(
    "family,changes", [("llada", {"tied": True, "include_qkv_bias": True}), ("dream", {"tied": True})]
)
def test_tied_heads_and_biases_trace(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    """Fails if a tied head is stored twice or its tensor is missing."""
    raw = raw_config(family, layers=1, kv_heads=1, **changes)
    write_checkpoint(tmp_path, raw, random_weights(raw))
    export_step(tmp_path)
    compare_to_eager(tmp_path, step_inputs(Checkpoint.open(tmp_path), 3, 2, 20, 7, 4, 3, 9), 1e-4)


def test_a_weight_the_checkpoint_lacks(make_bundle: Any) -> None:
    """Fails if a weight that the checkpoint lacks is not an error."""
    checkpoint = Checkpoint.open(make_bundle("llada"))
    model = trace_step(checkpoint.architecture, checkpoint.config, contract_of(checkpoint), "float32")
    fewer = {name: e for name, e in checkpoint.tensors.items() if name != "model.transformer.ln_f.weight"}
    with pytest.raises(ExportError, match="model.transformer.ln_f.weight"):
        attach_weights(model, fewer)


def step_inputs(
    checkpoint: Checkpoint, seed: int, batch: int, canvas: int, rows: int, cached: int, decoded: int, slots: int
) -> dict[str, NDArray[Any]]:
    """Random step inputs with unequal rows, padded with -1 at the end of both index tensors."""
    rng = np.random.default_rng(seed)
    contract = contract_of(checkpoint)
    gather, cache = np.full((batch, rows), -1), np.full((batch, cached), -1)
    for b in range(batch):
        real = rows if b == 0 else int(rng.integers(1, rows + 1))
        gather[b, :real] = np.sort(rng.permutation(canvas)[:real])
        named = min(int(rng.integers(0, cached + 1)), slots)
        cache[b, :named] = rng.permutation(slots)[:named]
    shape = (slots, contract.kv_heads, contract.head_size)
    inputs: dict[str, NDArray[Any]] = {
        "canvas": np.where(rng.random((batch, canvas)) < 0.4, MASK, rng.integers(0, VOCAB, (batch, canvas))),
        "gather_indices": gather,
        "cache_indices": cache,
        "decode_rows": rng.integers(0, rows, (batch, decoded)),
    }
    caches = contract.cache_names()
    return inputs | {name: rng.standard_normal(shape).astype(checkpoint.dtype) for name in caches}


def compare_to_eager(directory: Path, inputs: dict[str, NDArray[Any]], tolerance: float) -> None:
    """Compare every output of the file in ONNX Runtime with eager `Step`, including padded rows."""
    checkpoint = Checkpoint.open(directory)
    dtype = getattr(torch, checkpoint.dtype)
    step = Step(load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, dtype))
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    with torch.inference_mode():
        eager = step(*tensors[:4], tensors[4:])
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    outputs = ort.InferenceSession(directory / "step.onnx", options).run(None, inputs)
    specs = contract_of(checkpoint).outputs(checkpoint.dtype)
    assert len(outputs) == len(eager) == len(specs)
    for spec, have, want in zip(specs, outputs, eager):
        assert have.dtype == spec.dtype, spec.name
        scale = np.maximum(np.abs(want.float().numpy()), 1.0)
        error = np.abs(have.astype(np.float64) - want.double().numpy()) / scale
        assert have.shape == tuple(want.shape) and (error.max(initial=0.0) <= tolerance), spec.name


@each_family
@pytest.mark.parametrize(
    "batch,canvas,rows,cached,decoded,slots",
    [
        (1, 24, 24, 0, 24, 1),
        (1, 24, 24, 0, 3, 24),
        (2, 40, 16, 24, 16, 40),
        (3, 33, 7, 12, 5, 33),
        (4, 60, 21, 9, 1, 31),
        (2, 5, 1, 5, 1, 5),
        (1, 1, 1, 0, 1, 1),
    ],
)
def test_onnxruntime_equals_eager(
    make_bundle: Any, family: str, batch: int, canvas: int, rows: int, cached: int, decoded: int, slots: int
) -> None:
    """Fails if any output differs at any size of the dynamic axes, K = 0 and P = 1 included."""
    directory = make_bundle(family)
    sizes = (batch, canvas, rows, cached, decoded, slots)
    for seed in range(2):
        compare_to_eager(directory, step_inputs(Checkpoint.open(directory), seed, *sizes), 1e-4)


@pytest.mark.parametrize("limits", [{"max_batch": 1}, {"max_batch": 2}, {"max_length": 24, "window": 8}])
def test_small_limits_trace(make_bundle: Any, limits: dict[str, int]) -> None:
    """Fails if a batch limit of 1, or a canvas limit below the tracer's example, cannot be exported."""
    checkpoint = Checkpoint.open(make_bundle("llada"))
    contract = contract_of(checkpoint, **limits)
    model = trace_step(checkpoint.architecture, checkpoint.config, contract, "float32")
    assert [str(axis) for axis in model.graph.inputs[0].shape or ()] == ["B", "N"]


BIG = """
import resource, sys
from dpad.export.step.trace import trace_step
from dpad.models.checkpoint.checkpoint import parse_config
from checkpoints import raw_config
from dpad.runtime.contract import StepContract
raw = raw_config("llada", width=4096, heads=32, kv_heads=32, mlp_width=12288, max_length=4096)
raw |= {"embedding_size": 126464, "vocab_size": 126464}
architecture, c = parse_config(raw)
contract = StepContract("llada", 2, 32, 32, 128, 126464, 127, 1, 0, 4, 4096, 32, 256, False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = trace_step(architecture, c, contract, "float16")
values = [v.const_value for v in model.graph.initializers.values()]
assert sum(v is None for v in values) == 21
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
def test_tracing_large_layers_materialises_nothing() -> None:
    """Fails if tracing allocates the weights, which for two layers of LLaDA-8B take 2.9 GB in float16."""
    command = [sys.executable, "-W", "ignore", "-c", BIG]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    weights = 2 * (2 * 126464 * 4096 + 2 * (4 * 4096**2 + 3 * 4096 * 12288))
    assert weights > 2.5e9
    assert int(done.stdout.split()[-1]) < weights / 5
