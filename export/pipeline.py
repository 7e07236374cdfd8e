"""`export_bundle`: the whole export, from checkpoint to bundle.

    bundle, is_new = export_bundle("tiny", Path("bundles/tiny"), ExportSettings(), progress)

It places the weights, traces the step once per dtype, checks it, compiles it for the targets and compares the result
with PyTorch. Only then is the bundle put in place.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dpad.export.assumptions import assumptions, contradiction
from dpad.export.engines.recipe import build_engines
from dpad.export.forecast.hazards import beyond_training
from dpad.export.hub import Source, published_id, resolve
from dpad.export.progress import Progress
from dpad.export.rehearsal.rehearsal import rehearse
from dpad.export.rehearsal.tryout import try_out
from dpad.export.settings import ExportSettings
from dpad.export.step import trace, weights
from dpad.export.step.pack import Packing, place_packed
from dpad.export.step.packed_graph import unpack_weights
from dpad.export.step.quantize import quantize_step
from dpad.export.step.trace_decide import trace_decide
from dpad.export.tokenizer.agreement import check_agreement
from dpad.export.tokenizer.place import place_tokenizer
from dpad.export.writing import writer
from dpad.export.writing.provenance import describe
from dpad.models.checkpoint.checkpoint import FAMILIES, Checkpoint
from dpad.models.checkpoint.headers import read_headers
from dpad.models.presets import presets_of
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import Manifest, StepEntry
from dpad.runtime.bundle.variant import DYNAMIC, FULL, rows_dtype, weights_of
from dpad.runtime.contract import StepContract
from dpad.runtime.errors import BundleError, CheckpointError

Check = Callable[[Path, Manifest, Progress], dict[str, Any]]
Traced = Callable[[str], ir.Model]  # dtype -> traced step


def export_bundle(
    model: str,
    out: Path,
    settings: ExportSettings,
    progress: Progress,
    *,
    check: Check | None = None,
    force: bool = False,
) -> tuple[Bundle, bool]:
    """Export `model` to the directory `out`.

    Args:
        model: `tiny`, `llada`, a hub id or a directory (see `hub.resolve`).
        out: directory of the bundle; it is replaced in one step, after everything has succeeded.
        settings: see `ExportSettings`.
        progress: reports long work.
        check: compares the staged bundle with PyTorch and returns the parity report; it raises an error to reject the
            bundle.
        force: export even if `out` is up to date.

    Returns:
        The bundle, and whether it is new (False: `out` was up to date).
    """
    source = resolve(model)
    checkpoint = Checkpoint.open(source.directory, own=source.embedded)
    if told := contradiction(checkpoint.raw_config, checkpoint.config, source.label, source.directory):
        raise CheckpointError(told)
    settings = settings.resolved(checkpoint)
    wanted = {**asdict(settings), "capabilities": settings.recipe().compiled(), "parity": check is not None}
    arguments = [*settings.arguments(), *([] if check else ["--no-parity"])]
    provenance = describe(source, checkpoint, wanted, progress) | {"arguments": arguments}
    previous = _previous(out)
    if previous and not force and previous.manifest.provenance.get("key") == provenance["key"]:
        return previous, False
    for note in _notes(checkpoint, settings):
        progress.say(note)
    for shard in checkpoint.shards:
        weights.check_finite(shard, progress)
    weights.check_tied(checkpoint)
    contract = make_contract(checkpoint, settings)
    with writer.stage_bundle(out) as stage:
        tokenizer = place_tokenizer(checkpoint, stage / "tokenizer", progress, settings.chat_template)
        presets = _presets(source, checkpoint, progress)
        rehearse(checkpoint.directory, stage / "tokenizer", presets, contract, progress)
        check_agreement(checkpoint, stage / "tokenizer", presets, progress)
        traced = _tracer(checkpoint, contract, progress)
        place = partial(_export_step, source, checkpoint, stage, settings.group, progress, traced)
        steps = {name: place(name) for name in settings.steps()}
        decide = _export_decide(stage, contract, progress)
        engines = build_engines(settings.recipe(), contract, stage, steps, decide, previous, progress)
        manifest = Manifest(
            name=source.name,
            contract=contract,
            architecture=checkpoint.architecture,
            model_config=checkpoint.raw_config,
            steps=steps,
            decide=decide,
            engines=engines,
            tokenizer=tuple(f"tokenizer/{name}" for name in tokenizer),
            presets=presets,
            provenance=provenance,
            parity=None,
        )
        manifest = writer.write_manifest(stage, manifest, progress)
        if check is not None:
            write_report(stage, check(stage, manifest, progress))
            manifest = writer.write_manifest(stage, replace(manifest, parity="parity.json"), progress)
        try_out(stage, progress)
    return Bundle(out, manifest), True


def write_report(directory: Path, report: dict[str, Any]) -> None:
    """Write parity.json."""
    (directory / "parity.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def make_contract(checkpoint: Checkpoint, settings: ExportSettings) -> StepContract:
    """The step's contract, from the checkpoint and resolved settings."""
    config = checkpoint.config
    assert settings.max_length is not None
    return StepContract(
        family=FAMILIES[checkpoint.architecture].__name__.rsplit(".", 1)[1],
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        vocab_size=config.vocab_size,
        mask_token_id=config.mask_token_id,
        eos_token_id=config.eos_token_id,
        logit_shift=config.logit_shift,
        max_batch=settings.max_batch,
        max_length=settings.max_length,
        block_length=config.block_length or settings.block_length,
        window=settings.window,
        tempers_confidence=config.tempers_confidence,
        block_causal=config.block_length > 0,
    )


def _notes(checkpoint: Checkpoint, settings: ExportSettings) -> list[str]:
    """Notes for the user: ignored files, assumed keys, and a warning if the canvas exceeds the trained length."""
    assert settings.max_length is not None
    return [
        *checkpoint.notes,
        *assumptions(checkpoint.raw_config),
        *beyond_training(checkpoint.config, [settings.max_length]),
    ]


def _presets(source: Source, checkpoint: Checkpoint, progress: Progress) -> dict[str, Any]:
    """The checkpoint's presets. They are reported, since a local directory is matched with a published one by name."""
    hub_id = published_id(source, checkpoint.raw_config)
    presets = presets_of(hub_id, checkpoint.directory, *checkpoint.eos_token_ids)
    taken = f" (the checkpoint is taken for {hub_id})" if hub_id != source.label else ""
    if presets:
        progress.say(f"presets: {', '.join(presets)}{taken}")
    return presets


def _previous(out: Path) -> Bundle | None:
    """The bundle that is already at `out`, or None if there is none or it is damaged."""
    try:
        return Bundle.open(out)
    except BundleError:
        return None


def _tracer(checkpoint: Checkpoint, contract: StepContract, progress: Progress) -> Traced:
    """A function from dtype to traced step; it traces each dtype once and returns a new copy on every call."""

    @cache
    def traced(dtype: str) -> ir.Model:
        with progress.task(f"trace the step in {dtype}"):
            return trace.trace_step(checkpoint.architecture, checkpoint.config, contract, dtype)

    return lambda dtype: traced(dtype).clone()


def _export_step(
    source: Source, checkpoint: Checkpoint, stage: Path, group: int, progress: Progress, traced: Traced, name: str
) -> StepEntry:
    """Write weights and step.onnx of one step into a folder of its name; W8A8 needs the float32 step there first."""
    folder, dtype, packed = stage / name, rows_dtype(name), weights_of(name)
    began = time.perf_counter()
    if name == DYNAMIC:
        with progress.task("quantize the step to W8A8"):
            shards = quantize_step(stage / "float32", folder)
    else:
        if packed == FULL:
            shards = weights.place_weights(checkpoint, folder, dtype, progress, link=not source.embedded)
        else:
            shards = place_packed(checkpoint, folder, dtype, Packing(packed, group), progress)
        began = time.perf_counter()
        model, tensors = traced(dtype), read_headers(shards, packed=packed != FULL)
        unpack_weights(model, tensors)
        trace.attach_weights(model, tensors)
        ir.save(model, folder / "step.onnx")
    with progress.task(f"check {name}/step.onnx"):
        trace.check_onnx(folder / "step.onnx", shards)
    size = (folder / "step.onnx").stat().st_size
    progress.say(
        f"{name}/step.onnx: {size / 1e3:.0f} kB over {len(shards)} weight file(s), {time.perf_counter() - began:.1f} s"
    )
    return StepEntry(f"{name}/step.onnx", tuple(f"{name}/{shard.name}" for shard in shards))


def _export_decide(stage: Path, contract: StepContract, progress: Progress) -> str:
    """Write decide.onnx, which has no weights and is common to all steps; returns its name."""
    with progress.task("trace and check decide.onnx"):
        path = stage / "decide.onnx"
        ir.save(trace_decide(contract), path)
        trace.check_onnx(path, ())
    return path.name
