"""`export_bundle`: checkpoint to bundle, the whole way.

    bundle, is_new = export_bundle("tiny", Path("bundles/tiny"), ExportSettings(), progress)

Weights are placed, the step is traced once a dtype, checked, compiled for the targets,
compared with PyTorch, and only then put in place.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from dpad.export import trace, weights, writer
from dpad.export.engines import HALF, EngineRecipe, build_engines, default_capability
from dpad.export.hub import Source, published_id, resolve
from dpad.export.pack import Packing, place_packed
from dpad.export.packed_graph import unpack_weights
from dpad.export.progress import Progress
from dpad.export.provenance import describe
from dpad.export.quantize import quantize_step
from dpad.export.rehearsal import rehearse
from dpad.export.tokenizer import place_tokenizer
from dpad.models.checkpoint import FAMILIES, Checkpoint, read_headers
from dpad.models.presets import presets_of
from dpad.runtime.bundle import Bundle
from dpad.runtime.contract import StepContract
from dpad.runtime.errors import BundleError, ExportError
from dpad.runtime.manifest import BuildFlags, Manifest, StepEntry
from dpad.runtime.precision import DYNAMIC, FULL, PACKED, ROWS, rows_dtype, step_name, weights_of

TARGETS = ("onnx", "tensorrt-rtx", "tensorrt")
DTYPES = (*ROWS, DYNAMIC)
WEIGHTS = (FULL, *PACKED)

Check = Callable[[Path, Manifest, Progress], dict[str, Any]]


@dataclass(frozen=True)
class ExportSettings:
    """What to export. Empty tuples mean: decide from the checkpoint and this machine.

    Attributes:
        targets: `onnx` (always in the bundle), `tensorrt-rtx`, `tensorrt`.
        dtypes: dtypes of the step; default the checkpoint's own, and for engines float16
            where that is float32; `int8` (W8A8) is made from float32, which comes with it.
        capabilities: compute capabilities of the engines; default this machine's GPU where the
            library can target it, else 8.9.
        max_batch, max_length: limits of the contract; max_length None is the checkpoint's,
            at most 4096 canvas tokens.
        block_length, window: what compiled engines are tuned for.
        attention: `native` or `plugin`, of compiled engines.
        flags: how compiled engines are built.
        weights: how the weights of the layers are stored, each with every dtype: `full`, or packed in `int8`,
            `int4`, `fp8`.
        group: inputs that share a scale in int4 and int8.
        chat_template: name of the chat template, where the checkpoint has several; None is the default.
    """

    targets: tuple[str, ...] = ("onnx",)
    dtypes: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    max_batch: int = 4
    max_length: int | None = None
    block_length: int = 32
    window: int = 256
    attention: str = "native"
    flags: BuildFlags = field(default_factory=BuildFlags)
    weights: tuple[str, ...] = (FULL,)
    group: int = 32
    chat_template: str | None = None

    def steps(self) -> tuple[str, ...]:
        """Names of the steps: every dtype with all weights, those that are made from another step last."""
        names = [step_name(d, w) for w in self.weights for d in self.dtypes if w == FULL or d != DYNAMIC]
        return tuple(sorted(dict.fromkeys(names), key=lambda name: name == DYNAMIC))

    def recipe(self) -> EngineRecipe:
        """What of this concerns compiled engines."""
        return EngineRecipe(self.targets, self.steps(), self.capabilities, self.attention, self.flags)

    def resolved(self, checkpoint: Checkpoint) -> "ExportSettings":
        """With every default filled in; raises `ExportError` for values that cannot work."""
        for kind, values, known in (
            ("target", self.targets, TARGETS),
            ("dtype", self.dtypes, DTYPES),
            ("weights", self.weights, WEIGHTS),
        ):
            if unknown := [value for value in values if value not in known]:
                raise ExportError(f"{kind} {unknown[0]!r} is not one of {', '.join(known)}")
        self._check_weights(checkpoint)
        self.recipe().check()
        compiled = [target for target in self.targets if target != "onnx"]
        dtypes = self.dtypes or (checkpoint.dtype,)
        if compiled and not any(dtype in HALF for dtype in dtypes):
            if self.dtypes:
                raise ExportError(f"{compiled[0]} needs float16 or bfloat16 (add --dtype float16)")
            dtypes = (*dtypes, "float16")
        if DYNAMIC in dtypes and "float32" not in dtypes:
            dtypes = (*dtypes, "float32")
        longest = self.max_length or min(checkpoint.config.max_length, 4096)
        if min(self.max_batch, longest, self.block_length, self.window) < 1:
            raise ExportError("max_batch, max_length, block_length and window must be 1 or more")
        if longest < checkpoint.config.block_length:
            raise ExportError(f"max_length {longest} is under one block of the model, {checkpoint.config.block_length}")
        capabilities = self.capabilities or tuple(sorted({default_capability(target) for target in compiled}))
        settings = replace(self, dtypes=dtypes, capabilities=capabilities, max_length=longest)
        settings.recipe().check_builders()
        return settings

    def _check_weights(self, checkpoint: Checkpoint) -> None:
        for form in (form for form in self.weights if form != FULL):
            Packing(form, self.group).check(checkpoint)
        if DYNAMIC in self.dtypes and FULL not in self.weights:
            raise ExportError("dtype int8 is made from full weights: add --weights full, or leave --dtype int8 out")


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
        out: the bundle; replaced in one step, and only when everything succeeded.
        settings: see `ExportSettings`.
        progress: told about long work.
        check: compares the staged bundle with PyTorch and returns the parity report; it
            raises to keep a bad bundle out.
        force: export even if `out` is up to date.

    Returns:
        The bundle, and whether it was made now (False: it was up to date).
    """
    source = resolve(model)
    checkpoint = Checkpoint.open(source.directory)
    settings = settings.resolved(checkpoint)
    wanted = {**asdict(settings), "parity": check is not None}
    provenance = describe(source, checkpoint, wanted, progress)
    previous = _previous(out)
    if previous and not force and previous.manifest.provenance.get("key") == provenance["key"]:
        return previous, False
    for shard in checkpoint.shards:
        weights.check_finite(shard, progress)
    weights.check_tied(checkpoint)
    contract = make_contract(checkpoint, settings)
    with writer.stage_bundle(out) as stage:
        tokenizer = place_tokenizer(checkpoint, stage / "tokenizer", progress, settings.chat_template)
        presets = _presets(source, checkpoint, progress)
        rehearse(checkpoint.directory, stage / "tokenizer", presets, contract)
        place = partial(
            _export_step, source, checkpoint, stage, settings.group, progress, _tracer(checkpoint, contract, progress)
        )
        steps = {name: place(name) for name in settings.steps()}
        engines = build_engines(settings.recipe(), contract, stage, steps, previous, progress)
        manifest = Manifest(
            name=source.name,
            contract=contract,
            architecture=checkpoint.architecture,
            model_config=checkpoint.raw_config,
            steps=steps,
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
    return Bundle(out, manifest), True


def write_report(directory: Path, report: dict[str, Any]) -> None:
    """Write parity.json."""
    (directory / "parity.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def make_contract(checkpoint: Checkpoint, settings: ExportSettings) -> StepContract:
    """The step's contract from the checkpoint and resolved settings."""
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
        block_causal=config.block_length > 0,
    )


def _presets(source: Source, checkpoint: Checkpoint, progress: Progress) -> dict[str, Any]:
    """What the checkpoint brings, which is said: a local directory is only taken for a published one."""
    hub_id = published_id(source, checkpoint.raw_config)
    presets = presets_of(hub_id, checkpoint.directory, checkpoint.config.eos_token_id)
    taken = f" (the checkpoint is taken for {hub_id})" if hub_id != source.label else ""
    if presets:
        progress.say(f"presets: {', '.join(presets)}{taken}")
    return presets


def _previous(out: Path) -> Bundle | None:
    """The bundle that is already at `out`, if it is whole."""
    try:
        return Bundle.open(out)
    except BundleError:
        return None


def _tracer(checkpoint: Checkpoint, contract: StepContract, progress: Progress) -> Callable[[str], ir.Model]:
    """A function that gives the traced step of a dtype; each is traced once, and every call gives another copy."""

    @cache
    def traced(dtype: str) -> ir.Model:
        with progress.task(f"trace the step in {dtype}"):
            return trace.trace_step(checkpoint.architecture, checkpoint.config, contract, dtype)

    return lambda dtype: traced(dtype).clone()


def _export_step(
    source: Source,
    checkpoint: Checkpoint,
    stage: Path,
    group: int,
    progress: Progress,
    traced: Callable[[str], ir.Model],
    name: str,
) -> StepEntry:
    """Weights and step.onnx of one step, in a folder of its name; dynamic int8 needs float32 in place."""
    folder, dtype, packed = stage / name, rows_dtype(name), weights_of(name)
    began = time.perf_counter()
    if name == DYNAMIC:
        with progress.task("quantize the step to int8"):
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
