"""Runs the code of `make gpu-check` on a CPU at small sizes; its numbers mean nothing here."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import click
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_check  # noqa: E402
from dpad.export.forecast.layouts import LAYOUTS  # noqa: E402
from dpad.export.progress import Progress  # noqa: E402
from dpad.export.step.pack import Packing  # noqa: E402
from dpad.models.checkpoint.checkpoint import Checkpoint, load_model  # noqa: E402
from dpad.models.checkpoint.headers import read_tensors  # noqa: E402
from dpad.models.packed import Packed  # noqa: E402
from dpad.plugins import tiling  # noqa: E402
from dpad.plugins.launch import attend_rows  # noqa: E402
from dpad.plugins.tiling import Shape  # noqa: E402
from gpu import full, kernels, packing, report, shares, store, variants, worker  # noqa: E402
from gpu.goals import goals  # noqa: E402
from gpu.parts import GROUPS, Part  # noqa: E402
from gpu.session import Session, Setup  # noqa: E402
from gpu.start import drop  # noqa: E402
from gpu.step import Widths, floor_ms  # noqa: E402

LLADA_8B = Widths(layers=32, width=4096, heads_width=4096, kv_width=4096, mlp_width=12288, vocabulary=126464)
H100 = ROOT / "docs/benchmarks/gpu-nvidia-h100-80gb-hbm3.json"


def rehearse(out: Path, work: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", str(ROOT / "benchmarks/gpu_check.py"), "--rehearse", *arguments]
    places = ["--out", str(out), "--work", str(work)]
    paths = os.pathsep.join(str(ROOT / name) for name in ("src", "benchmarks", "tests"))
    return subprocess.run(
        [*command, *places], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths, **environment}
    )


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document of a rehearsal in two calls; the second reuses the bundle of the first."""
    folder = tmp_path_factory.mktemp("rehearsal")
    out, work = folder / "out", folder / "work"
    first = rehearse(out, work, "--group", "tiny")
    assert first.returncode == 0, first.stderr[-3000:]
    for name in ("bundle", "packed"):
        shutil.copytree(work / "tiny", work / name)
    # Compiling a layer in C++ takes a minute, and tests/test_compiled.py covers it.
    second = rehearse(out, work, "--group", "start", "--group", "8b", "--group", "packed", TORCHDYNAMO_DISABLE="1")
    assert second.returncode == 0, second.stderr[-3000:]
    document: dict[str, Any] = json.loads(second.stdout.splitlines()[-1])
    page = (out / "gpu-check-rehearsal-on-a-cpu.md").read_text()
    assert page in second.stdout
    return {**document, "page": page}


def test_every_part_runs(rehearsed: dict[str, Any]) -> None:
    """Fails if a part fails before it reaches the GPU, or the results of two calls are not merged."""
    assert rehearsed["passed"] and not rehearsed["failures"] and not rehearsed["not_merged"]
    without_a_gpu = {"placement", "ptx", "int4"}  # they need CUDA itself, or would take minutes
    for name, group in GROUPS.items():
        parts = rehearsed["groups"][name]["parts"]
        assert list(parts) == [part.name for part in group.parts]
        idle = {part for part, found in parts.items() if "skipped" in found or "error" in found}
        assert idle <= without_a_gpu, {part: parts[part] for part in idle}


def test_the_page_shows_what_was_found(rehearsed: dict[str, Any]) -> None:
    """Fails if a part has no section, or a table lacks an engine or a mode that was measured."""
    page = rehearsed["page"]
    for group in GROUPS.values():
        assert all(f"### {part.title}" in page for part in group.parts)
    for cell in (
        "| torch-cpu (float32) | none |",
        "| dual | 32 |",
        "| published prefix |",
        "| 2 |",
        "| llada-8b | 4 |",
    ):
        assert cell in page, cell
    assert page.count("FAILED") == 0


def test_steps_and_decodes_are_compared(rehearsed: dict[str, Any]) -> None:
    """Fails if tokens, logits or recordings are timed without a comparison with the reference."""
    tiny, large = (rehearsed["groups"][name]["parts"] for name in ("tiny", "8b"))
    modes = tiny["engines"]["engines"]["torch-cpu (float32)"]["modes"]
    assert {result["equal"] for result in modes.values()} == {1.0} and "dual, by entropy" in modes
    assert tiny["recordings"]["engines"]["torch-cpu (float32)"]["worst_relative_rms"] < 1e-4
    assert all(row["relative_rms"] < 1e-4 for row in large["step"]["modes"].values())
    decoders = large["end_to_end"]["decoders"].items()
    passes = {row["passes"] for name, row in decoders if "vanilla" not in name and "passes" in row}
    assert passes == {16}


def test_bad_parts_do_not_take_others_with_them(tmp_path: Path) -> None:
    """Fails if a crash, a hang, an error or a missing library ends the check, or no new process starts after it."""
    with worker.Worker(Setup(tmp_path)) as runs:
        first = runs.run("gpu_parts:counts", 30, {"before": {}})
        second = runs.run("gpu_parts:counts", 30, {})
        assert (first["asked"], second["asked"]) == (1, 2) and first["process"] == second["process"] != os.getpid()
        assert first["found"] == ["before"] and 0 < first["left"] <= 30
        assert runs.run("gpu_parts:dies", 30, {}) == {"error": "its process died (exit status 3)"}
        assert runs.run("gpu_parts:counts", 30, {})["asked"] == 1
        assert "did not end within" in runs.run("gpu_parts:sleeps", -4, {})["error"]
        assert runs.run("gpu_parts:raises", 30, {}) == {"error": "ValueError: no"}
        assert runs.run("gpu_parts:counts", 30, {})["asked"] == 1
        assert "no_such_library is not installed" in runs.run("no_such_library:part", 30, {})["skipped"]


def test_what_there_is_no_time_for_says_so(tmp_path: Path) -> None:
    """Fails if a part starts that cannot end in time, or skipping a requested part is not a failure."""
    late = Part("late", "Late", "gpu_parts:counts", needs=30)
    with worker.Here(Setup(tmp_path)) as runs:
        kept: list[dict[str, Any]] = []
        found = gpu_check.run(runs, [late], False, 20, kept.append)["parts"]
        asked = gpu_check.run(runs, [late], True, 20, kept.append)["parts"]
    assert [document["parts"] for document in kept] == [found, asked]
    assert "out of time" in found["late"]["skipped"] and not store.failures(found)
    assert store.failures(asked) == ["late: it was asked for by name, and skipped"]


IDENTITY = {"device": "Tried Here", "driver": "580", "code": "aaa", "commit": "1111111"}
FACTS = {"compute_capability": "9.0", "python": "3.11", "versions": {"torch": "2.13"}}


def document(**parts: Any) -> dict[str, Any]:
    return {"measured": "2026-11-27", "seconds": 1.0, "parts": parts}


def test_reports_of_other_code_are_not_put_together(tmp_path: Path) -> None:
    """Fails if a page mixes two versions of the code, or parts are added to another version's document."""
    place, other = (store.Place(tmp_path, {**IDENTITY, **FACTS, "code": code}) for code in ("aaa", "bbb"))
    place.keep("tiny", document(kernel={"skipped": "one"}))
    place.keep("tiny", document(ptx={"skipped": "two"}))
    other.keep("8b", document(step={"skipped": "three"}))
    merged = place.merged(tuple(GROUPS))
    assert set(merged["groups"]) == {"tiny"} and set(merged["groups"]["tiny"]["parts"]) == {"kernel", "ptx"}
    page = report.markdown(merged)
    assert "at commit 1111111: code bbb, not aaa" in page and "Not measured: `make gpu-check GROUP=packed`" in page
    assert [found.name for found in store.places(tmp_path, tuple(GROUPS))] == ["gpu-check-tried-here"]
    place.check("tiny", ("kernel",))
    place.check("8b", ())
    with pytest.raises(click.ClickException, match="measure the whole group again"):
        place.check("8b", ("step",))


def test_goals_are_met_missed_or_not_measured() -> None:
    """Fails if a goal is judged by a wrong number, or a goal that was not measured counts as met."""
    modes = {"prefix": {"over_products": 1.1, "step_ms": 6.5}, "dual": {"over_products": 1.2, "step_ms": 7.0}}
    parts = {"step": {"engine": "torch-cuda", "modes": modes}, "warm": {"total_s": 29.0}, "cold": {"total_s": 91.0}}
    verdicts = {goal.text: goal.verdict for goal in goals({"groups": {"8b": {"parts": parts}}})}
    assert verdicts["cached step at most 1.15 times its merged products alone"] == "missed"
    assert verdicts["dpad.load to the first token, cached: at most 30 s"] == "met"
    assert verdicts["dpad.load to the first token, nothing cached: at most 90 s"] == "missed"
    assert list(verdicts.values()).count("not measured") == len(verdicts) - 3


def test_kernels_are_grouped_as_they_ran_on_an_h100() -> None:
    """Fails if a kernel of a step measured on 26 November 2026, from the documents, is in another group."""
    profile = json.loads(H100.read_text())["profile"]
    found = shares.grouped([tuple(kernel) for kernel in profile["kernels_prefix"]])
    assert found["products"] == pytest.approx(3404.1 + 2555.7)
    assert found["attention"] == pytest.approx(582.8) and found["combine"] == pytest.approx(97.6)
    assert found[shares.ONCE] == pytest.approx(376.1 + 26.2 + 19.0 + 13.9 + 13.4 + 13.2 + 11.9 + 10.9 + 7.6)
    assert sum(found.values()) == pytest.approx(sum(kernel[2] for kernel in profile["kernels_prefix"]))
    assert shares.group_of("triton_red_fused_rms_norm_3", 64) == shares.REST


def test_the_floor_of_an_8b_step() -> None:
    """Fails if the floor omits weights or products: 15.0 GB at 3 TB/s, 16 TFLOP in 1024 rows."""

    class Ceilings:
        def __init__(self, read: float, peak: float) -> None:
            self.found = {"read_tb_s": read, "bfloat16_tflop_s": peak}

        def ceiling(self, name: str) -> float:
            return self.found[name]

    assert floor_ms(LLADA_8B, 32, 0, Ceilings(3.0, 1e9)) == pytest.approx(4.98, rel=0.02)  # type: ignore[arg-type]
    assert floor_ms(LLADA_8B, 1024, 0, Ceilings(1e9, 800.0)) == pytest.approx(18.0, rel=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["fp8", "int4"])
def test_weights_are_packed_as_the_exporter_packs_them(form: str) -> None:
    """Fails if shapes, codes or scales of the large model's packed weights differ from a bundle's format."""
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, scale = packing.pack(weight, form, 32, torch.bfloat16)
    expected = Packing(form).pack(weight, torch.bfloat16)
    assert (codes.shape, codes.dtype, scale.shape) == (expected.codes.shape, expected.codes.dtype, expected.scale.shape)
    found = Packed(form, codes, scale).unpack(torch.float32)
    error = (found - expected.unpack(torch.float32)).square().mean() / weight.float().square().mean()
    assert error.sqrt() < 0.03


def test_a_random_checkpoint_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the checkpoint drawn on the device does not have the layout, or cannot be packed for a bundle."""
    layout = LAYOUTS["llada"]
    narrow = {"d_model": 64, "n_heads": 2, "n_kv_heads": 2, "mlp_hidden_size": 96, "n_layers": 2}
    monkeypatch.setitem(LAYOUTS, "llada", replace(layout, config=layout.config | narrow))
    written = Checkpoint.open(Path(full.checkpoint(Session(Setup(tmp_path)))))
    head = dict(read_tensors(written.shards[-1]))["model.transformer.blocks.1.ff_out.weight"]
    assert float(head.float().std()) == pytest.approx(96**-0.5, rel=0.05)
    shards = packing.place_packed(written, tmp_path / "packed", "bfloat16", Packing("int4"), Progress())
    model = load_model(written.architecture, written.config, tuple(shards), torch.float32)
    assert model.logits(torch.ones(1, 1, 64)).isfinite().all()


def test_files_leave_the_page_cache(tmp_path: Path) -> None:
    """Fails if files stay in the page cache before a cold start is timed."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/shard").write_bytes(b"1" * 5000)
    (tmp_path / "manifest").write_bytes(b"2" * 50)
    assert drop(tmp_path) == 5050


def test_contenders_compute_the_same() -> None:
    """Fails if the kernel and its contenders compute different results."""
    inputs = kernels.make_inputs(6, 50, 4, 2, 64, torch.float16)
    keys, values = kernels.gathered(inputs)
    peer = kernels.sdpa(inputs[0], keys, values, 0.125).transpose(1, 2)
    assert kernels.relative_error(attend_rows(*inputs, 0.125), peer) < 2e-3


def test_without_a_gpu_it_says_so() -> None:
    """Fails if the command does not report that there is no GPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "needs an NVIDIA GPU" in ran.stderr


def test_cases_are_of_their_variant() -> None:
    """Fails if a variant's random cases launch another variant, so that it is never tested."""
    rng, every = Random(0), variants.shipped("9.0")
    assert len(set(every)) == 2 * 3 * 2 * 2 * 2
    for variant in every * 20:
        case = variant.draw(rng, 160, 2048, ((28, 4), (8, 8)))
        shape = Shape(case.batch, case.rows, case.cached, 1, case.kv_heads * case.group, case.kv_heads)
        count, _ = tiling.split(shape, variant.tile, 132, case.splits)
        assert ((count > 1), case.block > 0) == (variant.partial, variant.causal)
