"""Proves and measures on a GPU what cannot be proven without one; installs nothing.

    make gpu-check                     # results in docs/benchmarks/gpu-<device>.json and .md

Each part is skipped with its reason where something is missing. Runs from a checkout, with
torch and triton as they are. The last line of standard output is one JSON document.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 8 * 60  # seconds, of which a reserve is kept
COMPILE = True  # also time the step as Inductor compiles it
_RESERVE = 30


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=ROOT / "docs" / "benchmarks")
@click.option("--part", "parts", multiple=True, help="Only this part; repeat for several.")
def main(out: Path, parts: tuple[str, ...]) -> None:
    """Check the kernel, the step and every engine on this machine's GPU."""
    began = time.monotonic()
    try:
        import torch
    except ImportError as error:
        raise click.ClickException(f"gpu-check needs torch ({error})") from None
    if not torch.cuda.is_available():
        raise click.ClickException("gpu-check needs an NVIDIA GPU that this torch can use; there is none here")
    report = run(began, parts)
    out.mkdir(parents=True, exist_ok=True)
    name = "gpu-" + "-".join(report["device"]["name"].lower().split())
    from gpu.report import markdown

    (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / f"{name}.md").write_text(markdown(report))
    click.echo(markdown(report))
    click.echo(json.dumps(report))
    sys.exit(0 if report["passed"] else 1)


def run(began: float, parts: tuple[str, ...]) -> dict[str, Any]:
    """Every part, most important first; what there is no time for says so."""
    from gpu import decode, device, kernels, ptx, step
    from measure import shipped

    report: dict[str, Any] = {"device": device.describe(), "weights_sha256": {"tiny": shipped("tiny")}}
    capability = report["device"]["compute_capability"]
    ceilings = device.ceilings()
    report["ceilings"] = ceilings
    bandwidth, peak = ceilings["bandwidth_tb_s"], ceilings["bfloat16_tflop_s"]

    def left() -> float:
        return LIMIT - _RESERVE - (time.monotonic() - began)

    todo: dict[str, tuple[float, Callable[[], Any]]] = {  # seconds it needs at least
        "kernel": (30, kernels.correctness),
        "ptx": (20, lambda: ptx.correctness(capability)),
        "eager": (20, decode.eager),
        "speed": (30, lambda: kernels.speed(bandwidth, min(90, left()))),
        "step": (60, lambda: step.measure(bandwidth, peak, left() - 150 if COMPILE else 0)),
        "engines": (60, decode.compiled),
        "sweep": (30, lambda: kernels.sweep(capability, min(60, left()))),
    }
    for name, (needs, part) in todo.items():
        if parts and name not in parts:
            continue
        since = time.monotonic()
        click.echo(f"{name} ...", err=True)
        report[name] = _guarded(part) if left() > needs else {"skipped": "out of time"}
        click.echo(f"{name}: {time.monotonic() - since:.0f} s", err=True)
    report["seconds"] = round(time.monotonic() - began, 1)
    checked = [report[name] for name in ("kernel", "ptx", "eager") if name in report]
    report["passed"] = all("skipped" in part or part.get("passed", False) for part in checked)
    return report


def _guarded(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except ImportError as error:
        return {"skipped": f"{error.name or error} is not installed"}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


if __name__ == "__main__":
    main()
