"""Measures the time of `decide`, the second program, at the vocabulary sizes of full-size models.

    python benchmarks/sampling.py

Greedy decoding by threshold, factor or fixed steps uses the decisions of the step itself. Temperature, filters and
Dream's orders run `decide`, which reads every logit of every masked row; here it runs in ONNX Runtime on the CPU. The
logits are artificial: normally distributed with the spread of language models, with twenty larger values in each row
and in some rows a much larger one.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import measure
from dpad.export.step.trace_decide import trace_decide
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.onnx_session import open_session
from simulation import LLADA

FAMILIES: dict[str, dict[str, Any]] = {
    "llada": {},
    "dream": {"family": "dream", "vocab_size": 152064, "logit_shift": 1, "tempers_confidence": True},
}
SETTINGS: dict[str, dict[str, float]] = {
    "entropy or margin": {},
    "a mask that must not predict itself": {"banned": 0},
    "temperature 1": {"temperature": 1.0},
    "temperature 1, top_k 50": {"temperature": 1.0, "top_k": 50},
    "temperature 0.2, top_p 0.95": {"temperature": 0.2, "top_p": 0.95},  # Dream's card
}

Feed = dict[str, NDArray[Any]]


def logits_of(rows: int, vocabulary: int, seed: int) -> NDArray[np.float32]:
    """Artificial logits [1, rows, vocabulary] of one sequence."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.0, 2.5, (1, rows, vocabulary)).astype(np.float32)
    for row in logits[0]:
        row[rng.choice(vocabulary, 20, replace=False)] += rng.uniform(5, 15) * rng.random(20, dtype=np.float32)
    return logits


def feed(
    logits: NDArray[np.float32], *, temperature: float = 0, top_k: float = 0, top_p: float = 1, banned: float = -1
) -> Feed:
    """The inputs of `decide` for one sequence."""
    return {
        "logits": logits,
        "uniform": np.random.default_rng(0).random(logits.shape[:2], dtype=np.float32),
        "temperature": np.array([temperature], dtype=np.float32),
        "top_k": np.array([top_k], dtype=np.int64),
        "top_p": np.array([top_p], dtype=np.float32),
        "banned": np.array([banned], dtype=np.int64),
    }


def program(contract: StepContract, threads: int) -> Callable[[Feed], list[NDArray[Any]]]:
    """The program `decide` of `contract` in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        ir.save(trace_decide(contract), Path(folder) / "decide.onnx")
        session = open_session(Path(folder) / "decide.onnx", "cpu", threads)
    return partial(session.run, None)


@click.command(cls=measure.Benchmark)
@click.option("--rows", type=click.IntRange(1), default=32, show_default=True, help="Masked rows.")
@measure.threads_option
@measure.rounds_option
@measure.out_option
def main(rows: int, threads: int, rounds: int, out: Path | None) -> None:
    """Measure `decide`."""
    results = []
    for family, changes in FAMILIES.items():
        contract = StepContract(**LLADA | {"max_batch": 1} | changes)
        run, logits = program(contract, threads), logits_of(rows, contract.vocab_size, seed=0)
        calls = {
            name: measure.timed(partial(run, feed(logits, **setting)), repeat=3) for name, setting in SETTINGS.items()
        }
        for name, seconds in measure.interleaved(calls, rounds).items():
            taken = measure.spread([1e3 * one for one in seconds])
            results.append({"family": family, "vocabulary": contract.vocab_size, "setting": name, "decide_ms": taken})
            measure.say(f"{family}, {name}: {taken['median']:g} ms")
    facts = {"machine": measure.machine(), "model": " and ".join(FAMILIES), "threads": threads, "rows": rows}
    measure.publish({"benchmark": "sampling", **facts, "rounds": rounds, "results": results}, out)


if __name__ == "__main__":
    main()
