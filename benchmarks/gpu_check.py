"""Tests and measures everything that needs a GPU; installs nothing.

    make gpu-check                     # everything; results in docs/benchmarks/gpu-check-<device>.md and .json
    make gpu-check GROUP=8b            # one group: tiny, start, 8b or packed, each in at most 200 s

Groups can be run in separate calls, also on different days: their documents are merged if code, device and driver are
equal; `--merge` only merges them and needs no GPU. A part or an engine whose library is missing is skipped, with the
reason. It is a failure, with exit status 1, if one crashes, is wrong, or was requested by name and skipped. It runs
from a checkout with the installed torch and triton. The last line of standard output is one JSON document.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from gpu.parts import GROUPS, Part
from gpu.session import Setup
from gpu.sizes import FULL, REHEARSAL
from gpu.store import ROOT, Place, code, commit, failures, places
from gpu.worker import Here, Worker

_RESERVE = 5.0  # seconds at the end that are not given to a part
_NAMES = [part.name for group in GROUPS.values() for part in group.parts]


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=ROOT / "docs" / "benchmarks")
@click.option(
    "--group", "groups", multiple=True, type=click.Choice(list(GROUPS)), help="Run only this group; repeat for several."
)
@click.option("--part", "parts", multiple=True, type=click.Choice(dict.fromkeys(_NAMES)), help="Run only this part.")
@click.option("--engine", "engines", multiple=True, help="Try only this engine, which must run.")
@click.option("--commit", "named", help="Name of the measured commit. Default: `git describe` of this checkout.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Build in this folder, and keep it.")
@click.option("--merge", is_flag=True, help="Measure nothing; only merge the documents in --out.")
@click.option("--rehearse", is_flag=True, help="Use small sizes on this machine's CPU; the numbers mean nothing.")
def main(
    out: Path,
    groups: tuple[str, ...],
    parts: tuple[str, ...],
    engines: tuple[str, ...],
    named: str | None,
    work: Path | None,
    merge: bool,
    rehearse: bool,
) -> None:
    """Check the kernel, the step and every engine on this machine's GPU."""
    if merge:
        merged = [_written(place) for place in places(out, tuple(GROUPS))]
        sys.exit(0 if merged and all(each["passed"] for each in merged) else 1)
    if rehearse:
        os.environ |= {"DEVICE": "cpu", "TRITON_INTERPRET": "1"}
    place = Place(out, {"commit": named or commit() or "unknown", "code": code(), **_device(rehearse)})
    chosen = _chosen(groups, parts)
    for group, own in chosen.items():
        place.check(group, tuple(part.name for part in own) if parts else ())
    told = []
    with ExitStack() as opened:
        folder = work or Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="gpu-check-")))
        folder.mkdir(parents=True, exist_ok=True)
        setup = Setup(folder.resolve(), REHEARSAL if rehearse else FULL, engines)
        worker = opened.enter_context((Here if rehearse else Worker)(setup))
        for group, own in chosen.items():
            document = run(worker, own, bool(parts), setup.sizes.limit, partial(place.keep, group))
            told += failures(document["parts"])
    _written(place)
    for failure in told:
        click.echo(f"FAILED {failure}", err=True)
    sys.exit(1 if told else 0)


def _written(place: Place) -> dict[str, Any]:
    """Write the page of all merged documents, and print it and its document."""
    from gpu.report import markdown

    merged = place.merged(tuple(GROUPS))
    page = markdown(merged)
    place.write_page(page, merged)
    click.echo(page)
    click.echo(json.dumps(merged))
    return merged


def _device(rehearse: bool) -> dict[str, Any]:
    """The identity of the device; refuses a machine without a GPU."""
    try:
        import torch
    except ImportError as error:
        raise click.ClickException(f"gpu-check needs torch ({error})") from None
    if not rehearse and not torch.cuda.is_available():
        raise click.ClickException("gpu-check needs an NVIDIA GPU that this torch can use; there is none here")
    from gpu.device import identity

    return identity()


def _chosen(groups: tuple[str, ...], parts: tuple[str, ...]) -> dict[str, list[Part]]:
    """The parts to run, by group, from the requested groups and parts."""
    chosen = {name: list(group.parts) for name, group in GROUPS.items() if not groups or name in groups}
    if parts:
        chosen = {name: [part for part in own if part.name in parts] for name, own in chosen.items()}
    if unknown := set(parts) - {part.name for own in chosen.values() for part in own}:
        raise click.UsageError(f"{', '.join(sorted(unknown))}: not in the requested groups")
    return {name: own for name, own in chosen.items() if own}


def run(
    worker: Here, parts: list[Part], asked: bool, limit: float, keep: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Run the parts of a group, the most important first; returns the group's document.

    A part for which there is not enough time is skipped.

    Args:
        worker: runs the parts.
        parts: the parts of one group.
        asked: whether they were requested by name, so that skipping one is a failure.
        limit: seconds for all parts and a reserve.
        keep: called with the document after every part, so that an interrupted run leaves its results.
    """
    began, found = time.monotonic(), dict[str, Any]()
    document = {"measured": datetime.now(UTC).date().isoformat(), "seconds": 0.0, "parts": found}
    for part in parts:
        left, since = limit - _RESERVE - (time.monotonic() - began), time.monotonic()
        click.echo(f"{part.name} ...", err=True)
        if part.fresh:
            worker.close()
        result = worker.run(part.run, left, found) if left >= part.needs else _late(part, left)
        if asked and "skipped" in result:
            result["failures"] = ["it was asked for by name, and skipped"]
        found[part.name] = {**result, "seconds": round(time.monotonic() - since, 1)}
        document["seconds"] = round(time.monotonic() - began, 1)
        keep(document)
        click.echo(f"{part.name}: {time.monotonic() - since:.0f} s", err=True)
    worker.close()
    return document


def _late(part: Part, left: float) -> dict[str, Any]:
    return {"skipped": f"out of time: {left:.0f} s were left, and it needs {part.needs:.0f}; run it alone"}


if __name__ == "__main__":
    main()
