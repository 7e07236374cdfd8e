"""`dpad report`: what comes back from a machine where something fails."""

import json
import re
import sys
from pathlib import Path

import pytest
import tensorrt_rtx
from bundles import write_source
from click.testing import CliRunner

from dpad.cli import main
from dpad.runtime.bundle.bundle import Bundle


def reported(tmp_path: Path, *words: str) -> tuple[int, str, dict[str, str]]:
    """Exit status, what was shown, and the sections of the report by title."""
    place = tmp_path / "report.txt"
    ran = CliRunner().invoke(main, ["report", "--to", str(place), *words])
    text = place.read_text()
    assert f"{place}: " in ran.stdout
    parts = re.split(r"^# (.*)$", text, flags=re.MULTILINE)
    return ran.exit_code, ran.stdout, {title: body.strip() for title, body in zip(parts[1::2], parts[2::2])}


def test_a_build_is_reported_with_the_library_s_log_and_the_plan_s_key(tmp_path: Path) -> None:
    """Fails if a report lacks what tells one build from another: versions, machine, key, what the library said."""
    source, out = write_source(tmp_path / "source"), tmp_path / "out"
    words = ["export", str(source), "--out", str(out), "--no-parity", "--dtype", "float16", "--target", "tensorrt-rtx"]
    status, shown, sections = reported(tmp_path, *words)
    assert status == 0 and "exit status 0" in sections["dpad report"] and " ".join(words) in sections["dpad report"]
    assert f"tensorrt-rtx {tensorrt_rtx.__version__}" in sections["Packages"].splitlines()
    assert f"Python {sys.version.split()[0]}" in sections["Machine"]
    log = sections["Log of TensorRT"].splitlines()
    assert len([line for line in log if re.match(r"tensorrt_rtx INFO: Total Activation Memory: \d+ bytes", line)]) == 3
    [entry] = Bundle.open(out).manifest.engines
    [line] = [line for line in sections[f"Bundle {out}"].splitlines() if line.startswith(entry.file)]
    assert json.loads(line.partition("{")[1] + line.partition("{")[2])["step_sha256"] == entry.step_sha256
    assert "built in" in sections["Output"] and sections["Output"].splitlines()[-1] in shown


def test_a_failure_is_reported_and_keeps_its_status(whole: Path, tmp_path: Path) -> None:
    """Fails if a script that adds `report` no longer sees a failure, or its message is not in the report."""
    status, _, sections = reported(tmp_path, "generate", str(whole), "w5", "--engine", "nonsense")
    assert status == 1 and "exit status 1" in sections["dpad report"]
    assert "EngineUnavailable" in sections["Output"]
    assert "onnxruntime-cpu: runs here" in sections[f"Bundle {whole}"]
    assert sections["Log of TensorRT"] == "nothing was said: no plan was built or opened"
    status, _, sections = reported(tmp_path, "inspect", "x" * 5000)
    assert status == 1 and "name too long" in sections["Output"]


def test_a_crash_is_reported(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a command that dies inside a library leaves no report, or where it died is not in it."""
    (tmp_path / "sitecustomize.py").write_text("import faulthandler, signal\nsignal.raise_signal(signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status, _, sections = reported(tmp_path, "inspect", str(whole))
    assert status == 128 + 11 and "ended by SIGSEGV" in sections["dpad report"]
    assert "Fatal Python error: Segmentation fault" in sections["Output"] and "sitecustomize.py" in sections["Output"]


def test_without_a_command_nothing_is_written(tmp_path: Path) -> None:
    """Fails if a slip replaces an earlier report."""
    place = tmp_path / "report.txt"
    assert CliRunner().invoke(main, ["report", "--to", str(place)]).exit_code == 2
    assert not place.exists()
