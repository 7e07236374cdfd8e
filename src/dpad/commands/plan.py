"""`dpad plan MODEL`."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dpad.commands.lines import say
from dpad.export.assumptions import assumptions, contradiction
from dpad.export.engines.recipe import ATTENTIONS
from dpad.export.forecast import forecast
from dpad.export.forecast.forecast import BLOCK_CAUSAL, MODES, Load, Sizes
from dpad.export.forecast.gpus import GPUS, GpuModel
from dpad.export.forecast.hazards import fits, hazards
from dpad.export.hub import read_config
from dpad.models.checkpoint.checkpoint import Config, parse_config
from dpad.runtime.bundle.variant import FULL, PACKED, ROWS, variant_name
from dpad.runtime.engines.machine import available_memory
from dpad.runtime.errors import CheckpointError
from dpad.runtime.show import shown

_LONGEST = 1 << 20  # longest canvas in tokens, far above any model's; arrays of its positions must fit into memory


@click.command("plan")
@click.argument("model")
@click.option("--dtype", type=click.Choice(ROWS), help="Dtype of the engine. Default: the checkpoint's own.")
@click.option(
    "--weights",
    type=click.Choice((FULL, *PACKED)),
    default=FULL,
    show_default=True,
    help="Format of the layers' weights, as for `dpad export`.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 4),
    show_default=True,
    help="Sequences per step; repeat for several.",
)
@click.option(
    "--length",
    "lengths",
    multiple=True,
    type=click.IntRange(1, _LONGEST),
    default=(1024,),
    show_default=True,
    help="Tokens of the canvas, prompt included; repeat for several.",
)
@click.option("--block-length", default=32, show_default=True, type=click.IntRange(1), help="As for `dpad export`.")
@click.option("--window", default=256, show_default=True, type=click.IntRange(1), help="As for `dpad export`.")
@click.option(
    "--attention",
    type=click.Choice(ATTENTIONS),
    default="native",
    show_default=True,
    help="As for `dpad export`; `plugin` also needs device memory for partial results.",
)
@click.option(
    "--gpu", "names", multiple=True, type=click.Choice(tuple(GPUS)), help="GPU; repeat for several. Default: all."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    model: str,
    dtype: str | None,
    weights: str,
    batches: tuple[int, ...],
    lengths: tuple[int, ...],
    block_length: int,
    window: int,
    attention: str,
    names: tuple[str, ...],
    as_json: bool,
) -> None:
    """Predict the memory of MODEL's engines and the least time of a step, without weights and without a GPU.

    MODEL is a name, a hub id, a checkpoint directory (config.json is enough) or a bundle.
    """
    raw = read_config(model)
    architecture, config = parse_config(raw)
    key = "torch_dtype" if raw.get("dtype") is None else "dtype"  # its newer name
    stored = str(raw.get(key) or "bfloat16")
    if stored not in ROWS:
        raise CheckpointError(f"config.json: {key} {shown(stored)} is not one of {', '.join(ROWS)}")
    variant = variant_name(dtype or ("float16" if stored == "float32" else stored), weights)
    sizes = Sizes.of(architecture, config)
    block_length = config.block_length or block_length
    loads = [Load(batch, length, block_length, window) for batch in batches for length in lengths]
    gpus = {name: GPUS[name] for name in names or GPUS}
    told = contradiction(raw, config, model, Path(model) if os.path.isdir(model) else None)
    plugin = attention == "plugin"
    found = [*assumptions(raw), *([told] if told else [])]
    found += hazards(config, sizes, stored, variant, loads, gpus, plugin)
    document = _document(config, sizes, variant, loads, gpus, plugin) | {"hazards": found}
    if as_json:
        click.echo(json.dumps({"model": model, "architecture": architecture, **document}))
        return
    say(
        f"{Path(model).name}: {architecture}, {config.layers} layers, {_count(sizes.weights)} weights, {config.heads} "
        f"heads ({config.kv_heads} key/value) of {config.head_size}, vocabulary {config.vocab_size}"
    )
    plan = document["plan"]
    say(
        f"TensorRT-RTX plan in {variant}, for GPUs that it supports: {_gb(plan['bytes'])} on disk; the build takes "
        f"about {_gb(plan['build_memory'])} of memory ({_gb(available_memory())} are available here)\n"
    )
    for line in [*_memory_lines(document), "", *_floor_lines(document), "", *_hazard_lines(found)]:
        say(line)


def _document(
    config: Config, sizes: Sizes, variant: str, loads: list[Load], gpus: dict[str, GpuModel], plugin: bool
) -> dict[str, Any]:
    """Every number of the forecast, in bytes and milliseconds."""
    shift, memory, floors = config.logit_shift, [], []
    modes = BLOCK_CAUSAL if config.block_length else MODES
    for load in loads:
        need = forecast.memory(sizes, variant, load, plugin)
        room = [name for name, gpu in gpus.items() if fits(need.total, gpu)]
        memory.append({"batch": load.batch, "length": load.length, **asdict(need), "total": need.total, "fits": room})
        for name, gpu in gpus.items():
            steps = {mode: asdict(forecast.floor(sizes, variant, gpu, load, mode, shift)) for mode in modes}
            floors.append({"gpu": name, "batch": load.batch, "length": load.length, "steps": steps})
    weights = forecast.stored(sizes, variant)
    plan = {"variant": variant, "bytes": weights, "build_memory": forecast.predicted_building(sizes, variant)}
    return {"sizes": asdict(sizes), "plan": plan, "memory": memory, "floors": floors}


def _memory_lines(document: dict[str, Any]) -> list[str]:
    kinds = ["weights", "caches", "activations", "recordings", "parts", "total"]
    if not any(entry["parts"] for entry in document["memory"]):
        kinds.remove("parts")
    rows = [["batch", "length", *kinds, "fits"]]
    every = {entry["gpu"] for entry in document["floors"]}
    for entry in document["memory"]:
        parts = [_gb(entry[name]) for name in kinds]
        room = "every GPU listed" if every == set(entry["fits"]) else ", ".join(entry["fits"]) or "none listed"
        rows.append([str(entry["batch"]), str(entry["length"]), *parts, room])
    return ["on the device, for an engine exported with these limits:", *_columns(rows)]


def _floor_lines(document: dict[str, Any]) -> list[str]:
    lines = ["least milliseconds of a step, for the middle block (m: limited by memory reads, p: by products):"]
    loads = {(entry["batch"], entry["length"]): entry["steps"] for entry in document["floors"]}
    for (batch, length), steps in loads.items():
        rows = [
            [f"batch {batch}, length {length}", *steps],
            ["rows computed + attended", *(f"{step['queries']} + {step['cached']}" for step in steps.values())],
        ]
        for entry in document["floors"]:
            if (entry["batch"], entry["length"]) == (batch, length):
                times = [f"{_three(step['milliseconds'])} {step['bound'][0]}" for step in entry["steps"].values()]
                rows.append([entry["gpu"], *times])
        lines += _columns(rows)
    return lines


def _hazard_lines(found: list[str]) -> list[str]:
    return ["hazards:", *(f"  {line}" for line in found)] if found else ["no hazards known"]


def _columns(rows: list[list[str]]) -> list[str]:
    """Rows of equal length, in columns two blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _three(value: float) -> str:
    """Format with three digits and without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
