"""Is `dpad serve` fit for production? The server's acceptance, scenario by scenario, against a real process.

    python benchmarks/serving.py --bundle bundles/tiny
    python benchmarks/serving.py --scenario overload --scenario drain --short

The server runs on the first core, the load on the last. Most scenarios run over an engine that takes 5 ms a pass and
computes nothing, the others over the bundle's own. What was measured stays in the document when other scenarios of the
same commit and machine are run later; others are dropped.
"""

import asyncio
import json
import resource
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import measure
from serving_load import crash, hostile, load, soak, speed, suites, truth
from serving_load.run import FULL, PASS_MS, SHORT, Run
from serving_load.target import LOAD, SERVER, pinned

Scenario = Callable[[Run], Awaitable[dict[str, Any]]]

SCENARIOS: dict[str, Scenario] = {
    "overhead": speed.overhead,
    "throughput": speed.throughput,
    "deadline": speed.deadline,
    "overload": load.overload,
    "disconnects": load.disconnects,
    "slow": load.slow,
    "drain": truth.drain,
    "engine_killed": crash.engine_killed,
    "counts": truth.counts,
    "same_tokens": truth.same_tokens,
    "oversize": hostile.oversize,
    "bad_input": hostile.bad_input,
    "privacy": hostile.privacy,
    "conformance": suites.conformance,
    "schema": suites.schema,
    "ray": suites.ray,
    "soak": soak.soak,
}
_KEPT = ("machine", "commit", "model", "weights_sha256", "short")


def commit() -> str:
    """The commit that is checked out, with `+` where files that git knows were changed; empty outside a repository."""
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        told = subprocess.run(  # noqa: S603
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return told.stdout.strip()


def kept(out: Path | None, document: dict[str, Any]) -> dict[str, Any]:
    """The findings that are in `out` already, if they were made with the same."""
    if out is None or not out.exists():
        return {}
    before = json.loads(out.read_text("utf-8"))
    return dict(before["scenarios"]) if all(before[name] == document[name] for name in _KEPT) else {}


@click.command(cls=measure.Benchmark)
@measure.bundle_option
@click.option("--scenario", "names", multiple=True, type=click.Choice(list(SCENARIOS)), help="Default: all of them.")
@click.option("--short", is_flag=True, help="A few requests of each, on any core, in seconds: no figures to keep.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Of the soak. Default: 20.")
@measure.out_option
def main(bundle: Path, names: tuple[str, ...], short: bool, minutes: float | None, out: Path | None) -> None:
    """Measure a server of BUNDLE."""
    size = SHORT if short else FULL
    run = Run(bundle, replace(size, minutes=minutes) if minutes else size)
    document: dict[str, Any] = {
        "benchmark": "serving",
        "machine": measure.machine(),
        "commit": commit(),
        **measure.model_facts(bundle),
        "short": short,
        "pass_ms": PASS_MS,
        "cores": {"server": SERVER, "load": LOAD},
    }
    found = kept(out, document)
    many, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, max(many, 4096)), most))
    with nullcontext() if short else pinned(LOAD):
        for name in names or SCENARIOS:
            measure.say(f"{name} ...")
            began = time.perf_counter()
            found[name] = asyncio.run(SCENARIOS[name](run))
            found[name]["seconds"] = measure.digits(time.perf_counter() - began)
            document["scenarios"] = {each: found[each] for each in SCENARIOS if each in found}
            measure.store(document, out)
    measure.publish(document, out)


if __name__ == "__main__":
    main()
