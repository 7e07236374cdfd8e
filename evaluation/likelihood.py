"""Monte-Carlo bounds of -log p(text | prompt) of a masked-diffusion model, through the engine's own step.

    nats = bounds(engine, prompt_ids, target_ids, options, draws=32, seed=(0,))    # [draws]
    nats.mean() / len(target_ids)

The text is taken block by block. In a block of n tokens a number l is drawn from 1 … n, exactly l of its
tokens are masked, without replacement, and n/l times their summed -log p is an unbiased estimate of an
upper bound of the block's -log p given what stands before it (LLaDA, arXiv 2502.09992, appendix, which
draws l rather than a masking rate because the estimate then varies less). What stands before the block
is clean, what stands behind it is masked and thinned by the schedule, exactly as while decoding; so the
sum over the blocks bounds -log p of the text in the order in which the decoder writes it. One block as
long as the text is the bound as LLaDA measures it (`whole`).

Models that are causal between blocks are scored in their own blocks, over the keys and values of what is clean before
them. Where such a model predicts a block's first token from the block before it (shift 1), that token is scored as it
is written, alone, and only the others are masked.

The masks depend on seed, draw and lengths only: two schedules are compared on the same masks.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.cache import BLOCKS
from dpad.runtime.checks import is_integer
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.batch import Batch
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.suffix import NOTHING, Full
from dpad.runtime.engines.base import Engine
from dpad.runtime.errors import InvalidRequest

MOST_DRAWS = 1 << 16  # the masks of all draws of a text are in memory together


class Span(NamedTuple):
    """Tokens [start, end) of the text that lie in one block; the first `ahead` of them are decided before it.

    `passes` are the steps that score them.
    """

    start: int
    end: int
    ahead: int
    passes: int


def bounds(
    engine: Engine,
    prompt_ids: Sequence[int],
    target_ids: Sequence[int],
    options: GenerationOptions,
    draws: int,
    seed: tuple[int, ...],
    batch_size: int | None = None,
) -> NDArray[np.float64]:
    """`draws` independent estimates of the bound, in nats of the whole text.

    Args:
        engine: runs the steps; one a block and batch of draws, and nothing is cached unless the model is causal
            between blocks.
        prompt_ids: tokens before the text, always clean.
        target_ids: the text. Masks fill the canvas behind it, up to the next whole block and to
            `options.gen_length`; they take part as any suffix does and are not scored.
        options: `block_length`, `gen_length` and `schedule` are used; a model that is causal between blocks has
            no schedule.
        draws: number of estimates, 65536 at most.
        seed: of masks and of the suffix dropout.
        batch_size: draws in one step; None is the most that the engine takes.

    Raises:
        InvalidRequest: the text is empty, holds a mask, or does not fit on a canvas; no such number of draws.
    """
    if not is_integer(draws) or not 1 <= draws <= MOST_DRAWS:
        raise InvalidRequest(f"{draws!r} draws cannot be served; give an integer from 1 to {MOST_DRAWS}")
    contract = engine.contract
    options = fitted(contract, prompt_ids, target_ids, options)
    target = np.asarray(target_ids, dtype=np.int64)
    parts_of_text = spans(contract, len(prompt_ids), len(target), options.block_length)
    seeds = np.random.default_rng(seed).integers(1 << 32, size=draws).tolist()
    masked = np.stack([_masks(parts_of_text, one) for one in seeds])
    size = min(batch_size or contract.max_batch, contract.max_batch)
    parts = [
        _estimate(
            engine, tuple(prompt_ids), target, options, parts_of_text, seeds[at : at + size], masked[at : at + size]
        )
        for at in range(0, draws, size)
    ]
    return np.concatenate(parts)


def fitted(
    contract: StepContract, prompt_ids: Sequence[int], target_ids: Sequence[int], options: GenerationOptions
) -> GenerationOptions:
    """`options` for a canvas that holds the text; raises `InvalidRequest` where there is none."""
    if not target_ids:
        raise InvalidRequest("a text without tokens has no likelihood; leave it out")
    if contract.mask_token_id in target_ids:
        raise InvalidRequest(f"the text contains the mask id {contract.mask_token_id}, which marks blanks; remove it")
    length = options.block_length
    options = replace(options, gen_length=max(options.gen_length, -(-len(target_ids) // length) * length), cache="none")
    if contract.block_causal:
        options = replace(options, cache=BLOCKS, schedule=NOTHING)
    options.check(contract)
    Request(tuple(prompt_ids)).check(options, contract)
    return options


def whole(contract: StepContract, options: GenerationOptions, length: int) -> GenerationOptions:
    """`options` with one block as long as a text of `length` tokens, and nothing behind it.

    Blocks of a model that is causal between them stay its own: then as many as hold the text.
    """
    if contract.block_causal:
        return replace(options, gen_length=-(-length // options.block_length) * options.block_length, steps=None)
    return replace(options, gen_length=length, block_length=length, steps=None, schedule=Full())


def spans(contract: StepContract, prompt: int, tokens: int, block_length: int) -> list[Span]:
    """The parts of a text of so many tokens, behind a prompt of so many, by the blocks that they lie in."""
    skew = prompt % block_length if contract.block_causal else 0
    found = []
    for first in range(-skew, tokens, block_length):
        start, end = max(first, 0), min(first + block_length, tokens)
        before = contract.block_causal and prompt + first > 0
        ahead = contract.logit_shift if before and first >= 0 else 0
        found.append(Span(start, end, ahead, before + (end > start + ahead)))
    return found


def _masks(parts: list[Span], seed: int) -> NDArray[np.bool_]:
    """[tokens], True where masked: in each block a uniform number of tokens, at least one."""
    rng = np.random.default_rng(seed)
    masked = np.zeros(parts[-1].end, dtype=bool)
    for start, end, ahead, _ in parts:
        size = end - start - ahead
        masked[start + ahead + rng.permutation(size)[: rng.integers(1, size + 1) if size else 0]] = True
    return masked


def _estimate(
    engine: Engine,
    prompt_ids: tuple[int, ...],
    target: NDArray[np.int64],
    options: GenerationOptions,
    parts: list[Span],
    seeds: list[int],
    masked: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """One estimate a row, [B], for rows that mask the `masked` [B, tokens] of the target."""
    batch = Batch([Request(prompt_ids, seed=seed) for seed in seeds], options, engine.contract)
    cache = engine.new_cache(len(seeds), batch.canvas.shape[1] if options.cache == BLOCKS else 0)
    text = batch.canvas[:, len(prompt_ids) : len(prompt_ids) + len(target)]
    total = np.zeros(len(seeds))
    for block, (start, end, ahead, passes) in enumerate(parts):
        for turn in range(passes):
            batch.start_block(block, turn)
            if batch.appends:
                total += _nats(engine, cache, batch, len(prompt_ids), target)
                text[:, start : start + ahead] = target[start : start + ahead]
            else:
                here = masked[:, start + ahead : end]
                text[:, start + ahead : end] = np.where(
                    here, engine.contract.mask_token_id, target[start + ahead : end]
                )
                nats = _nats(engine, cache, batch, len(prompt_ids), target)
                total += nats * (end - start - ahead) / here.sum(axis=1)
        text[:, start:end] = target[start:end]
    return total


def _nats(engine: Engine, cache: Any, batch: Batch, prompt: int, target: NDArray[np.int64]) -> NDArray[np.float64]:
    """[B], -log p of the masked tokens of `target` that this turn predicts, summed; masks behind it are not scored."""
    masks = batch.masks(batch.lines)
    outputs = engine.step(batch.step_inputs(masks, True, engine, want_logits=True), cache)
    assert outputs.logits is not None
    nats = np.zeros(len(batch.rows))
    for row, (offsets, count) in enumerate(zip(masks.offsets, masks.counts.tolist())):
        places = batch.positions[row, offsets[:count]] - prompt
        scored = np.flatnonzero(places < len(target))
        logits = outputs.logits[row, scored].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(scored)), target[places[scored]]]
        nats[row] = (np.log(np.exp(logits).sum(axis=1)) - chosen).sum()
    return nats
