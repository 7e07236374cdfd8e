"""Compares the implementations of `dpad::sparse_suffix_attention` with a loop in float64.

The definition is plain torch; the ONNX node runs its function body in ONNX Runtime. Slots that no index names must
never be read, whatever they hold.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

import dpad.plugins.attention
from dpad.plugins import onnx_face

Array = NDArray[Any]
Inputs = dict[str, Array]
OP = torch.ops.dpad.sparse_suffix_attention
FLOATS = ("query", "key", "value", "key_cache", "value_cache")


def naive(inputs: Inputs, scale: float, block: int = 0) -> Array:
    """[B, Q, H, D] float64, computed one query row at a time from the named slots only."""
    query = inputs["query"].astype(np.float64)
    out = np.zeros(query.shape)
    batch, rows, heads, _ = query.shape
    group = heads // inputs["key"].shape[2]
    for b in range(batch):
        cached = [slot for slot in inputs["cache_indices"][b] if slot >= 0]
        new = [row for row, position in enumerate(inputs["gather_indices"][b]) if position >= 0]
        if not cached and not new:
            continue
        for h in range(heads):
            g = h // group
            for q in range(rows):
                place = inputs["gather_indices"][b]
                seen = [r for r in new if not block or place[q] < 0 or place[r] < (place[q] // block + 1) * block]
                keys = [inputs["key_cache"][s, g] for s in cached] + [inputs["key"][b, r, g] for r in seen]
                values = [inputs["value_cache"][s, g] for s in cached] + [inputs["value"][b, r, g] for r in seen]
                scores = np.array([np.dot(query[b, q, h], k.astype(np.float64)) * scale for k in keys])
                weights = np.exp(scores - scores.max())
                out[b, q, h] = sum(w * v.astype(np.float64) for w, v in zip(weights / weights.sum(), values))
    return out


def run_torch(inputs: Inputs, scale: float, block: int = 0) -> Array:
    """Run the definition in torch."""
    return OP(*(torch.from_numpy(array) for array in inputs.values()), scale, block).numpy()


@cache
def session(scale: float, dtype: int, block: int, *heads: int) -> ort.InferenceSession:
    """A session of a model with the two nodes and their function bodies."""
    onnx_face.register_schema()
    axes = {"query": "BQHD", "key": "BQGD", "value": "BQGD", "key_cache": "PGD", "value_cache": "PGD"}
    values = [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in axes.items()]
    values += [helper.make_tensor_value_info(n, TensorProto.INT64, ["B", s]) for n, s in zip(INDICES, "KQ")]
    shared, blocks = ["slots", "mask", "anything"], {"block": block} if block else {}
    nodes = [
        helper.make_node(onnx_face.MASK_TYPE, INDICES, shared, domain=onnx_face.DOMAIN, **blocks),
        helper.make_node(onnx_face.OP_TYPE, [*axes, *shared], ["output"], domain=onnx_face.DOMAIN, scale=scale),
    ]
    output = helper.make_tensor_value_info("output", dtype, list("BQHD"))
    model = helper.make_model(
        helper.make_graph(nodes, "op", values, [output]),
        opset_imports=[helper.make_opsetid("", onnx_face.OPSET), helper.make_opsetid(onnx_face.DOMAIN, 1)],
        functions=onnx_face.function_protos(*heads, block_causal=block > 0),
        ir_version=11,
    )
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options)


INDICES = ("cache_indices", "gather_indices")


def run_onnx(inputs: Inputs, scale: float, block: int = 0) -> Array:
    """Run the ONNX nodes."""
    dtype = helper.np_dtype_to_tensor_dtype(inputs["query"].dtype)
    heads = (inputs[name].shape[2] for name in ("query", "key"))
    return session(scale, dtype, block, *heads).run(None, inputs)[0]


FACES: dict[str, Callable[..., Array]] = {"torch": run_torch, "onnx": run_onnx}
each_face = pytest.mark.parametrize("face", FACES)


def random_inputs(
    seed: int,
    batch: int = 2,
    rows: int = 5,
    cached: int = 4,
    slots: int = 9,
    heads: int = 4,
    group: int = 2,
    size: int = 32,
) -> Inputs:
    """Random rows with unequal padding and slots in any order, some shared; H = heads, G = heads / group."""
    rng = np.random.default_rng(seed)
    kv = heads // group
    shapes = [(batch, rows, heads, size)] + [(batch, rows, kv, size)] * 2 + [(slots, kv, size)] * 2
    inputs: Inputs = {n: rng.standard_normal(s).astype(np.float32) for n, s in zip(FLOATS, shapes)}
    cached = min(cached, slots)
    cache_indices = np.full((batch, cached), -1)
    gather_indices = np.full((batch, rows), -1)
    for b in range(batch):
        named = int(rng.integers(0, cached + 1))
        places = np.sort(rng.permutation(cached)[:named])  # -1 may be at any place
        cache_indices[b, places] = rng.permutation(slots)[:named]
        real = int(rng.integers(1, rows + 1))
        gather_indices[b, :real] = slots + np.sort(rng.permutation(100)[:real])
    return inputs | {"cache_indices": cache_indices, "gather_indices": gather_indices}


@each_face
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    rows=st.integers(1, 7),
    cached=st.integers(0, 6),
    slots=st.integers(1, 9),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 4]),
    size=st.sampled_from([32, 64, 96, 128]),
)
def test_agrees_with_the_loop(
    face: str, seed: int, batch: int, rows: int, cached: int, slots: int, kv_heads: int, group: int, size: int
) -> None:
    """Fails for wrong gathering, masking, grouping or scaling at any shape, K = 0 and P = 1 included."""
    inputs = random_inputs(seed, batch, rows, cached, slots, kv_heads * group, group, size)
    out = FACES[face](inputs, 0.125)
    assert out.dtype == np.float32 and out.shape == inputs["query"].shape
    np.testing.assert_allclose(out, naive(inputs, 0.125), atol=2e-6)


@each_face
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 12),
    cached=st.integers(0, 6),
    block=st.sampled_from([1, 2, 4, 32, 1000]),
    first=st.integers(0, 9),
)
def test_blocks_agree_with_the_loop(face: str, seed: int, rows: int, cached: int, block: int, first: int) -> None:
    """Fails if a new row attends beyond its block, misses part of it or a cached row, or if a padded row gives NaN."""
    inputs = random_inputs(seed, rows=rows, cached=cached)
    inputs["gather_indices"][:, :] = np.where(inputs["gather_indices"] < 0, -1, first + np.arange(rows))
    out = FACES[face](inputs, 0.125, block)
    np.testing.assert_allclose(out, naive(inputs, 0.125, block), atol=2e-6)


@each_face
@pytest.mark.parametrize("scale", [1.0, 0.03125])
def test_scale_is_an_attribute(face: str, scale: float) -> None:
    """Fails if an implementation uses a scale of its own, such as 1/sqrt(D)."""
    inputs = random_inputs(1)
    np.testing.assert_allclose(FACES[face](inputs, scale), naive(inputs, scale), atol=5e-6)


@each_face
def test_a_row_with_nothing_to_attend_gives_zero(face: str) -> None:
    """Fails if an empty softmax gives NaN, or if an empty row changes the others."""
    inputs = random_inputs(2, batch=3)
    inputs["cache_indices"][1] = inputs["gather_indices"][1] = -1
    out = FACES[face](inputs, 0.2)
    assert (out[1] == 0).all()
    np.testing.assert_allclose(out, naive(inputs, 0.2), atol=2e-6)


@each_face
def test_unequal_rows_do_not_mix(face: str) -> None:
    """Fails if a sequence attends another's slots or new rows, so that its result differs from that alone."""
    inputs = random_inputs(3, batch=3)
    together = FACES[face](inputs, 0.2)
    for b in range(3):
        alone = FACES[face]({n: a if "_cache" in n else a[b : b + 1] for n, a in inputs.items()}, 0.2)
        np.testing.assert_allclose(alone[0], together[b], atol=1e-6)


@each_face
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_unnamed_slots_are_never_read(face: str, poison: float) -> None:
    """Fails if a cache slot that no index names reaches the result."""
    inputs = random_inputs(4)
    inputs["cache_indices"][:] = [[0, 3, 5, 8], [2, 3, 8, 0]]
    clean = FACES[face](inputs, 0.2)
    unnamed = [1, 4, 6, 7]
    inputs["key_cache"][unnamed] = inputs["value_cache"][unnamed] = poison
    np.testing.assert_array_equal(FACES[face](inputs, 0.2), clean)


@each_face
@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_a_pad_weighs_nothing(face: str, poison: float) -> None:
    """Fails if -1 in `cache_indices` has a weight, or reads another slot than 0, which must be finite."""
    inputs = random_inputs(5)
    inputs["cache_indices"][:] = [[3, -1, 5, -1], [-1, -1, -1, 8]]
    expected = naive(inputs, 0.2)
    unnamed = [slot for slot in range(1, 9) if slot not in (3, 5, 8)]
    inputs["key_cache"][unnamed] = inputs["value_cache"][unnamed] = poison
    inputs["key_cache"][0] = inputs["value_cache"][0] = 1e30
    np.testing.assert_allclose(FACES[face](inputs, 0.2), expected, atol=2e-6)


@each_face
def test_a_padded_new_row_is_attended_by_nobody(face: str) -> None:
    """Fails if real rows attend a new row whose position is -1."""
    inputs = random_inputs(6)
    inputs["gather_indices"][:] = [[4, 9, 11, -1, -1], [2, 3, 5, 7, -1]]
    real = inputs["gather_indices"] >= 0
    expected = naive(inputs, 0.2)
    for name in ("key", "value", "query"):
        inputs[name][~real] = 1e15
    out = FACES[face](inputs, 0.2)
    np.testing.assert_allclose(out[real], expected[real], atol=2e-6)


@each_face
def test_order_of_the_slots_does_not_matter(face: str) -> None:
    """Fails if an implementation assumes ascending slots."""
    inputs = random_inputs(8)
    inputs["cache_indices"][:] = [0, 3, 5, 8]
    ascending = FACES[face](inputs, 0.2)
    inputs["cache_indices"] = inputs["cache_indices"][:, ::-1].copy()
    np.testing.assert_allclose(FACES[face](inputs, 0.2), ascending, atol=1e-6)


def test_strided_inputs() -> None:
    """Fails if the torch op assumes contiguous rows: caches of other layouts, reversed or sliced views."""
    inputs = random_inputs(9, batch=3)
    tensors = [torch.from_numpy(array) for array in inputs.values()]
    strided = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in tensors]
    strided[3] = torch.stack([tensors[3], tensors[3]], dim=-1)[..., 1]
    strided[0] = torch.cat([tensors[0], tensors[0]], dim=1)[:, : tensors[0].shape[1]]
    assert not any(t.is_contiguous() for t in strided)
    assert OP(*strided, 0.2).is_contiguous()
    torch.testing.assert_close(OP(*strided, 0.2), OP(*tensors, 0.2))


@pytest.mark.parametrize("dtype,tolerance", [(np.float16, 2e-3)])
@each_face
def test_half_precision(face: str, dtype: type[np.generic], tolerance: float) -> None:
    """Fails if an implementation upcasts its output or masks with a value that float16 cannot hold."""
    inputs = random_inputs(10, batch=3)
    inputs["cache_indices"][1] = inputs["gather_indices"][1] = -1
    inputs |= {name: inputs[name].astype(dtype) for name in FLOATS}
    out = FACES[face](inputs, 0.2)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(np.float64), naive(inputs, 0.2), atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_meta_tensors_give_shape_and_dtype(dtype: torch.dtype) -> None:
    """Fails if tracing gives another shape or dtype than running."""
    tensors = [torch.from_numpy(array) for array in random_inputs(11).values()]
    tensors = [t.to(dtype) if t.is_floating_point() else t for t in tensors]
    real = OP(*tensors, 0.2)
    meta = OP(*(t.to("meta") for t in tensors), 0.2)
    assert (meta.shape, meta.dtype, meta.stride()) == (real.shape, real.dtype, real.stride())
    assert meta.device.type == "meta"


def test_opcheck() -> None:
    """Fails if torch's own rules for custom operators are broken: schema, fake tensors, aliasing."""
    tensors = [torch.from_numpy(array) for array in random_inputs(12).values()]
    torch.library.opcheck(dpad.plugins.attention.sparse_suffix_attention, (*tensors, 0.2))


def test_the_function_body_is_standard_onnx() -> None:
    """Fails if the body needs an operator that a runtime without custom code does not have."""
    for function in onnx_face.function_protos(4, 2, block_causal=True):
        assert {node.domain for node in function.node} <= {""}
        assert all(onnx.defs.has(node.op_type) for node in function.node)
