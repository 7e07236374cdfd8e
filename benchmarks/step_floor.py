"""Compares the time of a step with its floor: the model's matrix products alone, timed in the same run.

    python benchmarks/step_floor.py --bundle bundles/tiny

A step must multiply its Q query rows by every weight matrix, and its decoded rows by the vocabulary head. The floor
does only that, with one product per matrix: no norms, rotation, softmax or gathering. It runs in ONNX Runtime with the
engine's session options, and in torch; a second floor of each adds the two products of attention. The time of a step is
that of `Engine.step`, with its checks and copies.

Goal: at 128 rows a step takes at most 1.5 times its matrix products in ONNX Runtime.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import dpad
import measure
from dpad.models.checkpoint.checkpoint import Config, parse_config
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.onnx_session import open_session
from dpad.runtime.engines.step import StepInputs

GOAL_ROWS, GOAL_RATIO = 128, 1.5
PAUSE = 0.02  # seconds until the threads of the previous contender sleep

Array = NDArray[np.float32]
Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A step with `rows` query rows, of which `decoded` are decoded, that attends `cached` rows of the cache."""

    rows: int
    decoded: int
    cached: int


@dataclass(frozen=True)
class Products:
    """Matrix products `left @ right -> out` by name, in order; `weights` and `inputs` are the given arrays."""

    weights: dict[str, Array]
    inputs: dict[str, Array]
    steps: list[tuple[str, str, str]]


def products(config: Config, case: Case, attention: bool) -> Products:
    """The products of one step, chained if the shapes allow it, with random numbers of variance 1."""
    rng = np.random.default_rng(0)

    def random(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    width, mlp = config.width, config.mlp_width
    query, kv = config.heads * config.head_size, config.kv_heads * config.head_size
    attended, grouped = case.cached + case.rows, case.rows * config.heads // config.kv_heads
    layer = [("x", "q", width, query), ("x", "k", width, kv), ("x", "v", width, kv), ("q", "attended", query, width)]
    layer += [("attended", "gate", width, mlp), ("attended", "up", width, mlp), ("gate", "next x", mlp, width)]
    found = Products({}, {"x 0": random(case.rows, width), "last": random(case.decoded, width)}, [])
    for i in range(config.layers):
        for left, out, inner, outer in layer:
            weight, target = f"{left} to {out} {i}", f"x {i + 1}" if out == "next x" else f"{out} {i}"
            found.weights[weight] = random(inner, outer) / np.float32(inner**0.5)
            found.steps.append((f"{left} {i}", weight, target))
        if attention:  # heads with the same keys are rows of one product
            found.inputs[f"queries {i}"] = random(config.kv_heads, grouped, config.head_size)
            found.inputs[f"keys {i}"] = random(config.kv_heads, config.head_size, attended)
            found.inputs[f"values {i}"] = random(config.kv_heads, attended, config.head_size)
            found.steps.append((f"queries {i}", f"keys {i}", f"scores {i}"))
            found.steps.append((f"scores {i}", f"values {i}", f"heads {i}"))
    found.weights["head"] = random(width, config.vocab_size) / np.float32(width**0.5)
    found.steps.append(("last", "head", "logits 0"))
    return found


def onnx_call(work: Products, threads: int) -> Call:
    """A call of the products in ONNX Runtime, which returns by name the results that no other product reads."""
    read = {left for left, _, _ in work.steps}
    results = [out for _, _, out in work.steps if out not in read]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [left, right], [out]) for left, right, out in work.steps],
        "products",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in work.inputs.items()],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in results],
        [numpy_helper.from_array(array, name) for name, array in work.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    model.ir_version = 11  # a version that every supported ONNX Runtime can read
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "products.onnx")
        session = open_session(Path(folder) / "products.onnx", "cpu", threads)
    binding = session.io_binding()
    for name, array in work.inputs.items():
        binding.bind_cpu_input(name, array)
    for name in results:
        binding.bind_output(name, "cpu")

    def run() -> dict[str, Array]:
        session.run_with_iobinding(binding)
        return dict(zip(results, (value.numpy() for value in binding.get_outputs())))

    return run


def torch_call(work: Products) -> Call:
    """A call of the products in torch, with buffers that layers share; it returns buffers by name of their last use."""
    values = {name: torch.from_numpy(array) for name, array in (work.weights | work.inputs).items()}
    buffers: dict[str, torch.Tensor] = {}
    calls = []
    for left, right, out in work.steps:
        shape = (*values[left].shape[:-1], values[right].shape[-1])
        values[out] = buffers.setdefault(out.split()[0], torch.empty(shape))
        calls.append((values[left], values[right], values[out]))

    @torch.inference_mode()
    def run() -> dict[str, torch.Tensor]:
        for left, right, out in calls:
            torch.matmul(left, right, out=out)
        return buffers

    return run


def step_call(engine: Engine, case: Case) -> Call:
    """A call of the step; the rows that it reads from the pool are written before."""
    length = case.cached + case.rows
    canvas = np.random.default_rng(0).integers(engine.contract.vocab_size, size=(1, length))
    positions, nothing = np.arange(length)[None], np.empty((1, 0), dtype=np.int64)
    decoded, slots = np.arange(case.decoded)[None], 1 + np.arange(case.cached)[None]
    if case.cached:
        engine.step(StepInputs(canvas, positions[:, : case.cached], nothing, decoded[:, :1], slots))
    return partial(engine.step, StepInputs(canvas, positions[:, case.cached :], slots, decoded))


def measured(engine: Engine, config: Config, case: Case, threads: int, rounds: int, repeat: int) -> dict[str, Any]:
    """Measure one case: milliseconds of the step and of each floor, and the step over each floor."""
    plain, whole = products(config, case, attention=False), products(config, case, attention=True)
    calls = {
        "step": step_call(engine, case),
        "onnxruntime": onnx_call(plain, threads),
        "onnxruntime with attention": onnx_call(whole, threads),
        "torch": torch_call(plain),
        "torch with attention": torch_call(whole),
    }
    seconds = measure.interleaved({n: measure.timed(call, repeat, PAUSE) for n, call in calls.items()}, rounds)
    milliseconds = {name: measure.spread([1e3 * s for s in values]) for name, values in seconds.items()}
    return {
        "threads": threads,
        "cache": "dual" if case.cached else "none",
        "rows": case.rows,
        "decoded_rows": case.decoded,
        "cached_rows": case.cached,
        "step_ms": milliseconds.pop("step"),
        "floors": {
            name: {"ms": floor, "ratio": measure.paired(seconds["step"], seconds[name])}
            for name, floor in milliseconds.items()
        },
    }


def verdict(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The goal, and whether it is met for each number of threads; empty if 128 rows were not measured."""
    at_goal = [found for found in results if found["rows"] == GOAL_ROWS and found["cache"] == "none"]
    ratios = {str(found["threads"]): found["floors"]["onnxruntime"]["ratio"]["median"] for found in at_goal}
    met = {threads: ratio <= GOAL_RATIO for threads, ratio in ratios.items()}
    return {"floor": "onnxruntime", "rows": GOAL_ROWS, "at_most": GOAL_RATIO, "ratio": ratios, "met": met}


@click.command(cls=measure.Benchmark)
@measure.bundle_option
@click.option("--rows", multiple=True, type=click.IntRange(1), default=(32, 64, 128, 256, 512), show_default=True)
@click.option("--cached", default=300, show_default=True, type=click.IntRange(1), help="Cached rows of the dual step.")
@click.option("--threads", multiple=True, type=click.IntRange(1), default=(1, measure.CORES), show_default=True)
@click.option("--rounds", default=15, show_default=True, type=click.IntRange(1), help="Turns of each contender.")
@click.option(
    "--repeat",
    default=10,
    show_default=True,
    type=click.IntRange(1),
    help="Runs per turn, of which the median is used.",
)
@measure.out_option
def main(
    bundle: Path, rows: tuple[int, ...], cached: int, threads: tuple[int, ...], rounds: int, repeat: int, out: Path
) -> None:
    """Time a step at several numbers of query ROWS against the model's matrix products alone."""
    results = []
    for count in dict.fromkeys(threads):
        torch.set_num_threads(count)
        with dpad.load(bundle, engine="onnxruntime-cpu", threads=count) as model:
            block = model.engine.contract.block_length
            config = parse_config(dpad.Bundle.open(bundle, hashes=False).manifest.model_config)[1]
            cases = [Case(size, min(size, block), 0) for size in rows]
            for case in (*cases, Case(block, block, cached)):
                found = measured(model.engine, config, case, count, rounds, repeat)
                ratio = found["floors"]["onnxruntime"]["ratio"]["median"]
                measure.say(f"{count} thread(s), {case}: {found['step_ms']['median']} ms, {ratio} times its floor")
                results.append(found)
    document = {
        "benchmark": "step_floor",
        "machine": measure.machine(),
        **measure.model_facts(bundle),
        "engine": "onnxruntime-cpu",
        "dtype": "float32",
        "rounds": rounds,
        "repeat": repeat,
        "goal": verdict(results),
        "results": results,
    }
    measure.publish(document, out)


if __name__ == "__main__":
    main()
