"""Invalid files of data, samples and results are refused with a typed error and left unchanged."""

import gzip
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fuzzing import Tally, fuzz

from dpad.cli import main
from dpad.evaluation import data as data_module
from dpad.evaluation import tasks
from dpad.evaluation.data import digests, read_lines
from dpad.evaluation.errors import DataError, EvaluationError
from dpad.evaluation.journal import Journal
from dpad.evaluation.perplexity import perplexities
from dpad.evaluation.report import check_replaceable, mean_scores, report, save
from dpad.evaluation.run import evaluate
from dpad.evaluation.tasks import Sample, Task

ROW = b'{"question": "w1", "answer": "#### 1"}\n'
SETTINGS = {"task": "a", "options": {"seed": 0}}
SAMPLES = [Sample(number, "w1", "w2") for number in range(4)]
RECORD = {"index": 0, "scores": {"full": 1.0}, "nfe": 3, "tokens": 4, "seconds": 0.5, "text": "w"}
DOCUMENT = {"schema_version": 1, "task": "a", "metrics": {}}


def lay_out(path: Path, kind: str) -> Path:
    """Make something at `path` that is not a data file, or return another such path."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # a socket's path must be short
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind in ("/dev/zero", "/dev/full"):
        path.symlink_to(kind)
    elif kind == "long name":
        return path.with_name("x" * 300)
    elif kind == "no text":
        return path.with_name("\0")
    return path


NO_FILES = ["pipe", "socket", "folder", "loop", "/dev/zero", "/dev/full", "long name", "no text", "missing"]


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Fails if reading a pipe or a device never ends, or raises an error of Python's."""
    monkeypatch.chdir(tmp_path)
    path = lay_out(tmp_path / "data", kind)
    for read in (lambda: read_lines(path, ("text",)), lambda: digests([path]), lambda: tasks.gsm8k(path)):
        with pytest.raises(DataError, match="cannot be read"):
            read()


CONTENTS = {
    "not UTF-8": b'{"question": "\xff"}',
    "deep": b"[" * 5000 + b"]" * 5000,
    "deeper": b'{"a":' * 100_000,
    "digits": b'{"question": ' + b"9" * 5000 + b"}",
    "no number": b'{"question": 1e400, "answer": NaN}',
    "half a packed file": gzip.compress(ROW * 100)[:-9],
    "packed nonsense": gzip.compress(b"\xff" * 100),
    "two packed, one cut": gzip.compress(ROW) + gzip.compress(ROW)[:20],
    "nothing": b"",
    "zeros": bytes(1000),
    "UTF-16": ROW.decode().encode("utf-16"),
    "not an object": b"5\n",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_contents_that_cannot_be_read_are_refused(tmp_path: Path, name: str) -> None:
    """Fails if a data file's content gives an error of Python's, or a message that contains the whole file."""
    path = tmp_path / "data"
    path.write_bytes(ROW + CONTENTS[name] if name in ("deep", "deeper", "digits", "no number") else CONTENTS[name])
    with pytest.raises(DataError) as raised:
        tasks.gsm8k(path)
    assert str(path) in str(raised.value) and len(str(raised.value)) < 500


def test_what_editors_add_is_no_fault(tmp_path: Path) -> None:
    """Fails if a file with a byte order mark or Windows line ends cannot be read."""
    path = tmp_path / "data"
    path.write_bytes(b"\xef\xbb\xbf" + ROW.replace(b"\n", b"\r\n") * 2 + b"\r\n")
    assert len(read_lines(path, ("question", "answer"))) == 2


def test_files_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a gzip bomb or a very large file exhausts memory."""
    monkeypatch.setattr(data_module, "_MOST", 1 << 20)
    bomb, plain = tmp_path / "bomb.gz", tmp_path / "plain"
    bomb.write_bytes(gzip.compress(bytes(1 << 26)))
    with plain.open("wb") as file:
        file.truncate(1 << 40)
    for path in (bomb, plain):
        with pytest.raises(DataError, match="holds more than 1 MiB; split it"):
            read_lines(path, ("text",))


def test_two_files_of_one_name_are_two(tmp_path: Path) -> None:
    """Fails if a run continues with another file that has the same name."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_text(folder)
    found = digests([tmp_path / "a/x", tmp_path / "b/x"])
    assert list(found) == ["x", "x (2)"] and len(set(found.values())) == 2


@pytest.mark.parametrize("kind", [kind for kind in NO_FILES if kind not in ("loop", "missing")] + ["closed"])
def test_results_go_where_a_file_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eval_bundle: Path, kind: str
) -> None:
    """Fails if a device, a pipe or an impossible name as --out hangs, is written, or gives an error of Python's."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out" / "name" if kind == "closed" else lay_out(tmp_path / "out", kind)
    if kind == "closed":
        (tmp_path / "out").write_text("a file, no folder")
    if kind != "no text":  # a command line cannot contain it
        ran = CliRunner().invoke(main, ["eval", str(eval_bundle), "--task", "problems", "--out", str(path)])
        assert ran.exit_code in (1, 2) and "Traceback" not in ran.output, ran.output
        assert isinstance(ran.exception, SystemExit)
    for act in (lambda: Journal.open(path, SETTINGS), lambda: save(DOCUMENT, path)):
        with pytest.raises(EvaluationError):
            act()


def test_a_full_disk_is_said_and_costs_nothing(tmp_path: Path) -> None:
    """Fails if a sample that cannot be written gives an error of Python's, or earlier samples are lost."""
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom dpad.evaluation.journal import Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from dpad.evaluation.errors import DataError\nrecord = {'scores': {}, 'nfe': 1, 'tokens': 1, 'seconds': 1}\n"
        "try:\n    with Journal.open(Path(sys.argv[1]), {}) as journal:\n        for number in range(100):\n"
        "            journal.add({'key': str(number)} | record)\nexcept DataError as error:\n"
        "    assert 'free disk space' in str(error), error\n    print(len(journal.records))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "kept"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    with Journal.open(tmp_path / "kept", {}) as journal:
        assert len(journal.records) == int(ran.stdout) > 5


@pytest.mark.parametrize(
    "change",
    [
        {"scores": {"full": float("nan")}},
        {"scores": {"full": float("inf")}},
        {"scores": {"full": 1e308}},
        {"tokens": -1},
        {"nfe": 1e300},
        {"seconds": float("nan")},
    ],
)
def test_numbers_beyond_all_range_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Fails if results are computed from NaN or infinity, or overflow with an error of Python's."""
    lines = [{"settings": SETTINGS}, *({**RECORD, "key": sample.key, **change} for sample in SAMPLES)]
    (tmp_path / "kept").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match="is not a file of samples"):
        Journal.open(tmp_path / "kept", SETTINGS)


def test_samples_of_another_task_make_no_perplexity() -> None:
    """Fails if samples without tokens, or with other scores, give an error of Python's."""
    for change in ({"tokens": 0}, {"scores": {"dpad": 1.0}}, {"scores": {}}):
        with pytest.raises(DataError, match="has no scored texts with tokens"):
            perplexities([{**RECORD, **change}])
    huge = {**RECORD, "scores": {"full": 2.0**53}, "tokens": 1}
    assert "Infinity" not in json.dumps(perplexities([huge, {**huge, "scores": {"full": 0.0}}]))


VALUES = [
    "null",
    "true",
    "-1",
    "1e400",
    "9" * 5000,
    "[" * 900 + "]" * 900,
    '"\\ud800"',
    '"\x1b[2J"',
    "{}",
    "NaN",
    "2e9",
    '"w5"',
]


def mutated(text: bytes, rng: random.Random) -> bytes:
    """`text` with some of its values, bytes or lines changed."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split(b"\n")
        line, at = rng.randrange(len(lines)), rng.randrange(len(text) or 1)
        act = rng.randrange(6)
        if act == 0:  # another value
            before, colon, after = lines[line].rpartition(b": ")
            lines[line] = before + colon + rng.choice(VALUES).encode() + after.lstrip(b'0123456789."abc')
        elif act == 1:
            lines.insert(line, lines[rng.randrange(len(lines))])
        elif act == 2:
            del lines[line]
        text = b"\n".join(lines)
        if act == 3:
            text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
        elif act == 4:
            text = text[:at]
        elif act == 5:
            text = text[:at] + rng.choice(VALUES).encode() + text[at:]
    return text


@fuzz(short=200, long=20_000)
def test_mutated_data_files(mutants: int, tally: Tally, tmp_path: Path) -> None:
    """Fails if a data file gives anything but samples or a typed error."""
    rows = [{"question": f"w{n}", "answer": "#### 1", "text": "w1", "prompt": "w2"} for n in range(3)]
    humaneval = {"task_id": "a", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): f()"}
    good = "".join(json.dumps({**row, **humaneval}) + "\n" for row in rows).encode()
    path = tmp_path / "data"
    for number in range(mutants):
        rng = random.Random(number)
        content = mutated(good, rng)
        path.write_bytes(gzip.compress(content)[: rng.choice((None, None, 60))] if rng.random() < 0.2 else content)
        read = rng.choice((tasks.gsm8k, tasks.texts, lambda file: read_lines(file, tuple(humaneval))))
        found = tally.attempt(f"mutant {number}", lambda: read(path))  # noqa: B023
        for sample in found.samples if isinstance(found, Task) else ():
            assert sample.key and found.grade(sample, sample.prompt) is not None


@fuzz(short=200, long=5_000)
def test_mutated_samples(mutants: int, tally: Tally, tmp_path: Path) -> None:
    """Fails if a file of samples gives neither results that are valid JSON nor a typed error, or is changed."""
    path, out = tmp_path / "kept", tmp_path / "out"
    with Journal.open(path, SETTINGS) as journal:
        for sample in SAMPLES:
            journal.add({"key": sample.key, **RECORD})
    good = path.read_bytes()

    def resume() -> None:
        with Journal.open(path, SETTINGS) as journal:
            records = evaluate(SAMPLES, lambda some: [{"key": sample.key, **RECORD} for sample in some], journal)
        for metrics in (mean_scores, perplexities):
            document = report(SETTINGS, records, metrics(records))
            json.dumps(document, allow_nan=False)
        save(document, out)

    for number in range(mutants):
        rng = random.Random(number)
        content = mutated(good, rng)
        path.write_bytes(content)
        before = tally.accepted
        tally.attempt(f"mutant {number}", resume)
        if tally.accepted == before:
            assert path.read_bytes().startswith(content[: content.rfind(b"\n") + 1])
    out.write_bytes(mutated(json.dumps(DOCUMENT).encode(), random.Random(0)))
    tally.attempt("results", lambda: check_replaceable(out))
