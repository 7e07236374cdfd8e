"""`quantize_step`: makes the W8A8 step for CPUs, in which the float32 step's products with weights are in int8.

    shards = quantize_step(stage / "float32", stage / "w8a8")

This is dynamic quantization: a weight has one scale per column, and the rows multiplied with it have one scale per
step. Sums are int32 and are converted to float32. Weights use only 7 of the 8 bits, since CPUs without VNNI add two
products in 16 bits and would saturate. The second product of each MLP stays in float32: its rows are elementwise
products with a few very large values, so that one scale would round most of the others to zero. Attention, norms,
embedding and caches stay in float32 too, and inputs and outputs are those of the float32 step.
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

    Raises `ExportError` if ONNX Runtime's quantizer fails.
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
        except Exception as error:  # the quantizer has no error type of its own
            raise ExportError(f"quantizing {source / STEP} failed: {error}") from error
    shards = sorted(path for path in folder.iterdir() if path.name != STEP)
    for shard in shards:
        shutil.copymode(folder / STEP, shard)  # onnx writes files that only their owner can read
    return shards


def _folded(source: Path, scratch: Path) -> Path:
    """Write the step into `scratch` with the Transposes of weights folded, since only constants can be quantized.

    The files are copied first, because onnx refuses to read external data through hard links.
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
    """Names of the MatMuls whose rows come from a Mul: the second product of each MLP."""
    graph = onnx.load(step, load_external_data=False).graph
    multiplied = {node.output[0] for node in graph.node if node.op_type == "Mul"}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[0] in multiplied]
