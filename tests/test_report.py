"""`dpad report`: its report of a failed command."""

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dpad.cli import main


def reported(tmp_path: Path, *words: str) -> tuple[int, str, dict[str, str]]:
    """The exit status, the output, and the sections of the report by title."""
    place = tmp_path / "report.txt"
    ran = CliRunner().invoke(main, ["report", "--to", str(place), *words])
    text = place.read_text()
    assert f"{place}: " in ran.stdout
    parts = re.split(r"^# (.*)$", text, flags=re.MULTILINE)
    return ran.exit_code, ran.stdout, {title: body.strip() for title, body in zip(parts[1::2], parts[2::2])}


def test_a_failure_is_reported_and_keeps_its_status(whole: Path, tmp_path: Path) -> None:
    """Fails if `dpad report` does not return the command's exit status, or the report lacks its message."""
    status, _, sections = reported(tmp_path, "generate", str(whole), "w5", "--engine", "nonsense")
    assert status == 1 and "exit status 1" in sections["dpad report"]
    assert f"Python {sys.version.split()[0]}" in sections["Machine"] and "numpy " in sections["Packages"]
    assert "EngineUnavailable" in sections["Output"]
    assert "onnxruntime-cpu: runs here" in sections[f"Bundle {whole}"]
    assert sections["Log of TensorRT"] == "empty: no plan was built or opened"
    status, _, sections = reported(tmp_path, "inspect", "x" * 5000)
    assert status == 1 and "name too long" in sections["Output"]


DIES = """
import signal
import tensorrt_rtx
from dpad.runtime.engines.tensorrt.log import make_logger
tensorrt_rtx.Runtime(make_logger(tensorrt_rtx)).deserialize_cuda_engine(b"garbage" * 100)
signal.raise_signal(signal.SIGSEGV)
"""


def test_a_crash_is_reported_with_what_the_library_said_before(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a crash inside a library leaves no report, or one without the place and the cause."""
    (tmp_path / "sitecustomize.py").write_text(DIES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    status, shown, sections = reported(tmp_path, "inspect", str(whole))
    assert status == 128 + 11 and "ended by SIGSEGV" in sections["dpad report"]
    assert "Fatal Python error: Segmentation fault" in sections["Output"] and "sitecustomize.py" in sections["Output"]
    assert sections["Output"].splitlines()[-1] in shown
    log = sections["Log of TensorRT"].splitlines()
    assert any(line.startswith("tensorrt_rtx INFO: ") for line in log)
    assert any(line.startswith("tensorrt_rtx ERROR: ") and "magicTag" in line for line in log)


def test_without_a_command_nothing_is_written(tmp_path: Path) -> None:
    """Fails if `dpad report` without a command replaces an earlier report."""
    place = tmp_path / "report.txt"
    assert CliRunner().invoke(main, ["report", "--to", str(place)]).exit_code == 2
    assert not place.exists()
