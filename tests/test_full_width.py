"""Export, parity and text at published widths, with random weights and two layers, to save time.

`make test-full-width` runs the first test; the others cover every family in every precision, and plans.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import export, write_source

import dpad
from dpad.export.forecast.synthetic import write_checkpoint
from dpad.export.parity.compare import compare_bundle, require_passed
from dpad.export.progress import Progress
from dpad.runtime.bundle.bundle import Bundle

pytestmark = pytest.mark.slow

# SDAR-8B-Chat and Fast_dLLM_v2_7B, but with the vocabulary of the small checkpoints.
BLOCK_CAUSAL: dict[str, dict[str, Any]] = {
    "sdar": {"width": 4096, "heads": 32, "kv_heads": 8, "mlp_width": 12288, "head_dim": 128},
    "fast_dllm": {"width": 3584, "heads": 28, "kv_heads": 4, "mlp_width": 18944, "bd_size": 32},
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtypes": ("float32",)},
    "float16": {"dtypes": ("float16",)},
    "bfloat16": {"dtypes": ("bfloat16",)},
    "w8a8": {"dtypes": ("float32", "w8a8")},
    "weights-int8": {"dtypes": ("float32",), "weights": ("int8",)},
    "weights-int4": {"dtypes": ("float32",), "weights": ("int4",)},
    "weights-fp8": {"dtypes": ("float32",), "weights": ("fp8",)},
}


@pytest.fixture(params=["llada", "dream", *BLOCK_CAUSAL])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Two layers of a published layout; afterwards it is removed with the bundles beside it, since it is large.

    LLaDA and Dream are in bfloat16, as published; the others, which `dpad synth` does not write, are in float32.
    """
    family: str = request.param
    if family in BLOCK_CAUSAL:
        write_source(tmp_path / "source", family, max_length=512, **BLOCK_CAUSAL[family])
    else:
        write_checkpoint(family, tmp_path / "source", 2, 0, Progress())
    yield tmp_path / "source"
    shutil.rmtree(tmp_path)


def proven(source: Path, **settings: Any) -> Bundle:
    """Export a bundle, and check that all its steps pass parity in ONNX Runtime."""
    bundle = export(source, source.parent / "out", max_batch=1, max_length=512, **settings)
    report = require_passed(compare_bundle(bundle, Progress(), steps=1, trajectories=False, emulate=True))
    found = {e["variant"]: e["status"] for e in report["engines"] if e["engine"].startswith("onnxruntime-cpu")}
    assert found == dict.fromkeys(bundle.manifest.steps, "passed")
    return bundle


@pytest.mark.parametrize("source", ["llada", "dream"], indirect=True)
def test_two_layers_go_the_whole_way(source: Path) -> None:
    """Fails if a published width or vocabulary breaks the export, or float32 fails parity."""
    bundle = proven(source, dtypes=("float32",))
    with pytest.warns(UserWarning, match="random weights"):
        opened = dpad.load(bundle.directory)
    with opened:
        result = opened.generate("Why?", gen_length=32, decoder="fixed", steps=4)
    assert len(result.canvas) > 32 and result.nfe == 4


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_agrees(source: Path, precision: str) -> None:
    """Fails if a precision works for narrow models only: for wide ones it overflows, or a group does not divide."""
    proven(source, **PRECISIONS[precision])


@pytest.mark.parametrize("source", BLOCK_CAUSAL, indirect=True)
def test_block_causal_families_are_compiled(source: Path) -> None:
    """Fails if TensorRT-RTX cannot build the block-causal op at published widths, whose limits small models miss."""
    settings: dict[str, Any] = {"dtypes": ("bfloat16",), "targets": ("tensorrt-rtx",), "capabilities": ("8.9",)}
    bundle = export(source, source.parent / "out", max_batch=1, max_length=512, **settings)
    [engine] = bundle.manifest.engines
    weights = sum(bundle.path(file).stat().st_size for file in bundle.manifest.steps["bfloat16"].weights)
    assert bundle.path(engine.file).stat().st_size > weights
