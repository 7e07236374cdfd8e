"""Compares this checkout with another one, decode by decode: seconds per sample and milliseconds per step.

    git worktree add /tmp/before COMMIT
    python benchmarks/ab.py --before /tmp/before --out docs/benchmarks/ab.json

Each side is a process that exports a bundle with its own package and keeps it open. Both decode the same prompts with
the rungs of `ladder` and take turns at every decode, so that drift of the machine affects both alike. `step` is the
time inside the engine divided by the number of passes. Goal: in the median of the ratios, no rung is slower than
before.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click

import measure
from dpad.evaluation.tasks import problems
from ladder import RUNGS

HERE = Path(__file__).resolve().parent
SIDES = ("before", "after")
GOAL = 1.02  # the ratio of two equal checkouts may be this far from 1

Decoded = dict[str, Any]


class Side:
    """A process over one checkout's package."""

    def __init__(self, checkout: Path, bundle: Path, threads: int) -> None:
        self._process = python(checkout, str(HERE / "ab_side.py"), str(bundle), str(threads))

    def decode(self, prompt: str, options: dict[str, Any]) -> Decoded:
        """Run one decode; returns its times and its result."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"prompt": prompt, "options": options}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise click.ClickException(f"a side ended with status {self._process.wait()}; its error is above")
        found: Decoded = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def python(checkout: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a Python process that imports the package of `checkout`; its standard error is shown."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, *arguments]
    return subprocess.Popen(  # noqa: S603
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@contextmanager
def sides(before: Path, after: Path, model: str, threads: int) -> Iterator[dict[str, Side]]:
    """Both sides, each with a bundle that its own package exported."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        found = {}
        for name, checkout in zip(SIDES, (before, after)):
            bundle = Path(folder) / name
            command = ("-m", "dpad", "export", model, "--out", str(bundle), "--max-length", "4096", "--no-parity")
            exported = python(checkout, *command)
            exported.communicate()
            if exported.returncode:
                raise click.ClickException(f"{checkout} could not export {model}; its error is above")
            found[name] = Side(checkout, bundle, threads)
            stack.callback(found[name].close)
        yield found


def options_of(rung: dict[str, Any], length: int) -> dict[str, Any]:
    """The keyword arguments of a rung of the ladder; `schedule` is the arguments of `Gaussian`, or None."""
    thin = {"k": 3.0, "scale": 1.6, "window": min(256, length)} if rung.get("thin") else None
    return {"cache": "none", **rung, "gen_length": length, "thin": thin}


def compared(runs: dict[str, list[Decoded]]) -> dict[str, Any]:
    """The ratios of one rung, after over before, for each decode."""
    before, after = runs["before"], runs["after"]

    def ratio(above: list[float], below: list[float]) -> dict[str, Any]:
        return {
            "before_ms": measure.spread([1e3 * one for one in below]),
            "after_ms": measure.spread([1e3 * one for one in above]),
            "ratio": measure.paired(above, below),
        }

    pairs = list(zip(before, after))
    return {
        "samples": len(pairs),
        "sample": ratio([one["seconds"] for one in after], [one["seconds"] for one in before]),
        "step": ratio([one["inside"] / one["nfe"] for one in after], [one["inside"] / one["nfe"] for one in before]),
        "differing_tokens": sum(a != b for x, y in pairs for a, b in zip(x["canvas"], y["canvas"], strict=True)),
        "differing_passes": sum(x["nfe"] != y["nfe"] for x, y in pairs),
    }


@click.command(cls=measure.Benchmark)
@click.option("--before", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--after", type=click.Path(path_type=Path, exists=True, file_okay=False), default=HERE.parent)
@click.option("--model", default="tiny", show_default=True, help="Checkpoint to export, as `dpad export`.")
@click.option("--length", "lengths", multiple=True, type=int, default=(256, 512, 1024), show_default=True)
@click.option("--shots", multiple=True, type=click.IntRange(0), default=(0, 1, 4), show_default=True)
@click.option("--rung", "rungs", multiple=True, type=click.Choice(tuple(RUNGS)), help="Only these  [all but vanilla].")
@click.option("--samples", default=5, show_default=True, type=click.IntRange(1), help="Problems a cell.")
@measure.threads_option
@measure.rounds_option
@measure.out_option
def main(
    before: Path,
    after: Path,
    model: str,
    lengths: tuple[int, ...],
    shots: tuple[int, ...],
    rungs: tuple[str, ...],
    samples: int,
    threads: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Compare this checkout with the one at BEFORE, rung by rung of the ladder."""
    names = rungs or tuple(name for name in RUNGS if name != "vanilla")
    cells = []
    with sides(before, after, model, threads) as found:
        for length in lengths:
            for number in shots:
                entry: dict[str, Any] = {"length": length, "shots": number, "rungs": {}}
                prompts = [one.prompt for one in problems(samples, number).samples]
                for name in names:
                    options = options_of(RUNGS[name], length)
                    runs: dict[str, list[Decoded]] = {side: [] for side in SIDES}
                    for prompt in prompts:
                        calls = {side: partial(one.decode, prompt, options) for side, one in found.items()}
                        for side, decoded in measure.interleaved(calls, rounds).items():
                            runs[side] += decoded
                    entry["rungs"][name] = compared(runs)
                    ratios = [entry["rungs"][name][what]["ratio"]["median"] for what in ("sample", "step")]
                    measure.say(f"{length} tokens, {number}-shot, {name}: {ratios[0]:g} a sample, {ratios[1]:g} a step")
                cells.append(entry)
    every = [rung for cell in cells for rung in cell["rungs"].values()]
    document = {
        "benchmark": "ab",
        "machine": measure.machine(),
        "model": model,
        "weights_sha256": {model: measure.shipped(model)},
        "engine": "onnxruntime-cpu",
        "dtype": "float32",
        "threads": threads,
        "rounds": rounds,
        "goal": {"at_most": GOAL, "met": all(rung["sample"]["ratio"]["median"] <= GOAL for rung in every)},
        "cells": cells,
    }
    measure.publish(document, out)


if __name__ == "__main__":
    main()
