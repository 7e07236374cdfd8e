"""Cache policies: which positions are queries, and which cache slots they see.

    view = block_view("prefix", refresh=False, start=70, end=102, kept=kept, shift=0)

The modes are data, not code paths (`none`, `prefix` and `dual` as in Fast-dLLM, `extend`, `blocks`):

    mode    refresh (first step of a block)        later steps
    none    Q = prefix + block + kept, K = 0       the same
    prefix  the same; write                        Q = block + kept, K = prefix
    dual    the same; write                        Q = block, K = prefix + kept
    extend  Q = last block + block + kept,         Q = block, K = prefix + kept
            K = prefix before them; write
    blocks  Q = finished blocks,                   Q = block, K = all before it
            K = all before them; write

`extend` is `dual`, but computes the prefix only once: a refresh adds the last finished block to the cache and
recomputes nothing before that block. Its first refresh is the same as that of `dual`.

`blocks` is the only mode of block-causal models (SDAR, Fast-dLLM v2): no query sees positions behind its own block, so
the keys and values of a finished block stay valid. A refresh computes the finished blocks that the cache lacks, from
their final tokens, as in the authors' code: first all blocks of the prompt together (the op is causal between blocks),
later the one block before the current one. With shift 1 its last row also predicts the next block's first token.

In the other modes, where row p-1 predicts position p (shift 1), a cached step also computes position start-1
afresh and takes its slot out of the cache, so that the block's first token is predicted
from the right row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CACHES = ("none", "prefix", "dual", "extend")
BLOCKS = "blocks"
GROWING = ("extend", BLOCKS)  # these keep cached rows from block to block


@dataclass(frozen=True)
class BlockView:
    """Query positions [Q] and attended cache slots [K] of one sequence; `write` fills the cache."""

    queries: NDArray[np.int64]
    cached: NDArray[np.int64]
    write: bool


def block_view(
    policy: str, refresh: bool, start: int, end: int, kept: NDArray[np.int64], shift: int, known: int = 0
) -> BlockView:
    """The view of a block at canvas positions [start, end) whose kept suffix positions are `kept`.

    A refresh reads positions before `known` from the cache instead of computing them; with 0 it computes all.
    """
    if policy == BLOCKS:
        return BlockView(np.arange(start, end), np.arange(start), write=refresh)
    if policy == "none" or refresh:
        first = max(known - shift, 0)
        queries = np.concatenate([np.arange(first, end), kept])
        return BlockView(queries, np.arange(first), write=policy != "none")
    first = max(start - shift, 0)
    block, prefix = np.arange(first, end), np.arange(first)
    if policy == "prefix":
        return BlockView(np.concatenate([block, kept]), prefix, write=False)
    return BlockView(block, np.concatenate([prefix, kept]), write=False)
