"""The benchmarks of `make bench` at small sizes: tests of their documents, never of the measured times."""

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from bundles import export, write_source
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import batching  # noqa: E402
import loop_overhead  # noqa: E402
import plots  # noqa: E402
import sampling  # noqa: E402
import step_floor  # noqa: E402
import tables  # noqa: E402
from dpad.models.checkpoint.checkpoint import parse_config  # noqa: E402

COMMANDS = {
    "step_floor": (step_floor.main, "--rows 32 --rows 128 --cached 40 --threads 1 --rounds 1 --repeat 1"),
    "batching": (
        batching.main,
        "--size 2 --size 3 --width 0 --width 1000000 --requests 5 --gen-length 64 --threads 1 --rounds 1",
    ),
    "loop_overhead": (loop_overhead.main, "--gen-length 32 --threads 1 --rounds 1"),
}
COMMON = {"benchmark", "machine", "model", "weights_sha256", "engine", "dtype", "rounds"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    return export(write_source(folder / "source"), folder / "bundle", max_length=1024).directory


@pytest.fixture(scope="module")
def folder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the JSON files of all benchmarks."""
    folder = tmp_path_factory.mktemp("results")
    for name, (command, options) in COMMANDS.items():
        out = folder / f"{name}.json"
        ran = run(command, f"{options} --bundle {bundle} --out {out}")
        assert ran == json.loads(out.read_text()), f"{name}: the last line and the file differ"
    return folder


def run(command: click.Command, options: str) -> dict[str, Any]:
    """Run a benchmark, and return the document on the last line of its standard output."""
    ran = CliRunner().invoke(command, options.split(), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    document = json.loads(ran.stdout.splitlines()[-1])
    assert isinstance(document, dict)
    return document


def document(folder: Path, name: str) -> dict[str, Any]:
    found = json.loads((folder / f"{name}.json").read_text())
    assert found["benchmark"] == name and found.keys() >= COMMON
    assert found["machine"]["cores"] >= 1 and found["machine"]["libraries"]["onnxruntime"]
    return dict(found)


def test_step_floor(folder: Path) -> None:
    """Fails if a case is missing, a ratio is not the step over its floor, or the goal is not judged."""
    found = document(folder, "step_floor")
    cases = [(r["cache"], r["rows"], r["decoded_rows"], r["cached_rows"]) for r in found["results"]]
    assert cases == [("none", 32, 32, 0), ("none", 128, 32, 0), ("dual", 32, 32, 40)]
    for result in found["results"]:
        assert set(result["floors"]) == {
            "onnxruntime",
            "onnxruntime with attention",
            "torch",
            "torch with attention",
        }
        for floor in result["floors"].values():  # with one round, the ratio of the medians is exact
            ratio = result["step_ms"]["median"] / floor["ms"]["median"]
            assert floor["ratio"]["median"] == pytest.approx(ratio, rel=2e-3)
    ratio = found["results"][1]["floors"]["onnxruntime"]["ratio"]["median"]
    assert found["goal"]["ratio"] == {"1": ratio} and found["goal"]["met"] == {"1": ratio <= 1.5}


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_floor_multiplies_by_every_weight(tmp_path: Path, family: str) -> None:
    """Fails if the floor leaves out a matrix, or if ONNX Runtime and torch do not compute the same products."""
    raw = json.loads((write_source(tmp_path, family, heads=4) / "config.json").read_text())
    config = parse_config(raw)[1]
    case = step_floor.Case(rows=6, decoded=3, cached=5)
    work = step_floor.products(config, case, attention=True)
    from checkpoints import weight_shapes

    matrices = {name: shape for name, shape in weight_shapes(raw).items() if len(shape) == 2}
    matrices.pop(next(name for name in matrices if "wte" in name or "embed" in name))  # its rows are only looked up
    shapes = sorted(array.shape for array in work.weights.values())
    assert shapes == sorted((inner, outer) for outer, inner in matrices.values())
    with_onnx, with_torch = step_floor.onnx_call(work, 1)(), step_floor.torch_call(work)()
    last = config.layers - 1
    for stem, name in (("k", f"k {last}"), ("up", f"up {last}"), ("heads", f"heads {last}"), ("logits", "logits 0")):
        np.testing.assert_allclose(with_onnx[name], with_torch[stem].numpy(), atol=1e-3, rtol=1e-3)
    assert with_onnx["logits 0"].shape == (3, config.vocab_size)
    assert with_onnx[f"heads {last}"].size == 6 * config.heads * config.head_size


def test_batching(folder: Path) -> None:
    """Fails if other requests in a pass change a token, padding is not counted, or a variant is missing."""
    found = document(folder, "batching")
    assert found["mismatches"] == 0 and len(set(found["prompt_tokens"])) > 1
    widths = list(dict.fromkeys((found["ways"][0]["pass_rows"], 0, 10**6)))
    tried = [(way["running"], way["pass_rows"]) for way in found["ways"]]
    assert tried == [(1, widths[0]), *((size, width) for size in (2, 3) for width in widths)]
    one = found["ways"][0]
    assert one["padded_query_rows"] == 0 and one["sequences_a_pass"] == 1
    for way in found["ways"]:
        seconds = way["s_per_sample"]["median"]
        assert way["tokens_per_s"]["median"] == pytest.approx(way["tokens"] / 5 / seconds, rel=2e-3)
        assert way["times_one_by_one"]["median"] == pytest.approx(one["s_per_sample"]["median"] / seconds, rel=2e-3)
        if way["pass_rows"] == 10**6:
            assert 0 < way["padded_query_rows"] < 1 and way["passes"] < one["passes"]
        if way["pass_rows"] == 0:
            assert way["padded_query_rows"] == 0


def test_the_fit_finds_what_steps_are_made_of() -> None:
    """Fails if a cost is assigned to the wrong axis, or is negative."""

    def steps(fixed: float, row: float, slot: float) -> list[dict[str, Any]]:
        shapes = [(b, q, k) for b in (1, 2, 4) for q in (16, 64, 256) for k in (0, 512)]
        return [
            {"batch": b, "queries": q, "cached": k, "step_ms": {"median": fixed + row * b * q + slot * b * k}}
            for b, q, k in shapes
        ]

    found = batching.fit(steps(3.0, 0.01, 0.0005))
    assert (found["fixed_ms"], found["row_us"], found["slot_us"]) == pytest.approx((3.0, 10.0, 0.5), rel=1e-3)
    assert (found["pass_rows"], found["slots_a_row"]) == (300, 20) and found["off_most"] < 1e-3
    free = batching.fit(steps(-0.05, 0.01, 0.0))
    assert free["fixed_ms"] == free["pass_rows"] == 0 and free["row_us"] > 0


def test_batching_counts_and_tells_tokens_that_differ(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the benchmark does not report tokens that other requests in a pass changed."""
    right = batching.decode

    def wrong(engine: Any, requests: Any, options: Any, running: int, width: int) -> Any:
        seconds, results, facts = right(engine, requests, options, running, width)
        if running > 1:
            results[1].canvas[-1] += 1
        return seconds, results, facts

    monkeypatch.setattr(batching, "decode", wrong)
    monkeypatch.setattr(batching, "QUERIES", (16, 32))
    options = f"--bundle {bundle} --size 2 --width 0 --requests 2 --gen-length 32 --threads 1 --rounds 2"
    ran = CliRunner().invoke(batching.main, options.split())
    assert ran.exit_code == 1 and "differ between requests together" in ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["mismatches"] == 2 * (len(found["ways"]) - 1)


def test_loop_overhead(folder: Path) -> None:
    """Fails if a variant is missing, or the goal is judged by other numbers than the reported ones."""
    found = document(folder, "loop_overhead")
    assert [result["way"] for result in found["results"]] == list(loop_overhead.WAYS)
    assert all(result["overhead"]["median"] == result["overhead_worst"] > 0 for result in found["results"])
    for result in found["results"]:
        assert result["outside_us"]["median"] > result["loop_us"]["median"] > 0
        assert result["outside_alone_us"]["median"] > 0
        assert result["below"] == (0.05 if result["way"] in ("none", "prefix", "dual", "extend") else 0.15)
    assert found["goal"]["met"] is all(one["overhead"]["median"] <= one["below"] for one in found["results"])


def test_sampling(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a setting or a vocabulary is missing, or `decide` does not get the options of a setting."""
    narrow = {"vocab_size": 6000, "mask_token_id": 5, "eos_token_id": 1}
    small = {"dream": sampling.FAMILIES["dream"] | narrow}
    monkeypatch.setattr(sampling, "FAMILIES", small)
    found = run(sampling.main, f"--rows 2 --rounds 1 --threads 1 --out {folder / 'sampling.json'}")
    told = [(one["vocabulary"], one["setting"]) for one in found["results"]]
    assert told == [(6000, name) for name in sampling.SETTINGS]
    assert all(one["decide_ms"]["median"] > 0 for one in found["results"])
    logits = sampling.logits_of(32, 5000, seed=1)
    odds = 1 / np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)
    assert odds.min() < 0.5 < 0.9 < odds.max()


def test_results_as_tables(folder: Path) -> None:
    """Fails if a number is missing, a missed goal is shown as met, or a reason is accepted for a met goal."""
    ran = CliRunner().invoke(tables.main, [str(folder)], catch_exceptions=False)
    assert ran.exit_code == 0
    text = (folder / "results.md").read_text()
    for name in COMMANDS:
        assert f"## {tables.TABLES[name][0]}" in text
    assert f"{document(folder, 'batching')['ways'][-1]['tokens_per_s']['median']:g} (" in text
    floor = document(folder, "step_floor")
    told = "a step of 128 rows at most 1.5 times its products, 1 thread(s)"
    rows = {goal: (have, met) for goal, have, met in tables.goals({"step_floor": floor})}
    assert rows == {told: (f"{floor['goal']['ratio']['1']:g}", floor["goal"]["met"]["1"])}
    floor["goal"]["met"]["1"] = False
    missed = tables.report({"step_floor": floor}, {"it is slow": [told]})
    assert f"| {told} | {rows[told][0]} | no (1) |" in missed and "\n1. it is slow\n" in missed
    assert "no: not explained yet" in tables.report({"step_floor": floor}, {})
    floor["goal"]["met"]["1"] = True
    with pytest.raises(click.ClickException, match="explains a goal that was not missed"):
        tables.report({"step_floor": floor}, {"it is slow": [told]})


def test_figures(folder: Path, tmp_path: Path) -> None:
    """Fails if a figure cannot be drawn, is not 800 pixels wide, or is not reproducible."""
    names = {"step_floor", "batching"}
    drawn: list[dict[str, bytes]] = []
    for _ in range(2):
        ran = CliRunner().invoke(plots.main, [str(folder)], catch_exceptions=False)
        assert ran.exit_code == 0
        drawn.append({path.stem: path.read_bytes() for path in folder.glob("*.png")})
    assert drawn[0] == drawn[1] and set(drawn[0]) == names
    for image in drawn[0].values():
        assert image[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(image[16:20], "big") == 800
        assert b"tEXt" not in image
    ran = CliRunner().invoke(plots.main, [str(tmp_path)])
    assert ran.exit_code == 0 and "batching.json is not there" in ran.stderr


def test_errors_of_the_project_are_one_line(tmp_path: Path) -> None:
    """Fails if a missing bundle ends in a traceback."""
    ran = CliRunner().invoke(step_floor.main, ["--bundle", str(tmp_path / "nothing")])
    assert ran.exit_code == 1
    assert "MissingFile" in ran.stderr and "Traceback" not in ran.output


def test_make_bench_runs_files_that_are_there() -> None:
    """Fails if `make bench` names a benchmark that does not exist."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    names = [line.split("=")[1].split()[0] for line in lines if line.startswith("BENCHES")]
    assert set(names) >= set(COMMANDS)
    assert all((ROOT / "benchmarks" / f"{name}.py").exists() for name in names)
