"""`make gpu-check` without a GPU: its code is tried on a CPU at small sizes; its figures mean nothing here."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_check  # noqa: E402
from dpad.plugins.launch import attend_rows  # noqa: E402
from gpu import decode, device, kernels, report, step  # noqa: E402

DEVICE = {
    "name": "Tried Here",
    "compute_capability": "9.0",
    "versions": {"torch": torch.__version__, "tensorrt": None},
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that Triton's interpreter can walk through."""
    monkeypatch.setattr(kernels, "MODELS", {"llada-8b": (2, 2, 64), "dream-7b": (4, 1, 64)})
    monkeypatch.setattr(kernels, "QUERIES", (4,))
    monkeypatch.setattr(kernels, "CACHED", (40,))
    monkeypatch.setattr(kernels, "SWEPT", (("llada-8b", 4, 40),))
    shape = {"layers": 2, "width": 128, "heads": 2, "kv_heads": 2, "mlp_width": 160, "vocab_size": 300}
    monkeypatch.setattr(step, "CONFIG", replace(step.CONFIG, **shape))
    monkeypatch.setattr(step, "CANVAS", 64)
    monkeypatch.setattr(step, "PROMPT", 16)
    monkeypatch.setattr(step, "KEPT", 8)


@pytest.mark.usefixtures("small")
def test_every_part_runs_and_makes_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a part breaks before it reaches the GPU, or the page cannot be made from its results."""
    if torch.cuda.is_available():
        pytest.skip("make gpu-check itself runs here")
    monkeypatch.setattr(device, "describe", lambda: DEVICE)
    monkeypatch.setattr(device, "ceilings", lambda: {"bandwidth_tb_s": 1.0, "bfloat16_tflop_s": 100.0})
    monkeypatch.setattr(decode, "PROMPTS", ([2, 30, 41], [2, 17, 80, 11]))
    monkeypatch.setattr(decode, "LENGTH", 32)
    monkeypatch.setattr(kernels, "SECONDS", 1.0)
    monkeypatch.setattr(gpu_check, "COMPILE", False)
    found = gpu_check.run(gpu_check.time.monotonic(), ("kernel", "eager", "speed", "step", "sweep"))
    assert not {name: part for name, part in found.items() if isinstance(part, dict) and "error" in part}
    assert found["kernel"]["passed"] and found["kernel"]["cases"] > 0
    assert found["eager"]["passed"]
    assert {row["model"] for row in found["speed"]} == {"llada-8b", "dream-7b"}
    assert set(found["step"]["eager"]) == {"vanilla", "none", "prefix", "dual"}
    assert found["passed"] is True
    page = report.markdown(json.loads(json.dumps(found)))
    assert "# Tried Here" in page and "| llada-8b | 4 | 40 |" in page and "Not asked for." in page


@pytest.mark.usefixtures("small")
def test_contenders_compute_the_same() -> None:
    """Fails if the kernel is timed against something that is not its equal."""
    inputs = kernels.make_inputs(6, 50, 4, 2, 64, torch.float16)
    keys, values = kernels.gathered(inputs)
    peer = kernels.sdpa(inputs[0], keys, values, 0.125).transpose(1, 2)
    assert kernels.relative_error(attend_rows(*inputs, 0.125), peer) < 2e-3


def test_the_floor_of_an_8b_step() -> None:
    """Fails if the floor forgets weights or products: 15.0 GB at 3 TB/s, 16 TFLOP in 1024 rows."""
    assert step.floor_us(32, 0, bandwidth=3.0, peak=1e9) == pytest.approx(4980, rel=0.02)
    assert step.floor_us(1024, 0, bandwidth=1e9, peak=800.0) == pytest.approx(18000, rel=0.1)


def test_a_failed_part_is_told_and_does_not_stop_the_others() -> None:
    """Fails if a missing library is an error, or an error ends the report."""

    def missing() -> Any:
        raise ModuleNotFoundError("No module named 'cuda'", name="cuda")

    def broken() -> Any:
        raise ValueError("no")

    assert gpu_check._guarded(missing) == {"skipped": "cuda is not installed"}
    assert gpu_check._guarded(broken) == {"error": "ValueError: no"}


def test_without_a_gpu_it_says_so() -> None:
    """Fails if the command pretends to have measured."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "needs an NVIDIA GPU" in ran.stderr
