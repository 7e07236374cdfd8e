"""The published baseline agrees with the runtime in every pass, and the end-to-end benchmarks report it correctly."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import export, write_source
from click.testing import CliRunner

import dpad

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import ladder  # noqa: E402
import measure  # noqa: E402
import plots  # noqa: E402
import sections  # noqa: E402
import sweep  # noqa: E402
import tables  # noqa: E402
from dpad.runtime.decoding.presets import read_presets  # noqa: E402
from published import Settings, decode  # noqa: E402

PROMPT = [11, 42, 7, 99, 23, 5, 61]
LENGTH, BLOCK = 96, 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladder")
    return export(write_source(folder / "source"), folder / "bundle", max_length=1024, dtypes=("w8a8",)).directory


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.02])
def test_the_published_decoder_is_the_runtime_pass_by_pass(
    bundle: Path, cache: str, thin: bool, threshold: float | None
) -> None:
    """Fails if the baseline decodes other tokens than the runtime, or in other passes."""
    rungs = ladder.Ladder(bundle, 1, dpad.Gaussian(3, 1.6, 64))
    schedule = rungs.schedule({"thin": thin}, LENGTH)
    options: dict[str, Any] = {"decoder": "fixed"} if threshold is None else {"threshold": threshold}
    contract = rungs.contract
    settings = Settings(
        LENGTH,
        contract.mask_token_id,
        contract.eos_token_id,
        threshold=threshold,
        cache=cache,
        kept=rungs.kept(schedule, len(PROMPT), LENGTH),
    )
    published = decode(rungs.network, PROMPT, settings)
    ours = rungs.fast.generate(PROMPT, gen_length=LENGTH, cache=cache, schedule=schedule, **options)
    assert published.nfe == ours.nfe
    assert np.array_equal(published.canvas.numpy(), ours.canvas)
    assert threshold is None or published.nfe < LENGTH, "no pass decided two tokens: nothing is compared"


def test_several_tokens_a_pass_spread_over_the_first_steps(bundle: Path) -> None:
    """Fails if the baseline's fixed steps are not those of the runtime."""
    rungs = ladder.Ladder(bundle, 1, dpad.Gaussian(3, 1.6, 64))
    contract = rungs.contract
    settings = Settings(LENGTH, contract.mask_token_id, contract.eos_token_id, steps=3 * 7, early_stop=False)
    published = decode(rungs.network, PROMPT, settings)
    ours = rungs.fast.generate(
        PROMPT,
        gen_length=LENGTH,
        cache="none",
        schedule=dpad.Full(),
        decoder="fixed",
        steps=21,
        early_termination=False,
    )
    assert published.nfe == ours.nfe == 21
    assert np.array_equal(published.canvas.numpy(), ours.canvas)


def run(command: Any, options: str) -> dict[str, Any]:
    ran = CliRunner().invoke(command, options.split(), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def test_ladder(bundle: Path, tmp_path: Path) -> None:
    """Fails if a rung is missing, executors differ in a token, or the chain does not multiply to the total."""
    out = tmp_path / "ladder.json"
    command = f"--length 64 --shots 0 --samples 2 --accuracy 1 --window 32 --threads 1 --bundle {bundle} --out {out}"
    found = run(ladder.main, command)
    assert found == json.loads(out.read_text())
    (cell,) = found["cells"]
    assert list(cell["rungs"]) == list(ladder.RUNGS)
    for name, rung in cell["rungs"].items():
        assert rung["differing_tokens"] == 0, name
        assert rung.get("published", rung["torch"])["nfe"] == rung["onnxruntime"]["nfe"]
        assert rung["torch"]["samples"] == (1 if name == "vanilla" else 2)
        assert rung["onnxruntime-w8a8"]["samples"] == rung["torch"]["samples"]
    assert cell["rungs"]["vanilla"]["published"]["nfe"]["median"] == 64
    assert cell["same_passes"]
    assert cell["w8a8"]["engine_a_pass"]["median"] > 0 and cell["w8a8"]["strict_match"] == 0.0
    links = [ratio for told, ratio in cell["chain"].items() if told != "total"]
    assert np.prod(links) == pytest.approx(cell["chain"]["total"], rel=0.01)
    page = sections.ladder(found)
    assert all(f"| {name} | " in page for name in ladder.RUNGS) and f"| total | {cell['chain']['total']:g} |" in page
    assert [met for _, _, met in tables.goals({"ladder": found})] == [cell["engine_at_same_passes"]["median"] >= 4]
    (figure,) = plots.PLOTS["ladder"](found).values()
    assert figure.axes
    assert run(ladder.main, f"{command} --resume") == found, "a cell that is there was measured again"
    other = CliRunner().invoke(ladder.main, [*command.split(), "--resume", "--k", "4"])
    assert other.exit_code != 0 and "measured with other settings" in other.output
    assert json.loads(out.read_text()) == found


def test_sweep(bundle: Path, tmp_path: Path) -> None:
    """Fails if a setting is missing, the preset's score is below the goal, or the preset is not valid in a bundle."""
    store = tmp_path / "presets.json"
    command = f"--problems 2 --long 0 --threshold 0.9 --threshold 0.02 --window 32 --threads 1 --bundle {bundle}"
    found = run(sweep.main, f"{command} --presets {store}")
    assert json.loads(store.read_text()) == {}, "a preset although nothing was right"
    best = found["tasks"]["problems"]["preset"]
    right = {"problems": {**found["tasks"]["problems"], "preset": best | {"score": 1.0}}}
    presets = read_presets(sweep.stored(right, "dual"))
    assert list(presets) == ["problems"] and presets["problems"]["threshold"] == best["threshold"]
    assert sections.sweep(found).count("\n| ") == 2 + len(found["tasks"]["problems"]["points"])
    task = found["tasks"]["problems"]
    assert len(task["points"]) == 2 * (1 + len(sweep.DROPOUTS))
    whole = next(p for p in task["points"] if p["schedule"] is None and p["threshold"] == 0.9)
    assert task["preset"]["score"] >= whole["score"] - sweep.WITHIN
    assert [met for _, _, met in tables.goals({"sweep": found})] == [whole["score"] > 0]
    (figure,) = plots.PLOTS["sweep"](found).values()
    assert figure.axes
    refused = CliRunner().invoke(sweep.main, ["--threshold", "0.5", "--bundle", str(bundle)])
    assert refused.exit_code == 2


def test_tables_say_which_weights_were_measured(tmp_path: Path) -> None:
    """Fails if numbers of older weights are not marked as such, or those of the current weights are."""
    facts = measure.model_facts(export(ROOT / "models" / "tiny", tmp_path).directory)
    assert facts == {"model": "tiny", "weights_sha256": {"tiny": measure.shipped("tiny")}}
    assert list(measure.shipped("tiny")) == ["model.safetensors"] and not measure.shipped("llada")
    old = facts | {"weights_sha256": {"tiny": {"model.safetensors": "0"}}}
    told = [tables.earlier(found) for found in (facts, old, {"model": "tiny and tiny-dream"}, {"model": "llada"})]
    assert told == ["", "tiny", "tiny and tiny-dream", ""]
    document = {"benchmark": "mixes", "machine": measure.machine(), "results": []}
    assert "Measured with earlier weights of tiny." in tables.report({"mixes": document | old}, {})
    assert "earlier" not in tables.report({"mixes": document | facts}, {})


def test_a_preset_is_the_fastest_that_is_good_enough() -> None:
    """Fails if a setting with too low a score, or a slower one, is recommended."""

    def point(score: float, seconds: float, schedule: dpad.Gaussian | None, threshold: float = 0.9) -> sweep.Setting:
        return sweep.Setting(threshold, schedule, [seconds], [score], [1])

    narrow, wide = dpad.Gaussian(3, 1.6, 32), dpad.Gaussian(3, 1.6, 128)
    whole = point(0.9, 9.0, None)
    fast_wrong, fast, nearly_as_fast = point(0.5, 1.0, narrow), point(0.895, 2.0, narrow), point(0.9, 2.01, wide)
    assert sweep.preset([whole, fast_wrong, fast]) is fast
    assert sweep.preset([whole, fast_wrong, fast, nearly_as_fast]) is nearly_as_fast
    assert sweep.preset([whole, fast_wrong]) is whole
