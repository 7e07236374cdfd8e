"""The published layouts at full width: random weights, through export and parity, to text. Two layers, for time."""

from pathlib import Path

import pytest

import dpad
from dpad.export.parity import compare_bundle, require_passed
from dpad.export.pipeline import ExportSettings, export_bundle
from dpad.export.progress import Progress
from dpad.export.synthetic import write_checkpoint

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("model", ["llada", "dream"])
def test_two_layers_go_the_whole_way(model: str, tmp_path: Path) -> None:
    """Fails if a real width or vocabulary does not fit what small models fit, or float32 does not agree."""
    write_checkpoint(model, tmp_path / "source", 2, 0, Progress())
    settings = ExportSettings(dtypes=("float32",), max_batch=1, max_length=512)
    bundle, _ = export_bundle(str(tmp_path / "source"), tmp_path / "out", settings, Progress())
    report = require_passed(compare_bundle(bundle, Progress(), steps=1, trajectories=False))
    assert [engine["status"] for engine in report["engines"] if engine["engine"] == "onnxruntime-cpu"] == ["passed"]
    with pytest.warns(UserWarning, match="random weights"):
        opened = dpad.load(bundle.directory)
    with opened:
        result = opened.generate("Why?", gen_length=32, decoder="fixed", steps=4)
    assert len(result.canvas) > 32 and result.nfe == 4
