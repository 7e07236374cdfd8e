"""Decodes random mixes of requests together, and compares every token with each request alone.

    python benchmarks/mixes.py --mixes 1000 --out docs/benchmarks/mixes.json

Every option of every request is random: decoder, threshold, factor, steps, pace, cache, schedule, temperature, filters,
seed, lengths of prompt, blocks and infill, and ends of text. The requests of a mix arrive at random passes; the number
of requests that may run together is random, and so is `Engine.pass_rows`, so that unequal sequences share passes more
often than with any real engine. It runs in float32 in ONNX Runtime, with the embedded models and with a small random
block-causal one. Each request must get the same tokens in the same passes as alone. A difference is reported from its
first pass on with the confidences of both sides, which show whether rounding changed a tie. The exit status is 1 if
anything differs.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import bundles
import click
import numpy as np

import dpad
import measure
from dpad.evaluation.tasks import problems
from dpad.runtime.cache import CACHES
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.options import DECODERS, PACES, GenerationOptions, defaults
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import Scheduler, run
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.engines.base import Engine

MODELS = ("tiny", "tiny-dream", "block-causal")
MOST = 8  # most requests of a mix
WILLING = (0, 12, 64, 300, 10**6)  # values of pass_rows
LENGTH = 512

Asked = tuple[Request, GenerationOptions]


class Decoded(NamedTuple):
    """A finished sequence and the commits of each of its passes."""

    sequence: Sequence
    events: list[StepEvent]


def draw_options(rng: np.random.Generator, contract: StepContract) -> GenerationOptions:
    """Random options that the contract supports."""
    fixed = defaults(contract)
    length = int(fixed.get("block_length", rng.choice((4, 8, 16, 32))))
    blocks = int(rng.integers(1, 5))
    options: dict[str, Any] = {
        "gen_length": blocks * length,
        "block_length": length,
        "decoder": str(rng.choice(DECODERS)),
        "threshold": float(rng.uniform(0, 1)),
        "factor": float(rng.uniform(0.2, 3)),
        "steps": blocks * int(rng.integers(1, length + 1)),
        "pace": str(rng.choice(PACES)),
        "cache": str(rng.choice(CACHES)),
        "schedule": draw_schedule(rng, blocks * length),
        "seed": int(rng.integers(1 << 30)),
        "early_termination": bool(rng.random() < 0.8),
    }
    if rng.random() < 0.5:
        options["temperature"] = float(rng.uniform(0.1, 1.5))
    if options.get("temperature") or contract.tempers_confidence:
        options |= {"top_k": int(rng.integers(1, 50))} if rng.random() < 0.4 else {}
        options |= {"top_p": float(rng.uniform(0.3, 1))} if rng.random() < 0.4 else {}
    if rng.random() < 0.2:
        tokens = np.setdiff1d(np.arange(contract.vocab_size), [contract.mask_token_id])
        options["eos_token_ids"] = tuple(map(int, rng.choice(tokens, 20, replace=False)))
    return GenerationOptions(**options | fixed)


def draw_schedule(rng: np.random.Generator, length: int) -> dpad.SuffixSchedule:
    """A random schedule; it may keep the whole suffix."""
    window = int(rng.integers(1, length + 1))
    count = int(rng.integers(0, window + 1))
    gaussian = dpad.Gaussian(float(rng.uniform(0.5, 5)), float(rng.uniform(0.5, 3)), window)
    schedules = (dpad.Full(), gaussian, dpad.Uniform(count, window))
    return schedules[int(rng.integers(len(schedules)))]


def draw_request(rng: np.random.Generator, contract: StepContract, texts: list[tuple[int, ...]]) -> Request:
    """A request with one of `texts` or random tokens as its prompt, sometimes with a suffix text."""
    tokens = np.setdiff1d(np.arange(contract.vocab_size), [contract.mask_token_id, contract.eos_token_id])

    def some(most: int) -> tuple[int, ...]:
        return tuple(map(int, rng.choice(tokens, int(rng.integers(1, most)))))

    prompt = texts[int(rng.integers(len(texts)))] if texts and rng.random() < 0.6 else some(120)
    behind = some(30) if rng.random() < 0.25 and not contract.block_causal else ()
    return Request(prompt, behind)


def draw_mix(rng: np.random.Generator, contract: StepContract, texts: list[tuple[int, ...]]) -> list[Asked]:
    """A mix of 2 to 8 requests."""
    count = int(rng.integers(2, MOST + 1))
    return [(draw_request(rng, contract, texts), draw_options(rng, contract)) for _ in range(count)]


def alone(engine: Engine, asked: Asked) -> Decoded:
    """Decode one request alone."""
    asked[1].check(engine.contract)
    sequence = Sequence(*asked, engine.contract)
    return Decoded(sequence, [event for _, event in run(engine, [sequence])])


def together(engine: Engine, mix: list[Asked], rng: np.random.Generator) -> tuple[list[Decoded], int]:
    """Decode a mix whose requests arrive at random passes; returns the results and the number of passes."""
    watched = measure.Watched(engine)
    watched.pass_rows = int(rng.choice(WILLING))
    scheduler = Scheduler(watched, int(rng.integers(2, MOST + 1)))
    found = [Decoded(Sequence(*asked, engine.contract, index), []) for index, asked in enumerate(mix)]
    arrivals = np.sort(rng.integers(0, 1 + int(rng.choice((0, 10, 40))), len(mix))).tolist()
    coming, clock = list(zip(arrivals, found))[::-1], 0
    while coming or scheduler.busy:
        while coming and (coming[-1][0] <= clock or not scheduler.busy):
            scheduler.add(coming.pop()[1].sequence)
        for outcome in scheduler.step():
            if outcome.error is not None:
                raise outcome.error
            found[outcome.sequence.index].events.append(outcome.event)
        clock += 1
    return found, scheduler.passes


def difference(one: Decoded, other: Decoded) -> dict[str, Any] | None:
    """The first pass in which two decodes differ, or None."""
    for number, pair in enumerate(zip_longest(one.events, other.events)):
        told = [
            {int(p): (int(t), float(c)) for p, t, c in zip(event.positions, event.tokens, event.confidences)}
            for event in pair
            if event is not None
        ]
        chosen = [{place: token for place, (token, _) in commits.items()} for commits in told]
        if len(told) < 2 or chosen[0] != chosen[1]:
            return {"pass": number + 1, "alone": told[:1], "together": told[1:]}
    return None


def compare(engine: Engine, texts: list[tuple[int, ...]], mixes: int, seed: int) -> dict[str, Any]:
    """Decode `mixes` random mixes together and alone; returns the differences."""
    counts = dict.fromkeys(("requests", "tokens", "passes_alone", "passes_together", "differing_tokens"), 0)
    differences = []
    for number in range(mixes):
        rng = np.random.default_rng((seed, number))
        mix = draw_mix(rng, engine.contract, texts)
        mixed, passes = together(engine, mix, rng)
        counts["passes_together"] += passes
        for asked, other in zip(mix, mixed):
            one = alone(engine, asked)
            counts["requests"] += 1
            counts["tokens"] += asked[1].gen_length
            counts["passes_alone"] += one.sequence.nfe
            counts["differing_tokens"] += int((one.sequence.canvas != other.sequence.canvas).sum())
            if (found := difference(one, other)) is not None:
                differences.append({"mix": number, "request": other.sequence.index, "options": str(asked[1]), **found})
        if number % 50 == 49:
            measure.say(f"{engine.contract.family}: {number + 1} of {mixes} mixes, {len(differences)} requests differ")
    return {"mixes": mixes, **counts, "differences": differences}


@contextmanager
def opened(model: str, threads: int) -> Iterator[tuple[Path, dpad.DiffusionModel]]:
    """A bundle of `model`, which may be a small random block-causal checkpoint, and its opened model."""
    with tempfile.TemporaryDirectory() as folder:
        source = model
        if model == "block-causal":
            source = str(bundles.write_source(Path(folder) / model, "sdar", max_length=LENGTH))
        with measure.bundle_for(None, source, max_batch=MOST, max_length=LENGTH) as directory:
            with dpad.load(directory, engine="onnxruntime-cpu", threads=threads) as loaded:
                yield directory, loaded


@click.command(cls=measure.Benchmark)
@click.option(
    "--mixes", default=1000, show_default=True, type=click.IntRange(1), help="Number of mixes, over all models."
)
@click.option("--model", "models", multiple=True, type=click.Choice(MODELS), default=MODELS, show_default=True)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@measure.threads_option
@measure.out_option
def main(mixes: int, models: tuple[str, ...], seed: int, threads: int, out: Path | None) -> None:
    """Decode random MIXES of requests together and alone."""
    results, facts = [], []
    for place, name in enumerate(models):
        count = mixes // len(models) + (place < mixes % len(models))
        with opened(name, threads) as (directory, model):
            texts = [model.request(one.prompt).prompt_ids for one in problems(40).samples] if "tiny" in name else []
            results.append({"model": name, **compare(model.engine, texts, count, seed)})
            facts.append(measure.model_facts(directory))
    differ = sum(len(one["differences"]) for one in results)
    document = {
        "benchmark": "mixes",
        "machine": measure.machine(),
        "model": " and ".join(fact["model"] for fact in facts),
        "weights_sha256": {name: sha for fact in facts for name, sha in fact["weights_sha256"].items()},
        "engine": "onnxruntime-cpu",
        "dtype": "float32",
        "threads": threads,
        "seed": seed,
        "goal": {"differing": 0, "met": not differ},
        "results": results,
    }
    measure.publish(document, out)
    if differ:
        measure.say(f"{differ} requests differ from the same alone")
        sys.exit(1)


if __name__ == "__main__":
    main()
