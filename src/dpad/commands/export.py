"""`dpad export MODEL --out DIR`."""

import json
import shlex
import time
from pathlib import Path
from typing import Any

import click

from dpad import load
from dpad.commands.lines import print_text, say
from dpad.commands.terminal import TerminalProgress, fit_threads
from dpad.export.engines.recipe import ATTENTIONS
from dpad.export.parity.compare import compare_bundle, require_passed
from dpad.export.parity.report import parity_lines
from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import DTYPES, INT8, LARGEST, TARGETS, WEIGHTS, ExportSettings
from dpad.export.step.pack import GROUPS
from dpad.export.tokenizer.place import TOKENIZER
from dpad.export.tokenizer.vocabulary_files import PARTS
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.export_command import export_command
from dpad.runtime.bundle.manifest import BuildFlags, Manifest
from dpad.runtime.errors import EngineUnavailable

_DEFAULT = ExportSettings()
_TOKENIZERS = (TOKENIZER, PARTS[0])  # one of these files is enough to make a tokenizer


class _Dtype(click.Choice[str]):
    """A choice of dtypes; for the ambiguous name int8 the error explains both meanings."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "int8":
            self.fail(INT8, param, ctx)
        return super().convert(value, param, ctx)


@click.command("export")
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Directory of the bundle.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=click.Choice(TARGETS),
    default=_DEFAULT.targets,
    show_default=True,
    help="What to build; repeat for several. The ONNX step is always part of the bundle.",
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=_Dtype(DTYPES),
    help="Dtype of the step; repeat for several. Default: the checkpoint's, and float16 beside float32 for engines. "
    "w8a8 is for CPUs: float32, except that rows and weights are rounded to int8 for their products.",
)
@click.option(
    "--weights",
    multiple=True,
    type=click.Choice(WEIGHTS),
    default=_DEFAULT.weights,
    show_default=True,
    help="Format of the layers' weights, in a step of each dtype; repeat for several. int8, int4 and fp8 weights "
    "are converted to the dtype of the rows where they are multiplied.",
)
@click.option(
    "--group",
    type=click.Choice(GROUPS),
    default=_DEFAULT.group,
    show_default=True,
    help="Number of an output's weights that share a scale, in int4 and int8.",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="Compute capability of engines, such as 8.9; repeat for several. Default: for TensorRT-RTX portable, which is "
    "one plan for 8.0, 8.6, 8.9 and from 12.0 on; for TensorRT this machine's GPU, the only one that it builds for.",
)
@click.option(
    "--max-batch",
    default=_DEFAULT.max_batch,
    show_default=True,
    type=click.IntRange(1, LARGEST["max_batch"]),
    help="Largest batch.",
)
@click.option(
    "--max-length",
    type=click.IntRange(1, LARGEST["max_length"]),
    help="Longest canvas in tokens. Default: the checkpoint's, at most 4096.",
)
@click.option(
    "--block-length",
    default=_DEFAULT.block_length,
    show_default=True,
    type=click.IntRange(1, LARGEST["block_length"]),
    help="Block length that engines are tuned for.",
)
@click.option(
    "--window",
    default=_DEFAULT.window,
    show_default=True,
    type=click.IntRange(1, LARGEST["window"]),
    help="Suffix window that engines are tuned for.",
)
@click.option(
    "--attention",
    default=_DEFAULT.attention,
    show_default=True,
    type=click.Choice(ATTENTIONS),
    help="Attention of engines: the library's own, or this project's kernel as a plugin (target tensorrt only).",
)
@click.option("--strip-weights", is_flag=True, help="Plans without weights, which are added when a plan is opened.")
@click.option("--hardware-compatible", is_flag=True, help="Plans for every GPU from Ampere on (target tensorrt only).")
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Plans that later versions of the library can run, within a major version (target tensorrt only).",
)
@click.option(
    "--lean",
    is_flag=True,
    help="With --version-compatible: plans without TensorRT's lean runtime, which must then be installed.",
)
@click.option(
    "--chat-template",
    metavar="NAME",
    help="Name of the chat template to use, if the checkpoint has several. Default: the one called default.",
)
@click.option(
    "--workspace", type=click.IntRange(1, LARGEST["workspace"]), metavar="MIB", help="Limit of the builder's workspace."
)
@click.option(
    "--parity/--no-parity",
    default=True,
    show_default=True,
    help="Compare engines with PyTorch before the bundle is put in place.",
)
@click.option("--force", is_flag=True, help="Export even if the bundle is up to date.")
@click.option("--sample", metavar="PROMPT", help="Then generate text for PROMPT, if an engine of the bundle runs here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    model: str,
    out: Path,
    targets: tuple[str, ...],
    dtypes: tuple[str, ...],
    weights: tuple[str, ...],
    group: int,
    capabilities: tuple[str, ...],
    max_batch: int,
    max_length: int | None,
    block_length: int,
    window: int,
    attention: str,
    strip_weights: bool,
    hardware_compatible: bool,
    version_compatible: bool,
    lean: bool,
    chat_template: str | None,
    workspace: int | None,
    parity: bool,
    force: bool,
    sample: str | None,
    as_json: bool,
) -> None:
    """Turn MODEL into a bundle.

    MODEL is tiny (embedded), llada, llada-1.5, dream, dream-coder, diffucoder, sdar-4b, fast-dllm-7b
    and more (an unknown name lists them), a hub id (owner/name) or a local directory with config.json,
    safetensors and tokenizer.json.
    """
    began = time.perf_counter()
    flags = BuildFlags(strip_weights, hardware_compatible, version_compatible, lean, workspace)
    settings = ExportSettings(
        targets,
        dtypes,
        capabilities,
        max_batch,
        max_length,
        block_length,
        window,
        attention,
        flags,
        weights,
        group,
        chat_template,
    )
    progress = TerminalProgress()
    if sample is not None and Path(model).is_dir() and not any((Path(model) / name).exists() for name in _TOKENIZERS):
        progress.say(f"no sample will be written: {model} has no tokenizer, and its bundle takes token ids only")
    bundle, made = export_bundle(model, out, settings, progress, check=_check if parity else None, force=force)
    seconds = time.perf_counter() - began
    if as_json:
        document: dict[str, Any] = {
            "bundle": str(out),
            "made": made,
            "seconds": round(seconds, 3),
            "manifest": bundle.manifest.to_json(),
        }
        if sample is not None:
            document["sample"] = _sample(out, sample)
        click.echo(json.dumps(document))
    else:
        state = "exported" if made else "up to date"
        say(f"{out}: {state}, {len(bundle.manifest.files)} files, {seconds:.1f} s")
        if sample is not None:
            for line in _sample_lines(out, _sample(out, sample)):
                print_text(line)
        if _nothing_compared(bundle):
            click.echo(
                f"parity: nothing could be compared here; {shlex.join(['dpad', 'parity', str(out)])} --emulate, "
                f"or add a float32 step: {export_command(bundle.manifest.provenance, out, '--dtype=float32')}"
            )


def _nothing_compared(bundle: Bundle) -> bool:
    """Whether parity was requested but no engine could run, as with bfloat16 alone on a machine without a GPU."""
    name = bundle.manifest.parity
    return name is not None and json.loads(bundle.path(name).read_text(encoding="utf-8"))["passed"] is None


def _sample(out: Path, prompt: str) -> dict[str, Any]:
    """Text that the bundle generates, with its time, or the `obstacle` on this machine."""
    try:
        model = load(out)
    except EngineUnavailable as error:
        return {"prompt": prompt, "obstacle": str(error)}
    with model:
        if not model.has_tokenizer:
            return {"prompt": prompt, "obstacle": "the bundle has no tokenizer; try dpad generate with --ids"}
        result = model.generate(prompt)
    return {
        "prompt": prompt,
        "text": result.text,
        "tokens": len(result.token_ids),
        "nfe": result.nfe,
        "seconds": round(result.timings.total, 3),
        "engine": model.engine.name,
    }


def _sample_lines(out: Path, sample: dict[str, Any]) -> list[str]:
    if "obstacle" in sample:
        return [f"no sample: {sample['obstacle']}"]
    return [
        f"\n> {sample['prompt']}\n{sample['text']}\n",
        f"tokens {sample['tokens']}, forward passes {sample['nfe']}, {sample['seconds']:.2f} s, {sample['engine']}",
        f"bundle: {out}\nmore:   dpad generate {out} 'What is 53 + 34?' --show-steps",
    ]


def _check(stage: Path, manifest: Manifest, progress: Progress) -> dict[str, object]:
    bundle = Bundle(stage, manifest)
    fit_threads(bundle)
    report = compare_bundle(bundle, progress)
    for line in parity_lines(report):
        progress.say(line)
    return require_passed(report)
