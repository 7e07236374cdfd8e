"""All shipped variants of the attention kernel, compiled in parallel.

    for variant in ready(shipped("9.0")):      # each as soon as its code is in Triton's cache
        case = variant.draw(random.Random(0))

A variant takes seconds to compile and milliseconds to run. So each compiled variant is tried with many shapes while
other processes compile the next ones.
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
    """One call: sizes as in the op, query heads per key/value head (`group`), and the number of splits."""

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
    """The constants compiled into a kernel; `partial` is for several splits, `causal` for blocks."""

    dtype: torch.dtype
    size: int
    tile: Tile
    partial: bool
    causal: bool

    def draw(self, rng: Random, rows: int, cached: int, heads: tuple[tuple[int, int], ...]) -> Case:
        """A random call of this variant: at most `rows` and `cached` rows, and one of `heads` (query, key/value)."""
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
    """All variants that a launcher or a plugin can choose on GPUs of a compute capability."""
    dtypes, flags = (torch.bfloat16, torch.float16), (False, True)
    return [Variant(*of) for of in product(dtypes, tiling.HEAD_SIZES, tiling.tiles(capability), flags, flags)]


def ready(variants: list[Variant]) -> Generator[Variant]:
    """The variants in the order in which they are compiled; Triton's interpreter compiles nothing."""
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
    """Launch a variant, and every variant of `combine` that it may need, once, so that their code is cached on disk."""
    from dpad.plugins.launch import attend_rows
    from gpu.kernels import make_inputs

    inputs = make_inputs(8, 15 * variant.tile.block_n, 2, 1, variant.size, variant.dtype)
    for splits in (2, 4, 8, tiling.MAX_SPLITS) if variant.partial else (1,):
        attend_rows(*inputs, 1.0, int(variant.causal), tile=variant.tile, splits=splits).cpu()
