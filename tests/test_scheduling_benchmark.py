"""The benchmarks of simulated scheduling, random mixes and two checkouts: their documents and comparisons."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import export, write_source
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import ab  # noqa: E402
import dpad  # noqa: E402
import mixes  # noqa: E402
import scheduling  # noqa: E402
import tables  # noqa: E402
from dpad.runtime.engines.base import Engine  # noqa: E402
from dpad.runtime.engines.step import StepInputs, StepOutputs  # noqa: E402
from simulation import NullEngine, Pass, perfect, record, simulate  # noqa: E402


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scheduling")
    return export(write_source(folder / "source"), folder / "bundle", max_length=1024).directory


@pytest.mark.parametrize(
    ("lengths", "arrivals", "limit", "passes"),
    [
        ([5, 1, 1, 1], [0, 0, 0, 0], 2, 5),  # the longest runs from the start, and the short ones beside it
        ([3, 3, 3], [0, 0, 0], 2, 5),
        ([2, 2], [0, 9], 8, 4),  # passes without a request are not counted
        ([4, 2], [0, 1.5], 8, 4),
        ([1] * 16, [0] * 16, 8, 2),
    ],
)
def test_a_perfect_packing(lengths: list[int], arrivals: list[float], limit: int, passes: int) -> None:
    """Fails if the perfect packing is not the best one, or runs requests before they arrive."""
    assert perfect(lengths, arrivals, limit) == passes


def test_a_simulation_runs_every_recorded_pass() -> None:
    """Fails if passes are lost or run before their request arrives, or waits are counted without a wait."""
    traces = [[Pass(True, 40, 0), Pass(False, 32, 8)] * turns for turns in (1, 3, 2)]
    alone = simulate(NullEngine(8, 300), traces[:1], [5.0], running=16)
    assert alone.passes == 2 and alone.decodes[0].longest.passes == alone.decodes[0].queued.passes == 0
    found = simulate(NullEngine(8, 300), traces, [0.0, 0.0, 0.0], running=1)
    assert found.passes == sum(map(len, traces))
    assert [decode.queued.passes for decode in found.decodes] == [0, 2, 8]
    assert all(decode.longest.passes == 0 for decode in found.decodes)
    together = simulate(NullEngine(8, 300), traces, [0.0, 0.0, 0.0], running=16)
    assert together.passes >= perfect([2, 6, 4], [0, 0, 0], 8) == 6
    assert together.seconds < found.seconds


def test_decodes_are_recorded_as_they_ran(bundle: Path) -> None:
    """Fails if the recorded shapes differ from those of the decode."""
    with dpad.load(bundle, engine="onnxruntime-cpu", threads=1) as model:
        ways: dict[str, Any] = {"cache": "dual", "schedule": dpad.Full(), "early_termination": False}
        options = model.options(gen_length=64, decoder="fixed", steps=4, **ways)
        (trace,) = record(model.engine, [(dpad.Request((2, 3, 7)), options)])
        shapes = [(one.refresh, one.queries, one.cached) for one in trace]
    assert shapes == [(True, 67, 0), (False, 32, 35)] * 2


def test_scheduling(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the table lacks a result, a ratio is below 1, or the goal is judged by other numbers."""
    monkeypatch.setattr(scheduling, "LOADS", (1.0, float("inf")))
    monkeypatch.setattr(scheduling, "TOGETHER", (1, 3))
    out = tmp_path / "scheduling.json"
    command = f"--bundle {bundle} --decodes 4 --seeds 2 --rounds 1 --threads 1 --out {out}"
    ran = CliRunner().invoke(scheduling.main, command.split(), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found == json.loads(out.read_text())
    assert len(found["passes"]) == 3 * 2 * (len(scheduling.RUNNING) + 1)
    assert all(one["worst"] >= one["ratio"]["median"] >= 1 for one in found["passes"])
    assert [one["sequences"] for one in found["host"]] == [1, 1, 1, 3, 3, 3]
    assert all(one["pass_us"]["median"] > one["step_us"]["median"] > 0 for one in found["host"])
    assert all(one["running_passes"] <= one["bound_passes"] for one in found["waits"])
    own = [(one["workload"], one["load"], one["ratio"]) for one in found["passes"] if _is_judged(one)]
    judged = found["goal"]["judged"]
    assert [(one["workload"], one["load"], one["ratio"]) for one in judged] == own and len(own) == 6
    assert all(one["met"] is (one["ratio"]["median"] <= 1.15) for one in judged)
    page = tables.report({"scheduling": found}, {})
    assert "passes at most 1.15 times a perfect packing, LLaDA-8B's shapes at load 1.0 |" in page
    assert page.count("\n| 3 | ") == 3


def _is_judged(one: dict[str, Any]) -> bool:
    return bool(one["engine"] == "gpu" and one["max_running"] == scheduling.OWN)


class Leaky(Engine):
    """An engine whose step lets one sequence's token affect the next sequence, if there is one."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.name, self.contract, self.dtype, self.slots = engine.name, engine.contract, engine.dtype, engine.slots
        self._engine = engine

    def _step(self, inputs: StepInputs) -> StepOutputs:
        outputs = self._engine.step(inputs)
        if len(inputs.canvas) < 2:
            return outputs
        tokens = outputs.token_ids.copy()
        tokens[0, 0] = (tokens[1, 0] + 1) % 100
        decided = outputs.decisions and replace(outputs.decisions, token_ids=tokens)
        return replace(outputs, token_ids=tokens, decisions=decided)


def test_mixes(bundle: Path) -> None:
    """Fails if a changed token is not reported, a difference is reported without one, or options are not varied."""
    with dpad.load(bundle, engine="onnxruntime-cpu", threads=1) as model:
        right = mixes.compare(model.engine, [(2, 3, 7)], mixes=4, seed=0)
        wrong = mixes.compare(Leaky(model.engine), [(2, 3, 7)], mixes=2, seed=0)
        contract = model.engine.contract
    assert right["differences"] == [] and right["differing_tokens"] == 0
    assert right["requests"] >= 8 and 0 < right["passes_together"] < right["passes_alone"]
    assert wrong["differences"] and wrong["differing_tokens"] > 0
    first = wrong["differences"][0]
    assert first["alone"] != first["together"] and first["pass"] >= 1
    rng = np.random.default_rng(0)
    drawn = [mixes.draw_options(rng, contract) for _ in range(300)]
    for options in drawn:
        options.check(contract)
    for name, least in (("decoder", 5), ("cache", 4), ("pace", 2), ("block_length", 4), ("early_termination", 2)):
        assert len({getattr(options, name) for options in drawn}) == least
    assert {type(options.schedule) for options in drawn} == {dpad.Full, dpad.Gaussian, dpad.Uniform}
    document = {"benchmark": "mixes", "results": [{"model": "random", **wrong}]}
    assert f"| random | 2 | {wrong['requests']} |" in tables.TABLES["mixes"][1](document)
    assert [met for _, _, met in tables.goals({"mixes": document})] == [False]


def test_two_checkouts_take_turns(bundle: Path) -> None:
    """Fails if a side decodes another prompt, or ratios are not after over before."""
    options = ab.options_of({"decoder": "threshold", "threshold": 0.9, "cache": "dual", "thin": True}, 64)
    side = ab.Side(ROOT, bundle, 1)
    try:
        decoded = side.decode("w7 w8", options)
    finally:
        side.close()
    with dpad.load(bundle, engine="onnxruntime-cpu", threads=1) as model:
        thin = dpad.Gaussian(3.0, 1.6, 64)
        wanted = model.generate("w7 w8", gen_length=64, threshold=0.9, cache="dual", schedule=thin)
    assert (decoded["canvas"], decoded["nfe"]) == (wanted.canvas.tolist(), wanted.nfe)
    assert 0 < decoded["inside"] < decoded["seconds"]
    other = decoded | {"seconds": 2 * decoded["seconds"], "canvas": [*decoded["canvas"][:-1], -1]}
    found = ab.compared({"before": [decoded], "after": [other]})
    assert found["sample"]["ratio"]["median"] == 2 and found["step"]["ratio"]["median"] == 1
    assert (found["differing_tokens"], found["differing_passes"]) == (1, 0)
    cells: list[dict[str, Any]] = [{"length": 64, "shots": 0, "rungs": {"it": found}}]
    document = {"benchmark": "ab", "goal": {"at_most": ab.GOAL}, "cells": cells}
    assert "| 64 | 0 | it | " in tables.TABLES["ab"][1](document)
    assert [met for _, _, met in tables.goals({"ab": document})] == [False]
