"""Every variant of the attention kernel that ships, and compiling them beside each other.

    for variant in ready(shipped("9.0")):      # each as soon as its code lies in Triton's cache
        case = variant.draw(random.Random(0))

Compiling takes seconds a variant and running it milliseconds: many shapes are tried with few variants, and processes
compile the next ones meanwhile.
"""

import os
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from random import Random

import torch

from dpad.plugins import tiling
from dpad.plugins.tiling import Tile
from gpu.timing import DEVICE


@dataclass(frozen=True)
class Case:
    """One call: sizes as in the op, query heads a key/value head (`group`), and over how many splits."""

    rows: int
    cached: int
    kv_heads: int
    group: int
    batch: int
    pads: bool
    block: int
    splits: int


@dataclass(frozen=True)
class Variant:
    """What is compiled into a kernel; `partial` for several splits, `causal` for blocks."""

    dtype: torch.dtype
    size: int
    tile: Tile
    partial: bool
    causal: bool

    def draw(self, rng: Random, rows: int, cached: int, heads: tuple[tuple[int, int], ...]) -> Case:
        """A call of this variant with at most so many rows and cached rows, and (query, key/value) `heads` as given."""
        query_heads, kv_heads = rng.choice(heads)
        return Case(
            rows=rng.randint(1, rows),
            cached=rng.randint(1, rng.choice((self.tile.block_n, cached))) if self.partial else rng.randint(0, cached),
            kv_heads=kv_heads,
            group=query_heads // kv_heads,
            batch=rng.randint(1, 3),
            pads=rng.random() < 0.75,
            block=rng.randint(1, 64) if self.causal else 0,
            splits=rng.randint(2, tiling.MAX_SPLITS) if self.partial else 1,
        )


def shipped(capability: str) -> list[Variant]:
    """All that a launcher or a plugin may choose on GPUs of a compute capability."""
    dtypes, flags = (torch.bfloat16, torch.float16), (False, True)
    return [Variant(*of) for of in product(dtypes, tiling.HEAD_SIZES, tiling.tiles(capability), flags, flags)]


def ready(variants: list[Variant]) -> Generator[Variant]:
    """Each as soon as it is compiled; Triton's interpreter has nothing to compile."""
    if DEVICE == "cpu":
        yield from variants
        return
    workers = max(1, len(os.sched_getaffinity(0)) - 1)
    pool = ProcessPoolExecutor(min(workers, len(variants)), mp_context=get_context("spawn"))
    try:
        compiling = {pool.submit(_launch, variant): variant for variant in variants}
        for done in as_completed(compiling):
            done.result()
            yield compiling[done]
    finally:
        pool.shutdown(cancel_futures=True)


def _launch(variant: Variant) -> None:
    """Launch it once, and with it every variant of `combine` that it may need: their code is then kept on disk."""
    from dpad.plugins.launch import attend_rows
    from gpu.kernels import make_inputs

    inputs = make_inputs(8, 15 * variant.tile.block_n, 2, 1, variant.size, variant.dtype)
    for splits in (2, 4, 8, tiling.MAX_SPLITS) if variant.partial else (1,):
        attend_rows(*inputs, 1.0, int(variant.causal), tile=variant.tile, splits=splits).cpu()
