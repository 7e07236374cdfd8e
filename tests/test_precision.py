"""The benchmark of precisions at a small size: every step is measured under its own name."""

import json
import sys
from pathlib import Path

from bundles import write_source
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import precision
import sections
from dpad.runtime.bundle.variant import PACKED


def test_precision(tmp_path: Path) -> None:
    """Fails if a precision or a packing choice is missing, an engine runs another step, or the table lacks a number."""
    source = write_source(tmp_path / "source", mlp_width=128)
    options = f"--model {source} --limit 1 --steps 1 --gen-length 32 --threads 1"
    ran = CliRunner().invoke(precision.main, options.split(), catch_exceptions=False)
    found = json.loads(ran.stdout.splitlines()[-1])
    (model,) = found["models"]
    rows = {row["step"]: row for row in model["precisions"]}
    assert tuple(rows) == precision.VARIANTS
    assert rows["float32"]["logits"] == {"mean_abs": 0, "max_abs": 0, "relative": 0, "same_token": 1}
    off = {step: row["logits"]["relative"] for step, row in rows.items()}
    assert 0 < off["float16"] < off["bfloat16"] < off["float32-weights-fp8"] < off["float32-weights-int4"]
    assert rows["float32-weights-int4"]["weights_bytes"] < rows["float32-weights-int8"]["weights_bytes"]
    assert {(c["weights"], c["part"]) for c in model["choices"]} == {
        (weights, part) for weights in PACKED for part in ("layers", "head")
    }
    assert f"{model['choices'][-1]['logits']['max_abs']:g}" in sections.precision(found)
