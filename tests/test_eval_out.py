"""Files that `dpad eval --out` may overwrite, and finished samples that are damaged or changed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dpad.cli import main
from dpad.evaluation import tasks
from dpad.evaluation.errors import DataError, ResumeError
from dpad.evaluation.journal import Journal
from dpad.evaluation.likelihood import MOST_DRAWS
from dpad.evaluation.report import check_replaceable, save
from dpad.evaluation.run import evaluate
from dpad.evaluation.tasks import Sample
from dpad.runtime.errors import InvalidRequest

SETTINGS = {"task": "a", "options": {"seed": 0}}
RECORD = {"key": "k", "index": 0, "scores": {"right": 1.0}, "nfe": 3, "tokens": 4, "seconds": 0.5}
DOCUMENT = {"schema_version": 1, "task": "a", "metrics": {}}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A journal with one sample."""
    path = tmp_path / "out.samples.jsonl"
    with Journal.open(path, SETTINGS) as journal:
        journal.add(RECORD)
    return path


def test_results_that_cannot_be_written_leave_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a full disk destroys the results of an earlier run, or leaves files behind."""
    out, link = tmp_path / "out.json", tmp_path / "link.json"
    save(DOCUMENT, out)
    link.symlink_to(out)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device"):
            save({}, link)
    assert json.loads(out.read_text()) == DOCUMENT
    save({**DOCUMENT, "task": "b"}, link)
    assert link.is_symlink() and json.loads(out.read_text())["task"] == "b"
    assert sorted(tmp_path.iterdir()) == [link, out]


@pytest.mark.parametrize("held", ["notes", "{}", "[1]", '{"metrics": {}}', "[" * 100_000, "\xff"])
def test_what_is_no_results_is_not_written_over(tmp_path: Path, held: str) -> None:
    """Fails if --out overwrites a file that does not hold results."""
    path = tmp_path / "out"
    path.write_text(held, "latin-1")
    with pytest.raises(DataError, match="does not hold results of dpad eval"):
        check_replaceable(path)
    path.write_text(json.dumps(DOCUMENT))
    check_replaceable(path)
    path.write_text("")
    check_replaceable(path)
    path.unlink()
    check_replaceable(path)
    os.mkfifo(path)
    with pytest.raises(DataError, match="does not hold results of dpad eval"):
        check_replaceable(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "d.jsonl", "--out", "d.jsonl"), "d.jsonl is an input of the task"),
        (("--data", "d.jsonl", "--out", "link"), "link is an input of the task"),
        (("--data", "x.samples.jsonl", "--out", "x"), "x.samples.jsonl is an input of the task"),
        (("--data", "d.jsonl", "--fewshot-data", "f.jsonl", "--out", "f.jsonl"), "f.jsonl is an input of the task"),
        (("--data", "d.jsonl", "--out", "f.jsonl"), "f.jsonl exists, but does not hold results"),
    ],
)
def test_the_input_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    """Fails if --out or the samples overwrite an input of the task."""
    monkeypatch.chdir(tmp_path)
    for name in ("d.jsonl", "f.jsonl", "x.samples.jsonl"):
        Path(name).write_text('{"question": "w1", "answer": "#### 1"}\n')
    Path("link").symlink_to("d.jsonl")
    ran = CliRunner().invoke(main, ["eval", "bundle", "--task", "gsm8k", *arguments])
    assert ran.exit_code == 1
    assert said in ran.stderr
    assert all(path.read_text().startswith('{"question"') for path in tmp_path.iterdir())


@pytest.mark.parametrize("held", [b"my notes", b"my notes\n", b'{"settings": 3}\n', b'{"settings"', b"\xff\n", b"\n"])
def test_a_file_that_is_no_journal_stays(tmp_path: Path, held: bytes) -> None:
    """Fails if another file without a final newline is changed like a journal with a truncated line."""
    path = tmp_path / "x.samples.jsonl"
    path.write_bytes(held)
    if not json.dumps({"settings": SETTINGS}).encode().startswith(held):
        with pytest.raises(DataError, match="is not a file of samples"):
            Journal.open(path, SETTINGS)
        assert path.read_bytes() == held
    else:  # the first line, truncated while it was written
        Journal.open(path, SETTINGS).__exit__(None, None, None)
        assert json.loads(path.read_text())["settings"] == SETTINGS


def test_a_line_that_was_cut_off_is_dropped(kept: Path) -> None:
    """Fails if a run cannot continue after it was killed while writing a line."""
    whole = kept.read_bytes()
    kept.write_bytes(whole + b'{"key": "other", "sco')
    with Journal.open(kept, SETTINGS) as journal:
        assert journal.records == {"k": RECORD}
        assert kept.read_bytes() == whole
        journal.add({**RECORD, "key": "l"})
    with Journal.open(kept, SETTINGS) as journal:
        assert list(journal.records) == ["k", "l"]


def test_two_runs_do_not_write_one_journal(kept: Path) -> None:
    """Fails if two runs write one journal at the same time, or the second cannot after the first has ended."""
    with Journal.open(kept, SETTINGS), pytest.raises(ResumeError, match="another run is writing"):
        Journal.open(kept, SETTINGS)
    Journal.open(kept, SETTINGS).__exit__(None, None, None)


def test_a_pipe_is_no_journal(tmp_path: Path) -> None:
    """Fails if a run hangs because its journal is a named pipe without a reader."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is not a regular file"):
        Journal.open(tmp_path / "pipe", SETTINGS)


CHANGES: dict[str, Any] = {
    "no scores": {"scores": None},
    "scores a list": {"scores": [1]},
    "a score of text": {"scores": {"right": "1"}},
    "a score beyond floats": {"scores": {"right": 10**400}},
    "a flag for a score": {"scores": {"right": True}},
    "no passes": {"nfe": None},
    "key a number": {"key": 5},
    "key a list": {"key": []},
}


@pytest.mark.parametrize("line", [*CHANGES, "[]", "5", "{}", '{"key": "k"}', "[" * 100_000, '{"a":' * 100_000])
def test_samples_that_were_tampered_with_are_refused(kept: Path, line: str) -> None:
    """Fails if an invalid record is not refused when the journal is opened."""
    text = json.dumps(RECORD | CHANGES[line]) if line in CHANGES else line
    with kept.open("a") as file:
        file.write(f"{text}\n")
    before = kept.read_bytes()
    with pytest.raises(DataError, match="is not a file of samples"):
        Journal.open(kept, SETTINGS)
    assert kept.read_bytes() == before


def test_settings_that_differ_by_what_is_missing_are_refused(kept: Path) -> None:
    """Fails if a setting that is missing on one side raises another error."""
    kept.write_text(json.dumps({"settings": {"task": "a", "options": {"seed": 0, "new": None}}}) + "\n")
    with pytest.raises(ResumeError, match="options"):
        Journal.open(kept, SETTINGS)


def test_samples_with_other_scores_are_refused(tmp_path: Path) -> None:
    """Fails if samples that lack a score of the task are accepted."""
    samples = [Sample(0, "", ""), Sample(1, "", "")]
    with Journal.open(tmp_path / "kept", SETTINGS) as journal:
        journal.add({**RECORD, "key": samples[0].key, "scores": {"wrong": 1.0}})
        with pytest.raises(DataError, match="scores of another task"):
            evaluate(samples, lambda some: [{**RECORD, "key": sample.key} for sample in some], journal)


@pytest.mark.parametrize("counts", [{"limit": 10**9}, {"shots": 10**9}])
def test_tasks_that_make_samples_end(counts: dict[str, int]) -> None:
    """Fails if a task makes samples forever because a number is too large."""
    with pytest.raises(InvalidRequest, match="1000000000 is over"):
        tasks.problems(**counts)
    if "limit" in counts:
        with pytest.raises(InvalidRequest, match="is over 10000"):
            tasks.long(**counts)


def test_draws_have_an_end() -> None:
    """Fails if the masks of ten billion draws are allocated."""
    ran = CliRunner().invoke(main, ["eval", "bundle", "--task", "perplexity", "--mc-samples", str(10**10)])
    assert ran.exit_code == 2 and f"1<=x<={MOST_DRAWS}" in ran.stderr
