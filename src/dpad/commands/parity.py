"""`dpad parity DIR`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dpad.commands.lines import say
from dpad.commands.terminal import TerminalProgress, fit_threads
from dpad.export.parity.compare import compare_bundle, require_passed
from dpad.export.parity.report import parity_lines
from dpad.export.pipeline import write_report
from dpad.export.progress import Progress
from dpad.export.writing import writer
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.transfer import copy_command
from dpad.runtime.errors import ExportError


@click.command("parity")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--engine",
    "engines",
    multiple=True,
    help="Engine to compare, a name that `dpad inspect` lists; repeat for several. Default: all.",
)
@click.option("--steps", default=3, show_default=True, type=click.IntRange(1), help="Random steps of each mode.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of random steps and prompts.")
@click.option(
    "--trajectories/--no-trajectories",
    default=None,
    help="Also compare whole decodes. Default: if these take under 10 minutes, judging by the steps.",
)
@click.option(
    "--emulate",
    is_flag=True,
    help="Also compare bfloat16 steps in ONNX Runtime on the CPU: float32 with every result rounded. Slow.",
)
@click.option("--write/--no-write", default=True, show_default=True, help="Put the report into the bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    directory: Path,
    engines: tuple[str, ...],
    steps: int,
    seed: int,
    trajectories: bool | None,
    emulate: bool,
    write: bool,
    as_json: bool,
) -> None:
    """Compare the engines of the bundle DIR with PyTorch, step by step and over whole trajectories.

    Exits with status 1 if an engine exceeds the tolerance of its dtype. If no engine can be compared here, the command
    succeeds, and the report's "passed" is null.
    """
    progress = TerminalProgress()
    bundle = Bundle.open(directory)
    if write and not engines:
        _check_writable(bundle)
    fit_threads(bundle)
    report = compare_bundle(
        bundle, progress, engines=engines, steps=steps, seed=seed, trajectories=trajectories, emulate=emulate
    )
    if write and not engines:
        put_report(bundle, report, progress)
    if as_json:
        click.echo(json.dumps(report))
    else:
        for line in parity_lines(report):
            say(line)
    require_passed(report)


def _check_writable(bundle: Bundle) -> None:
    """Raise `ExportError`, before any work, if the report could not be put into the bundle."""
    if bundle.is_linked:
        copy = copy_command(bundle.directory, bundle.manifest.name)
        raise ExportError(f"{bundle.directory} belongs to a hub's cache; add --no-write, or compare a copy: {copy}")
    try:
        writer.check_replaceable(bundle.directory)
    except ExportError as error:
        raise ExportError(f"the report cannot be put into the bundle (--no-write leaves it out): {error}") from error


def put_report(bundle: Bundle, report: dict[str, Any], progress: Progress) -> None:
    """Replace the bundle, atomically, by one that holds `report`; the other files are shared."""
    with writer.stage_bundle(bundle.directory, bundle.manifest) as stage:
        writer.link_tree(bundle.directory, stage, bundle.manifest.files.keys() - {"parity.json"})
        write_report(stage, report)
        writer.write_manifest(stage, replace(bundle.manifest, parity="parity.json"), progress)
