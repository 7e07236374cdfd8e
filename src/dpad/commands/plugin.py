"""`dpad plugin compile --out DIR`."""

import json
import os
from pathlib import Path

import click

from dpad.commands.terminal import TerminalProgress
from dpad.export.writing.workspace import workspace
from dpad.plugins.tiling import CAPABILITIES, DTYPES, HEAD_SIZES
from dpad.runtime.errors import ExportError
from dpad.runtime.extras import needed_by


@click.group("plugin")
def command() -> None:
    """Compile the attention kernel."""


@command.command("compile")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Directory of the kernels."
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    type=click.Choice(CAPABILITIES),
    default=CAPABILITIES,
    help="Compute capability; repeat for several. Default: all.",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(DTYPES),
    default=DTYPES,
    help="Dtype; repeat for several. Default: all.",
)
@click.option(
    "--head-size",
    "head_sizes",
    multiple=True,
    type=click.Choice([str(size) for size in HEAD_SIZES]),
    default=[str(size) for size in HEAD_SIZES],
    help="Head size; repeat for several. Default: all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def compile_command(
    out: Path, capabilities: tuple[str, ...], dtypes: tuple[str, ...], head_sizes: tuple[str, ...], as_json: bool
) -> None:
    """Compile the attention kernel ahead of time; needs no GPU.

    Writes PTX, machine code and kernels.json, which holds the facts that a launcher needs: entry,
    parameters in order, threads, shared memory. One kernel serves every number of heads,
    every grouping and every scale. The files are moved to DIR when all are written.
    """
    with needed_by("compiling kernels", ExportError):
        from dpad.plugins.compile import compile_all
    out.mkdir(parents=True, exist_ok=True)
    progress = TerminalProgress()
    kernels = []
    with workspace(out, ".compile-") as folder, progress.task("compile kernels") as advance:
        stage = folder / "new"
        stage.mkdir()
        for kernel in compile_all(capabilities, dtypes, [int(size) for size in head_sizes]):
            (stage / f"{kernel.entry}.ptx").write_text(kernel.ptx)
            (stage / f"{kernel.entry}.cubin").write_bytes(kernel.cubin)
            kernels.append(kernel.metadata())
            facts = f"{kernel.registers} registers, {kernel.spill_bytes} bytes spilled, {kernel.shared_bytes} shared"
            progress.say(f"{kernel.entry}: {facts}")
            advance(1)
        (stage / "kernels.json").write_text(json.dumps(kernels, indent=1) + "\n")
        for path in sorted(stage.iterdir(), key=lambda path: path.suffix == ".json"):  # the list is moved last
            os.replace(path, out / path.name)
    click.echo(json.dumps(kernels) if as_json else f"{out}: {len(kernels)} kernels")
