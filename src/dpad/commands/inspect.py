"""`dpad inspect DIR`."""

import json
from pathlib import Path
from typing import Any

import click

from dpad.commands.lines import say
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.files import read_json
from dpad.runtime.engines.candidates import candidates
from dpad.runtime.engines.machine import Machine
from dpad.runtime.engines.select import chosen_from
from dpad.runtime.errors import BundleError
from dpad.runtime.show import escaped


@click.command("inspect")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(directory: Path, as_json: bool) -> None:
    """Show what the bundle DIR holds, where it comes from, and which of its engines run here."""
    bundle, machine = Bundle.open(directory), Machine.current()
    found = candidates(bundle, machine)
    chosen = chosen_from(bundle, found)
    engines = [
        {
            "engine": c.name,
            "variant": c.variant,
            "file": c.file,
            "runs_here": c.obstacle is None,
            "obstacle": c.obstacle,
            "known": c.known,
            "chosen": c is chosen,
        }
        for c in found
    ]
    if as_json:
        click.echo(json.dumps({"bundle": str(directory), "engines": engines, "manifest": bundle.manifest.to_json()}))
        return
    for line in _lines(bundle, engines):
        say(escaped(line))


def _lines(bundle: Bundle, engines: list[dict[str, Any]]) -> list[str]:
    manifest, contract = bundle.manifest, bundle.manifest.contract
    provenance = manifest.provenance
    versions = ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items())
    lines = [
        *(["RANDOM WEIGHTS, made by dpad synth: all text is noise"] if manifest.is_random else []),
        f"{manifest.name}: {manifest.architecture}, {contract.layers} layers, {contract.heads} heads "
        f"({contract.kv_heads} key/value) of {contract.head_size}, vocabulary {contract.vocab_size}",
        f"source    {provenance.get('source')}",
        f"limits    batch {contract.max_batch}, canvas {contract.max_length} tokens",
        f"causal between blocks of {contract.block_length}"
        if contract.block_causal
        else f"tuned for blocks of {contract.block_length}, window {contract.window}",
        f"made with {versions}",
        *([] if manifest.tokenizer else ["tokenizer none: prompts are token ids, dpad generate DIR --ids '1 2 3'"]),
        f"presets   {', '.join(manifest.presets) or 'none'}",
        "files",
        *(f"  {entry.size:>12,}  {entry.sha256[:12]}  {name}" for name, entry in manifest.files.items()),
        "engines, in order of preference",
    ]
    for engine in engines:
        state = "runs here" if engine["runs_here"] else f"not here: {engine['obstacle']}"
        state = "runs here, chosen" if engine["chosen"] else state
        known = f"; {engine['known']}" if engine["runs_here"] and engine["known"] else ""
        lines.append(f"  {engine['engine']} ({engine['variant']}): {state}{known}")
    return [*lines, f"parity    {_parity(bundle)}"]


def _parity(bundle: Bundle) -> str:
    if bundle.manifest.parity is None:
        return f"not checked (dpad parity {bundle.directory})"
    path = bundle.path(bundle.manifest.parity)
    try:
        return _verdict(read_json(path))
    except (OSError, ValueError, LookupError, TypeError) as error:
        told = f"{path} is not a parity report ({type(error).__name__}: {error})"
        raise BundleError(f"{told}; make one with: dpad parity {bundle.directory}") from error


def _verdict(report: dict[str, Any]) -> str:
    states = ", ".join(f"{engine['engine']} {engine['variant']} {engine['status']}" for engine in report["engines"])
    verdict = {True: "passed", False: "FAILED", None: "nothing could be compared"}[report["passed"]]
    return f"{verdict} ({states})"
