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

The masks depend on seed, draw and lengths only: two schedules are compared on the same masks.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.batch import Batch
from dpad.runtime.contract import StepContract
from dpad.runtime.engine import Engine
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.options import GenerationOptions
from dpad.runtime.request import Request
from dpad.runtime.suffix import Full


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
        engine: runs the steps; one step a block and batch of draws, nothing is cached.
        prompt_ids: tokens before the text, always clean.
        target_ids: the text. Masks fill the canvas behind it, up to the next whole block and to
            `options.gen_length`; they take part as any suffix does and are not scored.
        options: `block_length`, `gen_length` and `schedule` are used.
        draws: number of estimates.
        seed: of masks and of the suffix dropout.
        batch_size: draws in one step; None is the most that the engine takes.

    Raises:
        InvalidRequest: the text is empty, holds a mask, or does not fit on a canvas.
    """
    contract, length = engine.contract, options.block_length
    options = fitted(contract, prompt_ids, target_ids, options)
    target = np.asarray(target_ids, dtype=np.int64)
    seeds = np.random.default_rng(seed).integers(1 << 32, size=draws).tolist()
    masked = np.stack([_masks(len(target), length, one) for one in seeds])
    size = min(batch_size or contract.max_batch, contract.max_batch)
    parts = [
        _estimate(engine, tuple(prompt_ids), target, options, seeds[at : at + size], masked[at : at + size])
        for at in range(0, draws, size)
    ]
    return np.concatenate(parts)


def fitted(
    contract: StepContract, prompt_ids: Sequence[int], target_ids: Sequence[int], options: GenerationOptions
) -> GenerationOptions:
    """`options` for a canvas that holds the text; raises `InvalidRequest` where there is none, or no such bound."""
    if contract.block_causal:
        raise InvalidRequest(
            f"likelihoods of a model that is causal between blocks ({contract.family}) are not supported yet"
        )
    if not target_ids:
        raise InvalidRequest("a text without tokens has no likelihood; leave it out")
    if contract.mask_token_id in target_ids:
        raise InvalidRequest(f"the text contains the mask id {contract.mask_token_id}, which marks blanks; remove it")
    length = options.block_length
    options = replace(options, gen_length=max(options.gen_length, -(-len(target_ids) // length) * length), cache="none")
    options.check(contract)
    Request(tuple(prompt_ids)).check(options, contract)
    return options


def whole(options: GenerationOptions, length: int) -> GenerationOptions:
    """`options` with one block as long as a text of `length` tokens, and nothing behind it."""
    return replace(options, gen_length=length, block_length=length, steps=None, schedule=Full())


def _masks(tokens: int, block_length: int, seed: int) -> NDArray[np.bool_]:
    """[tokens], True where masked: in each block a uniform number of tokens, at least one."""
    rng = np.random.default_rng(seed)
    masked = np.zeros(tokens, dtype=bool)
    for start in range(0, tokens, block_length):
        size = min(block_length, tokens - start)
        masked[start + rng.permutation(size)[: rng.integers(1, size + 1)]] = True
    return masked


def _estimate(
    engine: Engine,
    prompt_ids: tuple[int, ...],
    target: NDArray[np.int64],
    options: GenerationOptions,
    seeds: list[int],
    masked: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """One estimate a row, [B], for rows that mask the `masked` [B, tokens] of the target."""
    batch = Batch([Request(prompt_ids, seed=seed) for seed in seeds], options, engine.contract)
    total = np.zeros(len(seeds))
    for start in range(0, len(target), options.block_length):
        end = min(start + options.block_length, len(target))
        here = masked[:, start:end]
        place = slice(len(prompt_ids) + start, len(prompt_ids) + end)
        batch.start_block(start // options.block_length)
        batch.canvas[:, place] = np.where(here, engine.contract.mask_token_id, target[start:end])
        nats = _block_nats(engine, batch, target[start:end])
        total += nats * (end - start) / here.sum(axis=1)
        batch.canvas[:, place] = target[start:end]
    return total


def _block_nats(engine: Engine, batch: Batch, target: NDArray[np.int64]) -> NDArray[np.float64]:
    """[B], -log p of the block's masked tokens of `target` [n], summed; masks behind those n are not scored."""
    masks = batch.masks(batch.lines)
    outputs = engine.step(
        batch.step_inputs(masks, True, engine, want_logits=True), engine.new_cache(len(batch.rows), 0)
    )
    assert outputs.logits is not None
    nats = np.zeros(len(batch.rows))
    for row, (offsets, count) in enumerate(zip(masks.offsets, masks.counts.tolist())):
        scored = np.flatnonzero(offsets[:count] < len(target))
        logits = outputs.logits[row, scored].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(scored)), target[offsets[scored]]]
        nats[row] = (np.log(np.exp(logits).sum(axis=1)) - chosen).sum()
    return nats
