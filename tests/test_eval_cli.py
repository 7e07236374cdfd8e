"""`dpad eval` as a user runs it: results, stopped and continued runs, and mistakes."""

import gzip
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bundles import export, write_source
from click.testing import CliRunner, Result

from dpad import __version__
from dpad.cli import main
from dpad.evaluation import tasks
from dpad.evaluation.journal import Journal, Record
from dpad.runtime.bundle.hashes import sha256
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.step import StepInputs, StepOutputs

FAST = ("--gen-length", "32", "--threads", "1")


def run(bundle: Path, *arguments: object) -> Result:
    return CliRunner().invoke(main, ["eval", str(bundle), *FAST, *map(str, arguments)])


def samples_of(out: Path) -> list[dict[str, Any]]:
    """The kept samples in order, without times."""
    lines = [json.loads(line) for line in Path(f"{out}.samples.jsonl").read_text().splitlines()[1:]]
    lines.sort(key=lambda line: line["index"])
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def results_of(out: Path) -> dict[str, Any]:
    """The results without times."""
    document: dict[str, Any] = json.loads(out.read_text())
    del document["cost"]["seconds"]
    return document


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory, eval_bundle: Path) -> Path:
    """Eight questions in GSM8K's format; the targets of the first four are the model's own answers, if numbers."""
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    rows = [{"question": f"w{i} w{i + 20} w{3 * i} ?", "answer": "#### -7", "more": 1} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    ran = run(eval_bundle, "--task", "gsm8k", "--data", path, "--limit", 4, "--out", path.with_name("first"))
    assert ran.exit_code == 0, ran.output
    for row, sample in zip(rows, samples_of(path.with_name("first"))):
        for number in re.findall(r"\d+", sample["text"])[-1:]:
            row["answer"] = f"w1 w2\n#### {number}"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_results_say_what_was_measured_on_what(eval_bundle: Path, questions: Path, tmp_path: Path) -> None:
    """Fails if the document lacks a field, or a metric is not the mean over the samples."""
    out = tmp_path / "out.json"
    ran = run(
        eval_bundle, "--task", "gsm8k", "--data", questions, "--out", out, "--cache", "dual", "--seed", 5, "--json"
    )
    assert ran.exit_code == 0, ran.output
    document = json.loads(out.read_text())
    assert json.loads(ran.stdout) == document
    assert document.keys() == {
        *("schema_version", "task", "manifest_sha256", "data_sha256", "engine", "dpad", "options", "raw"),
        *("data_seed", "shots", "preset", "metrics", "samples", "cost", "machine"),
    }
    assert document["schema_version"] == 1
    assert document["task"] == "gsm8k"
    assert document["manifest_sha256"] == sha256(eval_bundle / "manifest.json")
    assert document["data_sha256"] == {"questions.jsonl": sha256(questions)}
    assert document["engine"] == "onnxruntime-cpu"
    assert document["dpad"] == __version__
    assert (document["options"]["cache"], document["options"]["seed"]) == ("dual", 5)
    assert document["options"]["schedule"] == {"name": "Gaussian", "k": 4.0, "scale": 2.0, "window": None}
    assert "CPUs" in document["machine"]
    samples = samples_of(out)
    assert [sample["index"] for sample in samples] == list(range(8)) == list(range(document["samples"]))
    for name in ("strict_match", "flexible_extract"):
        values = [sample["scores"][name] for sample in samples]
        assert document["metrics"][name]["value"] == sum(values) / 8
    for name in ("nfe", "tokens"):
        total = sum(sample[name] for sample in samples)
        assert document["cost"][name] == {"total": total, "mean": total / 8}
    assert document["cost"]["seconds"]["total"] > 0


def test_right_answers_count(eval_bundle: Path, questions: Path, tmp_path: Path) -> None:
    """Fails if answers are not compared with their own targets."""
    out = tmp_path / "out.json"
    ran = run(eval_bundle, "--task", "gsm8k", "--data", questions, "--limit", 6, "--out", out)
    assert ran.exit_code == 0, ran.output
    rows = [json.loads(line) for line in questions.read_text().splitlines() if line][:6]
    right = [float(row["answer"] != "#### -7") for row in rows]
    assert 0 < sum(right) < 6
    assert [sample["scores"]["flexible_extract"] for sample in samples_of(out)] == right
    metric = json.loads(out.read_text())["metrics"]["flexible_extract"]
    assert metric["value"] == pytest.approx(statistics.mean(right))
    assert metric["standard_error"] == pytest.approx(statistics.stdev(right) / 6**0.5)
    assert f"flexible_extract │ {metric['value']:.4f} │ {metric['standard_error']:.4f}" in ran.stdout


@pytest.mark.parametrize("task", ["problems", "long", "perplexity"])
def test_a_run_that_was_cut_off_goes_on(eval_bundle: Path, tmp_path: Path, task: str) -> None:
    """Fails if samples are repeated, lost or reordered after a run that was stopped in the middle of a line."""
    command = ("--task", task, "--limit", 5, "--mc-samples", 2, "--gen-length", 64)
    if task != "perplexity":
        command = (*command, "--raw")
    whole, cut = tmp_path / "whole.json", tmp_path / "cut.json"
    assert run(eval_bundle, *command, "--out", whole).exit_code == 0
    kept = Path(f"{whole}.samples.jsonl").read_bytes().splitlines(keepends=True)
    Path(f"{cut}.samples.jsonl").write_bytes(b"".join(kept[:3]) + kept[3][:20])
    ran = run(eval_bundle, *command, "--out", cut, "--batch-size", 2)
    assert ran.exit_code == 0, ran.output
    assert Path(f"{cut}.samples.jsonl").read_bytes().startswith(b"".join(kept[:3]))
    assert samples_of(cut)[:2] == samples_of(whole)[:2]
    for ours, theirs in zip(samples_of(cut), samples_of(whole), strict=True):  # sums of floats differ with the passes
        assert ours.pop("scores") == pytest.approx(theirs.pop("scores"), rel=1e-5)
        assert ours == theirs
    assert results_of(cut).keys() == results_of(whole).keys()


@pytest.mark.parametrize("task", ["problems", "perplexity"])
def test_samples_that_run_together_are_finished_one_by_one(
    eval_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Fails if a finished sample is kept only with the others or twice, or shared time counts for every sample."""
    out, passes, kept = tmp_path / "out.json", list[StepInputs](), list[int]()
    step, add = Engine.step, Journal.add

    def counted(engine: Engine, inputs: StepInputs) -> StepOutputs:
        passes.append(inputs)
        return step(engine, inputs)

    def noted(journal: Journal, record: Record) -> None:
        kept.append(len(passes))
        add(journal, record)

    monkeypatch.setattr(Engine, "step", counted)
    monkeypatch.setattr(Journal, "add", noted)
    began = time.perf_counter()
    command = ("--task", task, "--limit", 24, "--raw", "--mc-samples", 4, "--batch-size", 64)
    ran = run(eval_bundle, *command, "--out", out, "--json")
    took = time.perf_counter() - began
    assert ran.exit_code == 0, ran.output
    assert [sample["index"] for sample in samples_of(out)] == list(range(24))
    assert max(len(inputs.canvas) for inputs in passes) > 1, "nothing ran together"
    assert kept[0] < len(passes), "all were kept at the end"
    seconds = [json.loads(line)["seconds"] for line in Path(f"{out}.samples.jsonl").read_text().splitlines()[1:]]
    assert min(seconds) > 0 and json.loads(ran.stdout)["cost"]["seconds"]["total"] < took


def test_a_longer_run_takes_up_a_shorter_one(eval_bundle: Path, tmp_path: Path) -> None:
    """Fails if --limit changes samples, or finished samples are repeated."""
    out, whole = tmp_path / "out.json", tmp_path / "whole.json"
    command = ("--task", "problems", "--shots", 1, "--data-seed", 4)
    assert run(eval_bundle, *command, "--limit", 2, "--out", out).exit_code == 0
    first = Path(f"{out}.samples.jsonl").read_bytes()
    assert run(eval_bundle, *command, "--limit", 4, "--out", out).exit_code == 0
    assert Path(f"{out}.samples.jsonl").read_bytes().startswith(first)
    assert run(eval_bundle, *command, "--limit", 4, "--out", whole).exit_code == 0
    assert results_of(out) == results_of(whole)
    assert run(eval_bundle, *command, "--limit", 2, "--out", out).exit_code == 0
    assert results_of(out)["samples"] == 2


def test_interrupting_keeps_what_is_done(eval_bundle: Path, tmp_path: Path) -> None:
    """Fails if Ctrl-C loses finished samples, shows a traceback, or does not say how to continue."""
    out = tmp_path / "out.json"
    kept = Path(f"{out}.samples.jsonl")
    command = ["--task", "perplexity", "--limit", "400", "--mc-samples", "8", "--threads", "1", "--out", str(out)]
    running = subprocess.Popen(
        [sys.executable, "-m", "dpad", "eval", str(eval_bundle), *command], stderr=subprocess.PIPE, text=True
    )
    while not kept.exists() or kept.read_bytes().count(b"\n") < 3:
        assert running.poll() is None, "ended before it could be interrupted"
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "the same command continues" in said
    assert "Traceback" not in said
    assert not out.exists()
    done = len(samples_of(out))
    assert f"stopped after {done} of 400" in said
    ran = CliRunner().invoke(main, ["eval", str(eval_bundle), *command, "--limit", str(done + 1)])
    assert ran.exit_code == 0, ran.output
    assert json.loads(out.read_text())["samples"] == done + 1 == len(samples_of(out))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("--gen-length", 64), "options.gen_length 32, but this run has 64"),
        (("--schedule", "none"), "options.schedule"),
        (("--seed", 1), "options.seed 0, but this run has 1"),
        (("--engine", "eager", "--threads", 0), "engine 'onnxruntime-cpu', but this run has 'eager"),
        (("--raw",), "raw False, but this run has True"),
        (("--task", "long"), "task 'problems', but this run has 'long'"),
        (("--shots", 2), "shots 0, but this run has 2"),
        (("--data-seed", 2), "data_seed 0, but this run has 2"),
    ],
)
def test_samples_of_other_settings_are_refused(
    eval_bundle: Path, tmp_path: Path, changes: tuple[object, ...], said: str
) -> None:
    """Fails if samples of different runs are mixed, or those of the first are lost."""
    out = tmp_path / "out.json"
    assert run(eval_bundle, "--task", "problems", "--limit", 1, "--out", out).exit_code == 0
    before = Path(f"{out}.samples.jsonl").read_bytes(), out.read_bytes()
    ran = run(eval_bundle, "--task", "problems", "--limit", 1, "--out", out, *changes)
    assert ran.exit_code == 1
    assert "ResumeError" in ran.stderr
    assert said in ran.stderr
    assert (Path(f"{out}.samples.jsonl").read_bytes(), out.read_bytes()) == before


def test_samples_of_another_bundle_or_file_are_refused(eval_bundle: Path, questions: Path, tmp_path: Path) -> None:
    """Fails if a run continues with other weights or data; a changed bundle does not open."""
    out, data = tmp_path / "out.json", tmp_path / "data.jsonl"
    data.write_bytes(questions.read_bytes())
    command = ("--task", "gsm8k", "--data", data, "--limit", 1, "--out", out)
    assert run(eval_bundle, *command).exit_code == 0
    other = export(write_source(tmp_path / "source", seed=1), tmp_path / "other").directory
    assert "manifest_sha256" in run(other, *command).stderr
    shutil.copytree(eval_bundle, tmp_path / "altered")
    weights = tmp_path / "altered" / "float32" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert "AlteredFile" in run(tmp_path / "altered", *command).stderr
    data.write_bytes(questions.read_bytes() + b"\n")
    assert "data_sha256.data.jsonl" in run(eval_bundle, *command).stderr


def test_worked_examples_come_from_their_file(eval_bundle: Path, questions: Path, tmp_path: Path) -> None:
    """Fails if worked examples have another format than the harness's, repeat, or are the same in all prompts."""
    worked = tmp_path / "worked.jsonl.gz"
    rows = [{"question": f"q{i}", "answer": f"a{i}\n#### {i}"} for i in range(30)]
    worked.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    task = tasks.gsm8k(questions, shots=2, fewshot_data=worked)
    blocks = [sample.prompt.split("\n\n") for sample in task.samples]
    known = {f"Question: {row['question']}\nAnswer: {row['answer']}" for row in rows}
    assert all(len({*block[:2]} & known) == 2 for block in blocks)
    assert len({tuple(block[:2]) for block in blocks}) > 4
    assert blocks[3][2] == "Question: w3 w23 w9 ?\nAnswer:"
    assert [sample.prompt for sample in tasks.gsm8k(questions, limit=3, shots=2, fewshot_data=worked).samples] == [
        sample.prompt for sample in task.samples[:3]
    ]
    assert (
        "examples, fewer than --shots 40"
        in run(eval_bundle, "--task", "gsm8k", "--data", questions, "--shots", 40, "--fewshot-data", worked).stderr
    )
