"""The benchmarks of `make bench`, tried at small sizes: what they write, never how long it took."""

import json
import os
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
import growth  # noqa: E402
import loop_overhead  # noqa: E402
import measure  # noqa: E402
import plots  # noqa: E402
import sampling  # noqa: E402
import step_floor  # noqa: E402
import tables  # noqa: E402
from dpad.models.checkpoint.checkpoint import parse_config  # noqa: E402
from dpad.runtime.contract import StepContract  # noqa: E402

COMMANDS = {
    "step_floor": (step_floor.main, "--rows 32 --rows 128 --cached 40 --threads 1 --rounds 1 --repeat 1"),
    "growth": (
        growth.main,
        "--prompt 32 --length 96 --length 256 --batch 2 --batch-length 96 --threads 1 --rounds 1",
    ),
    "batching": (batching.main, "--size 2 --size 3 --requests 5 --gen-length 64 --threads 1 --rounds 1"),
    "loop_overhead": (loop_overhead.main, "--gen-length 32 --threads 1 --rounds 1"),
}
COMMON = {"benchmark", "machine", "model", "weights_sha256", "engine", "dtype", "rounds"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    return export(write_source(folder / "source"), folder / "bundle", max_length=1024).directory


@pytest.fixture(scope="module")
def folder(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every benchmark's JSON file."""
    folder = tmp_path_factory.mktemp("results")
    for name, (command, options) in COMMANDS.items():
        out = folder / f"{name}.json"
        ran = run(command, f"{options} --bundle {bundle} --out {out}")
        assert ran == json.loads(out.read_text()), f"{name}: the last line and the file differ"
    return folder


def run(command: click.Command, options: str) -> dict[str, Any]:
    """The document on the last line of standard output."""
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
        for floor in result["floors"].values():  # of one round, so medians divide
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
    matrices.pop(next(name for name in matrices if "wte" in name or "embed" in name))  # rows of it are only looked up
    shapes = sorted(array.shape for array in work.weights.values())
    assert shapes == sorted((inner, outer) for outer, inner in matrices.values())
    with_onnx, with_torch = step_floor.onnx_call(work, 1)(), step_floor.torch_call(work)()
    last = config.layers - 1
    for stem, name in (("k", f"k {last}"), ("up", f"up {last}"), ("heads", f"heads {last}"), ("logits", "logits 0")):
        np.testing.assert_allclose(with_onnx[name], with_torch[stem].numpy(), atol=1e-3, rtol=1e-3)
    assert with_onnx["logits 0"].shape == (3, config.vocab_size)
    assert with_onnx[f"heads {last}"].size == 6 * config.heads * config.head_size


def test_growth(folder: Path) -> None:
    """Fails if a point is lost, DPad's rows grow with the canvas, or the cache is not what the contract says."""
    found = document(folder, "growth")
    assert found["skipped"] == [] and found["threads"] == 1
    points = {(p["axis"], p["method"], p["length"], p["batch"]): p for p in found["points"]}
    assert len(points) == len(found["points"]) == 3 * 3
    vanilla, dual = points["length", "vanilla", 256, 1], points["length", "dpad-dual", 256, 1]
    assert (vanilla["query_rows"], vanilla["cached_rows"], vanilla["cache_mib"]) == (256, 0, 0)
    kept = points["length", "dpad", 256, 1]["query_rows"]
    assert kept < 200
    assert (dual["query_rows"], dual["cached_rows"]) == (32, kept - 32)
    assert dual["cache_mib"] * 2**20 == pytest.approx(2 * 2 * kept * 1 * 64 * 4, rel=1e-3)
    for point in found["points"]:
        base = points[point["axis"], "vanilla", point["length"], point["batch"]]
        ratio = base["step_ms"]["median"] / point["step_ms"]["median"]
        assert point["vanilla_over_this"]["median"] == pytest.approx(ratio, rel=2e-3)
        assert point["memory_mib"] >= 0


def test_growth_tells_what_it_skips(bundle: Path) -> None:
    """Fails if a point that would take too long is measured, or left out without a word."""
    found = run(
        growth.main,
        f"--bundle {bundle} --prompt 32 --length 64 --length 128 --batch 1 --batch-length 64 --rounds 1 --limit 1e-9",
    )
    assert {p["length"] for p in found["points"]} == {64}
    assert [(p["method"], p["length"]) for p in found["skipped"]] == [(name, 128) for name in growth.METHODS]
    assert all("over the limit" in p["reason"] for p in found["skipped"])


def test_cache_bytes() -> None:
    """Fails if the size of keys and values is computed wrongly: two tensors a layer."""
    contract = StepContract("llada", 5, 8, 2, 64, 640, 5, 1, 0, 4, 1024, 32, 256)
    assert growth.cache_bytes(contract, batch=3, rows=100, dtype="float16") == 2 * 5 * 3 * 100 * 2 * 64 * 2


def test_batching(folder: Path) -> None:
    """Fails if a batch changes a token, or padding is not counted where prompts are unequal."""
    found = document(folder, "batching")
    assert found["mismatches"] == 0 and len(found["prompt_tokens"]) == 5
    assert len(set(found["prompt_tokens"])) > 1
    assert [batch["size"] for batch in found["batches"]] == [1, 2, 3]
    one, *larger = found["batches"]
    assert one["padded_query_rows"] == one["waiting_canvases"] == 0
    assert all(0 < batch["padded_query_rows"] < 1 and 0 <= batch["waiting_canvases"] < 1 for batch in larger)
    for batch in found["batches"]:
        seconds = batch["s_per_sample"]["median"]
        assert batch["tokens_per_s"]["median"] == pytest.approx(found["tokens"] / 5 / seconds, rel=2e-3)
        assert batch["times_one_by_one"]["median"] == pytest.approx(one["s_per_sample"]["median"] / seconds, rel=2e-3)


def test_batching_counts_and_tells_tokens_that_differ(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a batch could change tokens unnoticed."""
    right = batching.decode

    def wrong(model: Any, requests: Any, size: int, options: Any) -> Any:
        seconds, results = right(model, requests, size, options)
        if size > 1:
            results[1].canvas[-1] += 1
        return seconds, results

    monkeypatch.setattr(batching, "decode", wrong)
    options = f"--bundle {bundle} --size 2 --requests 2 --gen-length 32 --threads 1 --rounds 2"
    ran = CliRunner().invoke(batching.main, options.split())
    assert ran.exit_code == 1 and "2 tokens differ" in ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1])["mismatches"] == 2


def test_loop_overhead(folder: Path) -> None:
    """Fails if a cache mode is missing or the goal is judged by other numbers than those reported."""
    found = document(folder, "loop_overhead")
    assert [result["cache"] for result in found["results"]] == ["none", "prefix", "dual", "extend"]
    assert all(result["overhead"]["median"] == result["overhead_worst"] > 0 for result in found["results"])
    assert all(result["loop_alone_us"]["median"] > 0 for result in found["results"])
    assert found["goal"]["met"] is all(result["overhead"]["median"] < loop_overhead.GOAL for result in found["results"])


def test_sampling(folder: Path) -> None:
    """Fails if a decoder or a vocabulary is missing, or what is chosen from is not what decoders see."""
    found = run(sampling.main, f"--rows 2 --rounds 1 --out {folder / 'sampling.json'}")
    told = [(one["vocabulary"], one["setting"]) for one in found["results"]]
    assert told == [(size, name) for size in sampling.VOCABULARIES.values() for name in sampling.SETTINGS]
    assert all(one["choose_ms"]["median"] > 0 for one in found["results"])
    outputs = sampling.outputs_of(32, 5000, seed=1)
    assert outputs.confidence.min() < 0.5 < 0.9 < outputs.confidence.max()


def test_results_as_tables(folder: Path) -> None:
    """Fails if a number of the documents is lost, a missed goal looks met, or an excuse outlives its goal."""
    ran = CliRunner().invoke(tables.main, [str(folder)], catch_exceptions=False)
    assert ran.exit_code == 0
    text = (folder / "results.md").read_text()
    for name in COMMANDS:
        assert f"## {tables.TABLES[name][0]}" in text
    assert f"{document(folder, 'growth')['points'][-1]['step_ms']['median']:g} (" in text
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
    """Fails if a figure cannot be drawn, is not 800 pixels wide, or differs when it is drawn again."""
    names = {"step_floor", "growth-length", "growth-batch", "batching"}
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
    assert ran.exit_code == 0 and "growth.json is not there" in ran.stderr


def test_a_killed_process_is_a_skipped_point(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a point that takes all memory ends the benchmark, or vanishes from it."""
    in_child = measure.in_child
    monkeypatch.setattr(measure, "in_child", lambda *arguments: in_child(os._exit, 9))
    found = run(growth.main, f"--bundle {bundle} --prompt 32 --length 64 --batch 1 --batch-length 64 --rounds 1")
    assert found["points"] == [] and len(found["skipped"]) == 2 * len(growth.METHODS)
    assert all("was killed" in point["reason"] for point in found["skipped"])


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
