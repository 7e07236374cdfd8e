"""`quantize_step`: the float32 step again, its products with weights in int8, for CPUs.

    shards = quantize_step(stage / "float32", stage / "w8a8")

Dynamic quantization (W8A8): a weight has one scale a column, the rows that meet it one scale a
step; sums are int32 and leave as float32. Weights keep 7 of the 8 bits, since CPUs without VNNI
add two products in 16 bits and would saturate. The second product of each MLP stays float32: its rows
are products of two others, with a few values so large that one scale leaves nothing of the rest. So do
attention, norms, embedding and caches; inputs and outputs are those of the float32 step.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

from dpad.runtime.errors import ExportError

STEP = "step.onnx"


def quantize_step(source: Path, folder: Path) -> list[Path]:
    """Write `folder`/step.onnx from the float32 step in `source`; returns its weight files.

    Raises `ExportError` if ONNX Runtime's quantizer cannot.
    """
    folder.mkdir(parents=True)
    with TemporaryDirectory(dir=folder) as scratch:
        try:
            plain = _folded(source, Path(scratch))
            quantize_dynamic(
                plain,
                folder / STEP,
                op_types_to_quantize=["MatMul"],
                nodes_to_exclude=_products_of_products(plain),
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                use_external_data_format=True,
            )
        except Exception as error:  # it raises whatever its parts raise
            raise ExportError(f"quantizing {source / STEP} failed: {error}") from error
    shards = sorted(path for path in folder.iterdir() if path.name != STEP)
    for shard in shards:
        shutil.copymode(folder / STEP, shard)  # onnx leaves them to their owner only
    return shards


def _folded(source: Path, scratch: Path) -> Path:
    """The step in `scratch` with its weights transposed once: only constants can be quantized.

    Copied first, because onnx refuses to read external data through hard links.
    """
    shutil.copytree(source, scratch / "float32")
    external = {
        "save_as_external_data": True,
        "all_tensors_to_one_file": True,
        "external_data_location": f"{STEP}.data",
    }
    quant_pre_process(scratch / "float32" / STEP, scratch / STEP, skip_symbolic_shape=True, **external)
    return scratch / STEP


def _products_of_products(step: Path) -> list[str]:
    """Names of the matrix products whose rows were just multiplied with others: the MLPs' second."""
    graph = onnx.load(step, load_external_data=False).graph
    multiplied = {node.output[0] for node in graph.node if node.op_type == "Mul"}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[0] in multiplied]
