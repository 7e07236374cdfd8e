"""Traces one denoising step to ONNX without touching a weight.

    model = trace_step(architecture, config, contract, dtype="float16")
    attach_weights(model, tensors)     # initializers now point into the safetensors
    onnx_ir.save(model, "step.onnx")

The module is built and traced with fake tensors, so that weights take no memory. The initializers become ONNX external
data at the offsets of the original safetensors files.
"""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch._subclasses import FakeTensorMode

from dpad.export.step.shapes import settle_shapes
from dpad.models.checkpoint.checkpoint import FAMILIES, Config
from dpad.models.checkpoint.headers import TensorEntry
from dpad.models.rope import rotate_as_node
from dpad.models.step import Step
from dpad.plugins import onnx_face
from dpad.runtime.contract import StepContract, TensorSpec
from dpad.runtime.errors import ExportError

IR_VERSION = 11  # the first with opset 23

FOLD_LIMIT = 100  # most elements of a folded constant, so that an arange over the vocabulary stays an operator

# Sizes are distinct, and neither 0 nor 1, so that the tracer never identifies two axes.
_EXAMPLE = {"B": 2, "N": 46, "Q": 30, "K": 12, "R": 9, "P": 41}


def trace_step(architecture: str, config: Config, contract: StepContract, dtype: str) -> ir.Model:
    """The step of a family as ONNX; its weights have the checkpoint's names and no data."""
    onnx_face.register_schema()
    fake = FakeTensorMode()
    with fake, _default_dtype(getattr(torch, dtype)):
        step = Step(FAMILIES[architecture].Model(config, rotate_as_node)).eval()
    with fake:
        inputs = [example(spec) for spec in contract.inputs(dtype)]
    with quiet():
        try:
            program = torch.onnx.export(
                step,
                (*inputs[:4], inputs[4:]),
                dynamo=True,
                opset_version=onnx_face.OPSET,
                dynamic_shapes=_dynamic_shapes(contract, dtype),
                custom_translation_table=onnx_face.translation_table(),
                input_names=[spec.name for spec in contract.inputs(dtype)],
                output_names=[spec.name for spec in contract.outputs(dtype)],
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"tracing {architecture} failed: {error}") from error
        if program is None:
            raise ExportError(f"tracing {architecture} returned no program")
        return _finish(program.model, contract, dtype)


def _finish(model: ir.Model, contract: StepContract, dtype: str) -> ir.Model:
    """Name the weights and axes, tidy the graph, and add the op's function body to it."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if name.startswith("model."):  # Step.model
            value.const_value = None  # fake data must not be folded into the graph
            value.name = name.removeprefix("model.")
    settle_shapes(graph)
    optimizer.optimize_ir(model, inline=False, output_size_limit=FOLD_LIMIT)
    tidy(model, f"dpad-step-{contract.family}", [*contract.inputs(dtype), *contract.outputs(dtype)])
    for function in onnx_face.function_protos(contract.heads, contract.kv_heads, contract.block_causal):
        model.functions[function.domain, function.name, ""] = ir.serde.deserialize_function(function)
    return model


def tidy(model: ir.Model, name: str, specs: list[TensorSpec]) -> None:
    """Name a traced graph's values and axes as in the contract, and remove the tracer's metadata of this machine."""
    graph = model.graph
    for value, spec in zip([*graph.inputs, *graph.outputs], specs, strict=True):
        if value.name != spec.name:
            raise ExportError(f"{name} has the value {value.name} where the contract has {spec.name}")
        value.shape = ir.Shape(spec.axes)
    for node in graph.all_nodes():
        node.metadata_props.clear()  # stack traces with the paths of this machine
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = None  # the tracer's own symbols; shape inference rebuilds them
    graph.name = name
    model.producer_name, model.producer_version = "dpad", None


def attach_weights(model: ir.Model, tensors: dict[str, TensorEntry]) -> None:
    """Make every weight external data at its place in a file; file names are relative to the model's folder.

    A weight stored in a narrower dtype than the step's is cast in the graph. That is exact, and needs no second file.
    """
    for name, value in list(model.graph.initializers.items()):
        if value.const_value is not None:
            continue
        entry = tensors.get(name)
        if entry is None:
            raise ExportError(f"the traced step needs tensor {name}, which the checkpoint lacks")
        stored, computed = ir.DataType[_IR_DTYPES[entry.dtype]], value.dtype
        if computed is not None and stored != computed:
            cast_weight(model.graph, value, stored, computed)
        value.const_value = external(name, entry).const_value


def external(
    name: str, entry: TensorEntry, dtype: ir.DataType | None = None, shape: tuple[int, ...] | None = None
) -> ir.Value:
    """An initializer over the bytes of `entry`; `dtype` and `shape`, if given, replace those of the entry."""
    dtype = dtype or ir.DataType[_IR_DTYPES[entry.dtype]]
    sizes = ir.Shape(entry.shape if shape is None else shape)
    tensor = ir.ExternalTensor(
        entry.file.name, entry.offset, entry.length, dtype, shape=sizes, name=name, base_dir=entry.file.parent
    )
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=sizes, const_value=tensor)


def cast_weight(graph: ir.Graph, weight: ir.Value, stored: ir.DataType, dtype: ir.DataType) -> None:
    """Cast `weight`, which is `stored` in a narrower dtype, to `dtype` for the nodes that use it.

    The Cast and the Transpose of its result are the first nodes in the graph. ONNX Runtime, which orders nodes from the
    outputs back to the inputs, then runs both directly before the product, which keeps the peak of memory low. For a
    Gather (the embedding) the gathered rows are cast instead of the table, which is large.
    """
    weight.type = ir.TensorType(stored)  # a new object: copies of a step share the old one
    uses = weight.uses()
    for lookup in [use.node for use in uses if use.node.op_type == "Gather"]:
        rows = lookup.outputs[0]
        cast = ir.node("Cast", inputs=[rows], attributes={"to": int(dtype)})
        rows.replace_all_uses_with(cast.outputs[0])
        cast.replace_input_with(0, rows)
        cast.outputs[0].name, cast.outputs[0].dtype = rows.name, dtype
        rows.name, rows.dtype = f"{rows.name}.stored", stored
        graph.insert_after(lookup, cast)
    products = [use for use in uses if use.node.op_type != "Gather"]
    if products:
        cast = ir.node("Cast", inputs=[weight], attributes={"to": int(dtype)})
        cast.outputs[0].name, cast.outputs[0].dtype = f"{weight.name}.{dtype.name.lower()}", dtype
        graph.insert_before(graph[0], cast)
        for use in products:
            use.node.replace_input_with(use.idx, cast.outputs[0])
        turned = [use.node for use in products if use.node.op_type == "Transpose"]
        graph.remove(turned)
        graph.insert_after(cast, turned)


def check_onnx(path: Path, weights: Iterable[Path]) -> None:
    """Run onnx's checker and strict shape inference on `path`, whose external data are in the files `weights`.

    The checker refuses hard links, and the weights of a bundle are hard links. It reads only the sizes of external
    files, so it gets sparse files of the same sizes instead. Raises `ExportError`.
    """
    onnx_face.register_schema()
    with TemporaryDirectory() as scratch:
        copy = Path(shutil.copy(path, scratch))
        for file in weights:
            with (Path(scratch) / file.name).open("wb") as stand_in:
                stand_in.truncate(file.stat().st_size)
        try:
            onnx.checker.check_model(str(copy), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"{path} does not pass onnx's checker: {error}") from error


_IR_DTYPES = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}


def example(spec: TensorSpec) -> torch.Tensor:
    """Zeros of the example shape with which the tracer runs."""
    sizes = [axis if isinstance(axis, int) else _EXAMPLE[axis] for axis in spec.axes]
    return torch.zeros(sizes, dtype=getattr(torch, spec.dtype))


def _dynamic_shapes(contract: StepContract, dtype: str) -> tuple[Any, ...]:
    # No upper bounds: the graph is valid for any size, and the runtime enforces the contract's limits.
    dims = {axis: torch.export.Dim(axis, min=low) for axis, (low, _) in contract.axis_ranges().items()}
    named = [
        {place: dims[axis] for place, axis in enumerate(spec.axes) if isinstance(axis, str)}
        for spec in contract.inputs(dtype)
    ]
    return (*named[:4], named[4:])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's own warnings (missing torchvision, weights without data) off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
