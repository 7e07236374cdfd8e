"""The benchmarks of full-size checkpoints on a narrow layout, and the tables of their documents."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from test_synthetic import NARROW

from dpad.export.forecast.layouts import LAYOUTS

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import forecast
import full_size
import sections
import tables

DOCUMENTS = Path(__file__).parent.parent / "docs/benchmarks"


@pytest.mark.slow
def test_stages_run_and_tell_seconds_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a stage does not do its command's work, or omits a value that a table needs."""
    monkeypatch.setitem(LAYOUTS, "llada", replace(LAYOUTS["llada"], config=LAYOUTS["llada"].config | NARROW["llada"]))
    stages = {
        "synth": full_size.staged(partial(full_size.synthesise, model="llada", layers=2, work=tmp_path)),
        "export": full_size.staged(partial(full_size.export, work=tmp_path, dtypes=("float32",))),
        "parity": full_size.staged(partial(full_size.parity, work=tmp_path, steps=1)),
    }
    assert stages["synth"]["layers"] == 2 and stages["synth"]["bytes"] == 2 * stages["synth"]["weights"]
    assert [engine["status"] for engine in stages["parity"]["engines"]] == ["passed"]
    for facts in stages.values():
        assert facts["peak_mib"] >= facts["own_mib"] > 0
        assert facts["seconds"] >= facts["reading"] >= 0
    assert 0 < stages["export"]["reading"] < stages["export"]["seconds"]
    assert any("hash checkpoint" in name for name in stages["export"]["tasks"])
    text = sections.full_size({"models": {"llada": {"stages": stages}}})
    assert "### llada: 2 layers" in text and text.count("\n| ") == 5


def test_models_of_another_machine_are_not_kept(tmp_path: Path) -> None:
    """Fails if a document mixes measurements of two machines, or a model measured on this one is dropped."""
    out = tmp_path / "full_size.json"
    assert full_size.kept(out, {"cpu": "a"}) == {}
    out.write_text(json.dumps({"machine": {"cpu": "a"}, "models": {"llada": {}}}))
    assert full_size.kept(out, {"cpu": "a"}) == {"llada": {}}
    assert full_size.kept(out, {"cpu": "b"}) == {}


@pytest.mark.parametrize("weights", [pytest.param("full", marks=pytest.mark.slow), "int4"])
def test_a_build_is_compared_with_its_forecast(weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the builder's activations or the plan's size are not measured."""
    monkeypatch.setitem(LAYOUTS, "llada", replace(LAYOUTS["llada"], config=LAYOUTS["llada"].config | NARROW["llada"]))
    forecast.prepare("llada", weights, 1, tmp_path)
    found = forecast.built(tmp_path / "bundle", 1, 512)
    assert found["activations_mib"] > 0 and found["plan_mib"] > 0 and found["build_mib"] > 0
    assert 0 < found["plan_ratio"] <= 1  # a plan holds more than its weights
    point = {"model": "llada", "weights": weights, "layers": 1, "batch": 1, "length": 512}
    text = sections.forecast({"results": [point | found]})
    assert f"| llada | {weights} | 1 | 1 | 512 | {found['activations_mib']} |" in text


@pytest.mark.parametrize("name", ["full_size", "forecast"])
def test_what_is_committed_can_be_read(name: str) -> None:
    """Fails if a committed document cannot be formatted as its table."""
    document = json.loads((DOCUMENTS / f"{name}.json").read_text("utf-8"))
    assert tables.TABLES[name][1](document).strip() in (DOCUMENTS / "results.md").read_text("utf-8")
