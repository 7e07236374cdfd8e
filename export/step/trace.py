"""Traces one denoising step to ONNX without touching a weight.

    model = trace_step(architecture, config, contract, dtype="float16")
    attach_weights(model, tensors)     # initializers now point into the safetensors
    onnx_ir.save(model, "step.onnx")

The module is built and traced under fake tensors, so memory does not grow with the
weights; the initializers become ONNX external data at the offsets of the original file.
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

FOLD_LIMIT = 100  # elements of a folded constant: an arange over the vocabulary stays an operator

# Distinct sizes, none 0 or 1, so that the tracer never takes two axes for one.
_EXAMPLE = {"B": 2, "N": 46, "Q": 30, "K": 12, "R": 9, "P": 41}


def trace_step(architecture: str, config: Config, contract: StepContract, dtype: str) -> ir.Model:
    """The step of a family as ONNX; its weights are named as in the checkpoint and have no data."""
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
            raise ExportError(f"tracing {architecture} gave no program")
        return _finish(program.model, contract, dtype)


def _finish(model: ir.Model, contract: StepContract, dtype: str) -> ir.Model:
    """Name the weights and axes, tidy the graph, and ship the op's meaning with it."""
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if name.startswith("model."):  # Step.model
            value.const_value = None  # no data: nothing can be folded into the graph
            value.name = name.removeprefix("model.")
    settle_shapes(graph)
    optimizer.optimize_ir(model, inline=False, output_size_limit=FOLD_LIMIT)
    tidy(model, f"dpad-step-{contract.family}", [*contract.inputs(dtype), *contract.outputs(dtype)])
    for function in onnx_face.function_protos(contract.heads, contract.kv_heads, contract.block_causal):
        model.functions[function.domain, function.name, ""] = ir.serde.deserialize_function(function)
    return model


def tidy(model: ir.Model, name: str, specs: list[TensorSpec]) -> None:
    """Name a traced graph and its axes as the contract does, and take out what the tracer left of this machine."""
    graph = model.graph
    for value, spec in zip([*graph.inputs, *graph.outputs], specs, strict=True):
        if value.name != spec.name:
            raise ExportError(f"{name} has {value.name} where the contract has {spec.name}")
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
    """Point every weight at its bytes; file names are relative to the model's folder.

    A weight that is stored narrower than the step computes is cast in the graph: exact, and the file stays one.
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
    """An initializer at the bytes of `entry`, taken as that of another `dtype` and `shape` where they are given."""
    dtype = dtype or ir.DataType[_IR_DTYPES[entry.dtype]]
    sizes = ir.Shape(entry.shape if shape is None else shape)
    tensor = ir.ExternalTensor(
        entry.file.name, entry.offset, entry.length, dtype, shape=sizes, name=name, base_dir=entry.file.parent
    )
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=sizes, const_value=tensor)


def cast_weight(graph: ir.Graph, weight: ir.Value, stored: ir.DataType, dtype: ir.DataType) -> None:
    """Let the nodes that take `weight`, which is `stored` narrower, compute in `dtype`.

    The cast comes first in the graph, and so does turning its result: ONNX Runtime, which goes from the outputs to
    the inputs and to the last node first, then runs both just before the product, where memory is short. A lookup
    finds its rows as they are stored and these are cast: a table is large, and few of its rows are used.
    """
    weight.type = ir.TensorType(stored)  # another one: copies of a step share theirs
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
    """onnx's checker and strict shape inference on `path`, whose external data are `weights`.

    The checker refuses hard links, which bundles are made of; it looks at the size of the
    external files only, so it is shown sparse stand-ins of the same size.
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
    """Zeros of the shape that the tracer is shown."""
    sizes = [axis if isinstance(axis, int) else _EXAMPLE[axis] for axis in spec.axes]
    return torch.zeros(sizes, dtype=getattr(torch, spec.dtype))


def _dynamic_shapes(contract: StepContract, dtype: str) -> tuple[Any, ...]:
    # No upper bounds: the graph holds for any size, the contract's limits are the runtime's to keep.
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
