"""Runs the commands of docs/bundles.md: Polygraphy's command line on an unchanged bundle."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dpad.runtime.bundle.bundle import Bundle

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/bundles.md").read_text().replace("\\\n", "")
COMMANDS = re.findall(r"^(polygraphy .*)$", PAGE, re.MULTILINE)


def test_the_page_has_them() -> None:
    """Fails if the commands are not found in the document, so that the next test would run none."""
    assert [command.split()[1] for command in COMMANDS] == ["inspect", "run", "run"]


@pytest.mark.parametrize("command", COMMANDS, ids=[f"{each.split()[1]} {each.count('--')}" for each in COMMANDS])
def test_a_documented_command_works(whole: Path, command: str) -> None:
    """Fails if a documented command fails on a bundle with linked weights, or an output is NaN."""
    shards = Bundle.open(whole).manifest.steps["float32"].weights
    assert all((whole / shard).stat().st_nlink > 1 for shard in shards)
    words = shlex.split(command.replace("bundles/tiny", str(whole)))
    words[0] = str(Path(sys.executable).with_name("polygraphy"))
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    if "inspect" in words:
        assert "canvas [dtype=int64, shape=('B', 'N')]" in ran.stdout and "Attention" in ran.stdout
    else:
        assert "is valid" in ran.stdout and "FAILED" not in ran.stdout and "PASSED | Runtime" in ran.stdout
