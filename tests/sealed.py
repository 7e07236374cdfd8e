"""Bundles changed by an attacker, who also computes new hashes and a new digest, so that all checks of damage pass.

reseal(directory)                                   # after files were changed
edit_graph(directory, lambda graph: ...)            # step.onnx through onnx
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx
from bundles import edit
from onnx import helper

STEP = "float32/step.onnx"


def reseal(directory: Path) -> None:
    """Update the manifest to the files that are there."""
    files = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / "manifest.json"):
        data = path.read_bytes()
        files[path.relative_to(directory).as_posix()] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(directory, lambda manifest: manifest.update(files=files))


def edit_graph(directory: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change the float32 step by `change`; its weights stay where they are."""
    model = onnx.load(directory / STEP, load_external_data=False)
    change(model)
    (directory / STEP).unlink()  # it may be a hard link
    (directory / STEP).write_bytes(model.SerializeToString())
    reseal(directory)


def answer(
    model: onnx.ModelProto, name: str, op: str, *others: float, repeats: bool = False, **attributes: int
) -> None:
    """Replace the output `name` by `op` of its value; its shape is not declared."""
    graph = model.graph
    for node in graph.node:
        node.output[:] = [f"{name}.true" if output == name else output for output in node.output]
        node.input[:] = [f"{name}.true" if used == name else used for used in node.input]
    (declared,) = [value for value in graph.output if value.name == name]
    kind = declared.type.tensor_type
    for index, dim in enumerate(kind.shape.dim):
        dim.Clear()
        dim.dim_param = f"{name}.{index}"
    constants = []
    for index, value in enumerate(others):
        constants.append(f"{name}.{index}")
        graph.initializer.append(helper.make_tensor(constants[-1], kind.elem_type, [], [value]))
    inputs = [f"{name}.true"] * (2 if repeats else 1) + constants
    graph.node.append(helper.make_node(op, inputs, [name], **attributes))
