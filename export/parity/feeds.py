"""Random steps for parity: one feed dict per mode, with the shapes of the decode loop.

    for feed in random_feeds(contract, "float32", count=2, seed=0):
        feed["gather_indices"]

Sequences have unequal lengths, so that every feed with two or more of them uses the -1 padding. The pool holds random
rows, and sequences have scattered slots, so that a read from a wrong slot shows in the outputs.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.cache import BlockView, block_view
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.assemble import joined
from dpad.runtime.decoding.suffix import Gaussian
from dpad.runtime.engines.bfloat16 import from_bits, to_bits

Feed = dict[str, NDArray[Any]]

# (name, cache policy, whether it is the refresh step)
MODES = (("none", "none", True), ("refresh", "prefix", True), ("prefix", "prefix", False), ("dual", "dual", False))


def random_feeds(contract: StepContract, dtype: str, count: int, seed: int) -> Iterator[tuple[str, Feed]]:
    """`count` feeds of every mode, as (mode, feed)."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        batch = 1 + index % contract.max_batch
        for name, policy, refresh in MODES:
            yield name, _feed(contract, dtype, policy, refresh, batch, rng)


def _feed(contract: StepContract, dtype: str, policy: str, refresh: bool, batch: int, rng: np.random.Generator) -> Feed:
    length = min(contract.max_length, max(256, contract.block_length if contract.block_causal else 0))
    block = min(contract.block_length, length)
    starts = rng.integers(0, length - block + 1, size=batch)
    views = [_view(contract, policy, refresh, int(start), block, length, rng) for start in starts]
    slots = 1 + rng.permutation(batch * length).reshape(batch, length)
    shape = (1 + batch * length, contract.kv_heads, contract.head_size)
    feed: Feed = {
        "canvas": rng.integers(0, contract.vocab_size, size=(batch, length)),
        "gather_indices": joined([view.queries for view in views]),
        "cache_indices": joined([own[view.cached] for own, view in zip(slots, views)]),
        "decode_rows": rng.integers(0, min(len(view.queries) for view in views), size=(batch, block)),
    }
    for name in contract.cache_names():
        feed[name] = _rows(rng.standard_normal(shape), dtype)
        feed[name][0] = 0  # slot 0 belongs to no sequence; padding reads it
    return feed


def _rows(values: NDArray[np.float64], dtype: str) -> NDArray[Any]:
    """`values` rounded to `dtype`; for bfloat16, which numpy lacks, the array is float32."""
    return from_bits(to_bits(values.astype(np.float32))) if dtype == "bfloat16" else values.astype(dtype)


def _view(
    contract: StepContract, policy: str, refresh: bool, start: int, block: int, length: int, rng: np.random.Generator
) -> BlockView:
    end = start + block
    kept = end + Gaussian().keep(block=0, length=length - end, gen_length=length, rng=rng)
    return block_view(policy, refresh, start, end, kept, contract.logit_shift)
