"""Published widths: random weights, through export and parity, to text. Two layers, for time.

The first test is what `make test-full-width` runs; the others are every other precision and family.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bundles import export, write_source

import dpad
from dpad.export.parity import compare_bundle, require_passed
from dpad.export.progress import Progress
from dpad.export.synthetic import write_checkpoint
from dpad.runtime.bundle import Bundle

pytestmark = pytest.mark.slow

# SDAR-8B-Chat and Fast_dLLM_v2_7B; the vocabulary is that of all small checkpoints.
BLOCK_CAUSAL: dict[str, dict[str, Any]] = {
    "sdar": {"width": 4096, "heads": 32, "kv_heads": 8, "mlp_width": 12288, "head_dim": 128},
    "fast_dllm": {"width": 3584, "heads": 28, "kv_heads": 4, "mlp_width": 18944, "bd_size": 32},
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "float16": {"dtypes": ("float16",)},
    "weights-int8": {"dtypes": ("float32",), "weights": ("int8",)},
    "weights-int4": {"dtypes": ("float32",), "weights": ("int4",)},
    "weights-fp8": {"dtypes": ("float32",), "weights": ("fp8",)},
}


@pytest.fixture(params=["llada", "dream"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Two layers of a published layout in bfloat16; afterwards all is removed, bundles beside it too: it is large."""
    write_checkpoint(request.param, tmp_path / "source", 2, 0, Progress())
    yield tmp_path / "source"
    shutil.rmtree(tmp_path)


def proven(source: Path, **settings: Any) -> Bundle:
    """A bundle whose one step agrees with PyTorch in ONNX Runtime."""
    bundle = export(source, source.parent / "out", max_batch=1, max_length=512, **settings)
    report = require_passed(compare_bundle(bundle, Progress(), steps=1, trajectories=False))
    assert [e["status"] for e in report["engines"] if e["engine"].startswith("onnxruntime-cpu")] == ["passed"]
    return bundle


def test_two_layers_go_the_whole_way(source: Path) -> None:
    """Fails if a real width or vocabulary does not fit what small models fit, or float32 does not agree."""
    bundle = proven(source, dtypes=("float32",))
    with pytest.warns(UserWarning, match="random weights"):
        opened = dpad.load(bundle.directory)
    with opened:
        result = opened.generate("Why?", gen_length=32, decoder="fixed", steps=4)
    assert len(result.canvas) > 32 and result.nfe == 4


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_agrees(source: Path, precision: str) -> None:
    """Fails if a precision holds in narrow models only: an overflow, or a group that does not divide a width."""
    proven(source, **PRECISIONS[precision])


@pytest.mark.parametrize("family", BLOCK_CAUSAL)
def test_block_causal_families_agree(family: str, tmp_path: Path) -> None:
    """Fails if a block-causal family holds in narrow models only."""
    proven(write_source(tmp_path / "source", family, max_length=512, **BLOCK_CAUSAL[family]), dtypes=("float32",))
    shutil.rmtree(tmp_path)
