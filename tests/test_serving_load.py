"""The acceptance of `dpad serve` (benchmarks/serving.py) in its short form: what must hold on a busy machine, too."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHORT = ("overload", "slow", "same_tokens", "bad_input", "soak")  # what no other test of the server covers
COUNTED = ("overload", "slow", "disconnects", "soak")


def run(bundle: Path, out: Path, *names: str) -> dict[str, Any]:
    """What the scenarios found; the document is the last line and the file."""
    command = [sys.executable, "-W", "error", str(ROOT / "benchmarks/serving.py"), "--short", "--bundle", str(bundle)]
    chosen = [part for name in names for part in ("--scenario", name)]
    paths = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    command += [*chosen, "--out", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": paths})
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout.splitlines()[-1])
    assert document == json.loads(out.read_text())
    assert document["short"] and document["machine"]["cpu"] and document["model"]
    found = document["scenarios"]
    assert isinstance(found, dict)
    return found


def check(found: dict[str, Any]) -> None:
    """All but times and memory."""
    assert all(found[name]["sequences"]["equal"] for name in COUNTED if name in found)
    assert found["overload"]["refused_ms"]["count"] > 0 and not found["overload"]["other_answers"]
    assert found["slow"]["beside_slow_ms"]["count"] > 0
    assert found["same_tokens"]["met"] and found["same_tokens"]["passes"] >= found["same_tokens"]["prompts"]
    assert not found["bad_input"]["wrong"] and found["bad_input"]["cases"] > 40
    if "engine_killed" in found:
        assert not found["engine_killed"]["hung"] and not found["engine_killed"]["wrong"]
    assert found["soak"]["met"] and found["soak"]["statuses"]["200"] > 0


def test_a_server_under_load(whole: Path, tmp_path: Path) -> None:
    """Fails if a crowd gets another answer than 200 or 429, a slow client stops its neighbours, neighbours or a restart
    change a token, a hostile body or head gets another answer than 4xx, or a sequence is lost from the counts."""
    found = run(whole, tmp_path / "serving.json", *SHORT)
    assert found.keys() == {*SHORT}
    check(found)


@pytest.mark.slow
def test_every_scenario(whole: Path, tmp_path: Path) -> None:
    """Fails if a scenario does not run, the page leaves one out, or what a busy machine cannot change is not met."""
    out = tmp_path / "serving.json"
    found = run(whole, out, "drain") | run(whole, out)
    check(found)
    timed = {"engine_killed", "overhead", "throughput", "deadline", "overload", "disconnects", "slow"}
    assert {name for name, each in found.items() if not each["met"]} <= timed
    subprocess.run([sys.executable, str(ROOT / "benchmarks/tables.py"), str(tmp_path)], check=True, capture_output=True)
    told = (tmp_path / "serving.md").read_text()
    assert all(f"## {name}\n" in told for name in found) and "Short form" in told
