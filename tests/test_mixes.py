"""Each request gets the tokens that it gets alone, whatever other requests share its passes."""

from random import Random
from typing import Any

import pytest
from checkpoints import MASK
from decoding import run
from passes import passing, prompt

from dpad.runtime.cache import BLOCKS, CACHES
from dpad.runtime.decoding.options import DECODERS, PACES, PLANNED, GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import Scheduler
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.suffix import NOTHING, Full, Gaussian, SuffixSchedule, Uniform
from dpad.runtime.engines.base import Engine

MIXES = 10
BLOCK = {"sdar": 4}


def some_schedule(rng: Random, length: int) -> SuffixSchedule:
    """A schedule with dropout or without."""
    window = rng.choice([None, rng.randrange(4, length + 1)])
    return rng.choice([Full(), Gaussian(rng.choice([1, 3, 4]), rng.choice([1.0, 2.0]), window), Uniform(4)])


def some_options(rng: Random, family: str) -> GenerationOptions:
    """Random options that the family supports."""
    block = BLOCK.get(family) or rng.choice([4, 8, 16])
    blocks = rng.choice([1, 2, 3])
    decoder = rng.choice(DECODERS)
    values: dict[str, Any] = {
        "gen_length": block * blocks,
        "block_length": block,
        "decoder": decoder,
        "threshold": rng.choice([0.2, 0.5, 0.8]),
        "factor": rng.choice([0.5, 1.5, 3.0]),
        "steps": rng.choice([None, blocks * rng.randrange(1, block + 1)]),
        "pace": rng.choice(PACES) if decoder in PLANNED else "even",
        "cache": BLOCKS if family in BLOCK else rng.choice(CACHES),
        "schedule": NOTHING if family in BLOCK else some_schedule(rng, block * blocks),
        "temperature": rng.choice([0.0, 0.0, 0.5, 1.3]),
        "seed": rng.randrange(100),
        "early_termination": rng.random() < 0.7,
        "eos_token_ids": rng.choice([None, tuple(rng.sample(range(2, MASK), 8))]),
    }
    if values["temperature"]:
        values |= {"top_k": rng.choice([None, 1, 5, 40]), "top_p": rng.choice([None, 0.5, 0.9])}
    return GenerationOptions(**values)


def some_request(rng: Random, family: str) -> Request:
    """A random prompt, never empty, since all masks would tie then; sometimes an infill."""
    infill = prompt(rng.randrange(1000), rng.choice([0, 0, 3, 9])) if family not in BLOCK else ()
    seed = rng.choice([None, rng.randrange(100)])
    return Request(prompt(rng.randrange(1000), rng.choice([1, 5, 6, 6, 17, 40])), infill, seed)


def together(
    engine: Engine, asked: list[tuple[Request, GenerationOptions, int]], max_running: int
) -> list[tuple[list[int], list[int], int]]:
    """Canvas, commit steps and passes of each request; request i arrives before pass `asked[i][2]`."""
    scheduler = Scheduler(engine, max_running)
    sequences = [Sequence(request, options, engine.contract, i) for i, (request, options, _) in enumerate(asked)]
    done, left = 0, [*zip(sequences, (arrival for *_, arrival in asked))]
    while left or scheduler.busy:
        due = [sequence for sequence, arrival in left if arrival <= done or not scheduler.busy]
        scheduler.add(*due)
        left = [(sequence, arrival) for sequence, arrival in left if sequence not in due]
        for outcome in scheduler.step():
            assert outcome.error is None, outcome.error
        done += 1
    return [(s.canvas.tolist(), s.commit_steps.tolist(), s.nfe) for s in sequences]


@pytest.mark.parametrize("name", ["torch", "onnxruntime"])
@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
@pytest.mark.parametrize("pass_rows", [0, 4096], ids=["equal", "padded"])
def test_any_mix_decodes_as_each_alone(make_bundle: Any, name: str, family: str, pass_rows: int) -> None:
    """Fails if an option, a slot, a draw or padding of one request affects another, at any arrival times."""
    engine = passing(make_bundle(family), name, pass_rows=pass_rows)
    shared = 0
    for mix in range(MIXES // 2):
        rng = Random(f"{family} {mix}")
        asked = [
            (some_request(rng, family), some_options(rng, family), rng.randrange(12))
            for _ in range(rng.randrange(2, 7))
        ]
        twin = rng.choice(asked)
        asked.append((twin[0], twin[1], twin[2] + rng.randrange(2)))  # equal shapes share passes in any engine
        alone = [run(engine, [request], options)[0] for request, options, _ in asked]
        engine.passes.clear()
        mixed = together(engine, asked, rng.choice([2, 4, 8]))
        shared += sum(size > 1 for size in engine.sizes)
        assert sum(engine.sizes) == sum(row.nfe for row in alone)
        for number, ((canvas, _, nfe), row) in enumerate(zip(mixed, alone, strict=True)):
            assert (canvas, nfe) == (row.tokens, row.nfe), f"mix {mix}, number {number}: {asked[number]}"
        assert engine.slots.free == engine.slots.most
    assert shared > 10, "they never met"
