"""Measures every precision of the step: bytes of its weights, error of its logits, and accuracy of its answers.

    python benchmarks/precision.py --out docs/benchmarks/precision.json

Logits are compared with those of the float32 step in ONNX Runtime, on the same random steps as in `dpad parity`.
Accuracy is the share of held-out word problems with a right answer. bfloat16, which ONNX Runtime does not support on a
CPU, runs in eager PyTorch. Two more measurements in PyTorch are the error of packed weights by group size, and the
error of packing the vocabulary head alone, which `dpad export` does not do.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

import dpad
import measure
from dpad.commands.terminal import TerminalProgress, fit_threads
from dpad.evaluation.journal import Journal
from dpad.evaluation.report import mean_scores
from dpad.evaluation.run import evaluate, generate_answers
from dpad.evaluation.tasks import problems
from dpad.export.hub import resolve
from dpad.export.parity.feeds import Feed, random_feeds
from dpad.export.parity.packing_error import logit_error
from dpad.export.pipeline import export_bundle
from dpad.export.settings import ExportSettings
from dpad.export.step.pack import Packing, layer_weights
from dpad.models.checkpoint.checkpoint import Checkpoint, load_model
from dpad.models.torch_engine import TorchEngine, open_torch_engine
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.variant import DYNAMIC, FULL, PACKED, rows_dtype, variant_name
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.onnx import OnnxEngine
from dpad.runtime.engines.onnx_session import open_session

DTYPES = ("float32", "float16", "bfloat16", DYNAMIC)
VARIANTS = (*DTYPES, *(variant_name("float32", weights) for weights in PACKED))
GROUPS = {
    "int8": (16, 32, 64),
    "int4": (16, 32, 64),
    "fp8": (32,),
}  # group sizes that divide the embedded models' widths

Outputs = list[tuple[NDArray[np.int64], NDArray[np.float32]]]  # token ids [B, R] and logits [B, R, V] of each step


def onnx_outputs(bundle: Bundle, variant: str, count: int, seed: int, threads: int) -> Outputs:
    """Outputs of random steps in ONNX Runtime."""
    session = open_session(bundle.path(bundle.manifest.steps[variant].onnx), "cpu", threads)
    feeds = random_feeds(bundle.manifest.contract, rows_dtype(variant), count, seed)
    return [tuple(session.run(["token_ids", "logits"], feed)) for _, feed in feeds]


def torch_outputs(engine: TorchEngine, feeds: list[tuple[str, Feed]]) -> Outputs:
    """Outputs of `feeds` in eager PyTorch."""
    names = [spec.name for spec in engine.contract.outputs()]
    token_ids, logits = names.index("token_ids"), names.index("logits")
    return [(outputs[token_ids], outputs[logits]) for outputs in (engine.run(feed) for _, feed in feeds)]


def compared(wanted: Outputs, found: Outputs) -> dict[str, Any]:
    """Differences of the logits, and the share of decoded rows that predict the same token."""
    error = logit_error([(a[1], b[1]) for a, b in zip(wanted, found, strict=True)])
    same = np.concatenate([(a[0] == b[0]).ravel() for a, b in zip(wanted, found, strict=True)])
    return {name: measure.digits(value) for name, value in error.items()} | {
        "same_token": measure.digits(float(same.mean()))
    }


def answers(model: dpad.DiffusionModel, engine: Engine, limit: int, options: dict[str, Any]) -> dict[str, Any]:
    """The share of `limit` held-out problems that `engine` answers right, and the mean number of forward passes."""
    model, task = measure.over(model, engine), problems(limit)
    with Journal.open(None, {}) as journal:
        records = evaluate(task.samples, generate_answers(model, task, model.options(**options)), journal)
    score, error = mean_scores(records)["strict_match"]
    return {
        "strict_match": score,
        "standard_error": error,
        "nfe": measure.digits(float(np.mean([record["nfe"] for record in records]))),
    }


def packed_in_torch(checkpoint: Checkpoint, bundle: Bundle, names: list[str], packing: Packing) -> TorchEngine:
    """The eager float32 engine with the weights `names` packed and unpacked again."""
    packing.check(checkpoint)
    model = load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, torch.float32)
    state = model.state_dict()
    for name in names:
        state[name] = packing.pack(state[name], torch.float32).unpack(torch.float32)
    model.load_state_dict(state, assign=True)
    return TorchEngine(model.requires_grad_(False), bundle.manifest.contract, "float32")


def choices(checkpoint: Checkpoint, bundle: Bundle, steps: int, seed: int) -> list[dict[str, Any]]:
    """Error of each format, by group and by what is packed: the layers, or the vocabulary head alone."""
    feeds = list(random_feeds(bundle.manifest.contract, "float32", steps, seed))
    wanted = torch_outputs(open_torch_engine(bundle, "float32"), feeds)
    layers = layer_weights(checkpoint)
    head = [name for name in ("model.transformer.ff_out.weight", "lm_head.weight") if name in checkpoint.tensors]
    found = []
    for weights, groups in GROUPS.items():
        for part, names, sizes in (("layers", layers, groups), ("head", head, (32,))):
            for group in sizes:
                engine = packed_in_torch(checkpoint, bundle, names, Packing(weights, group))
                shared = "an output" if weights == "fp8" else f"{group} inputs"
                error = compared(wanted, torch_outputs(engine, feeds))
                found.append({"weights": weights, "scale": shared, "part": part, "logits": error})
    return found


def precisions(
    name: str, folder: Path, limit: int, steps: int, options: dict[str, Any], threads: int, seed: int
) -> dict[str, Any]:
    """All measurements of one model."""
    settings = ExportSettings(dtypes=DTYPES, weights=(FULL, *PACKED))
    bundle = export_bundle(name, folder / "bundle", settings, TerminalProgress())[0]
    fit_threads(bundle)
    wanted = onnx_outputs(bundle, "float32", steps, seed, threads)
    rows = []
    with dpad.load(bundle.directory, engine="onnxruntime-cpu", threads=threads) as model:
        for variant in VARIANTS:
            measure.say(f"{name}: {variant}")
            entry, engine = bundle.manifest.steps[variant], _engine(bundle, variant, threads)
            if isinstance(engine, TorchEngine):
                found = torch_outputs(engine, list(random_feeds(engine.contract, engine.dtype, steps, seed)))
            else:
                found = onnx_outputs(bundle, variant, steps, seed, threads)
            rows.append(
                {
                    "step": variant,
                    "engine": engine.name,
                    "weights_bytes": sum(bundle.path(file).stat().st_size for file in entry.weights),
                    "logits": compared(wanted, found),
                    **answers(model, engine, limit, options),
                }
            )
    checkpoint = Checkpoint.open(resolve(name).directory)
    return {"model": name, "precisions": rows, "choices": choices(checkpoint, bundle, steps, seed)}


def _engine(bundle: Bundle, variant: str, threads: int) -> Engine:
    if rows_dtype(variant) == "bfloat16":
        return open_torch_engine(bundle, variant)
    return OnnxEngine(bundle.path(bundle.manifest.steps[variant].onnx), bundle.manifest.contract, variant, threads)


@click.command(cls=measure.Benchmark)
@click.option(
    "--model", "models", multiple=True, default=("tiny", "tiny-dream"), show_default=True, help="Repeat for several."
)
@click.option("--limit", default=200, show_default=True, type=click.IntRange(1), help="Word problems of each step.")
@click.option("--steps", default=4, show_default=True, type=click.IntRange(1), help="Random steps of each mode.")
@click.option("--gen-length", default=96, show_default=True, help="New tokens per problem.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the random steps.")
@measure.threads_option
@measure.out_option
def main(
    models: tuple[str, ...], limit: int, steps: int, gen_length: int, seed: int, threads: int, out: Path | None
) -> None:
    """Measure every precision of each MODEL."""
    options = {"gen_length": gen_length, "cache": "dual"}
    with tempfile.TemporaryDirectory() as folder:
        found = [precisions(name, Path(folder) / name, limit, steps, options, threads, seed) for name in models]
        facts = measure.model_facts(*(Path(folder) / name / "bundle" for name in models))
    document = {
        "benchmark": "precision",
        "machine": measure.machine(),
        **facts,
        "threads": threads,
        "limit": limit,
        "steps": steps,
        "seed": seed,
        **options,
        "models": found,
    }
    measure.publish(document, out)


if __name__ == "__main__":
    main()
