"""Monte-Carlo bounds of -log p(text | prompt) of a masked-diffusion model, through the engine's own step.

    drawn = list(estimates(contract, prompt_ids, target_ids, options, draws=32, seed=(0,)))
    for outcome in model.run(drawn): ...
    mean(estimate.nats for estimate in drawn) / len(target_ids)

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

from collections.abc import Iterator
from collections.abc import Sequence as Several
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.cache import BLOCKS
from dpad.runtime.checks import is_integer
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.part import Answer, Part, View
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.decoding.suffix import NOTHING, Full
from dpad.runtime.errors import InvalidRequest

MOST_DRAWS = 1 << 16


class Estimate(Sequence):
    """One draw: a text that is known, block by block with some of its tokens masked and scored.

    Attributes:
        target: [tokens], the text.
        nats: the estimate of the bound, of the blocks so far.
    """

    def __init__(
        self,
        request: Request,
        target: NDArray[np.int64],
        options: GenerationOptions,
        contract: StepContract,
        index: int = 0,
    ) -> None:
        """`target` stands behind the prompt of `request`, whose seed draws the masks."""
        super().__init__(request, options, contract, index)
        self.nats = 0.0
        self.target = target
        self._text = self.canvas[self.prompt : self.prompt + len(target)]
        self._shares = np.ones(len(target))  # what the -log p of each token counts
        self._masks = np.random.default_rng(request.seed)

    def _start_block(self, block: int) -> None:
        """Write the block's text with its masks: a uniform number of tokens, at least one.

        Tokens that a model causal between blocks predicts from the block before (`ahead`) stay masks until then.
        """
        length, causal = self.options.block_length, self.contract.block_causal
        first = block * length - (self.prompt % length if causal else 0)
        start, end = max(first, 0), min(first + length, len(self.target))
        ahead = self.contract.logit_shift if causal and first >= 0 and self.prompt + first > 0 else 0
        here, size = slice(start + ahead, end), end - start - ahead
        self._text[here] = self.target[here]
        masked = self._masks.permutation(size)[: self._masks.integers(1, size + 1) if size else 0]
        self._text[here.start + masked] = self.contract.mask_token_id
        self._shares[here] = size / max(1, len(masked))
        super()._start_block(block)

    def _begin(self, decided: NDArray[np.int64], step: int, first: View, later: View) -> None:
        """Masks behind the text take part, and are not scored."""
        super()._begin(decided[decided < self.prompt + len(self.target)], step, first, later)

    def part(self) -> Part:
        """Of the next pass, whose logits are wanted."""
        return Part(self._views[self._fresh], self.canvas, self._rows[self._fresh][self._masked], want_logits=True)

    def take(self, answer: Answer) -> Any:
        """Add what the masks of this pass cost, and write their text."""
        self.nfe += 1
        assert answer.logits is not None
        places = self._decided[self._masked] - self.prompt
        logits = answer.logits.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(places)), self.target[places]]
        self.nats += float(self._shares[places] @ (np.log(np.exp(logits).sum(axis=1)) - chosen))
        self._text[places] = self.target[places]
        self._advance(len(places))
        self.ended = perf_counter()

    def _ends(self) -> bool:
        """Whether the whole text stands there."""
        return bool((self._text == self.target).all())


def estimates(
    contract: StepContract,
    prompt_ids: Several[int],
    target_ids: Several[int],
    options: GenerationOptions,
    draws: int,
    seed: tuple[int, ...],
    index: int = 0,
) -> Iterator[Estimate]:
    """`draws` independent estimates of the bound, in nats of the whole text, each made when it is asked for.

    Args:
        contract: of the engine that runs them; nothing is cached unless the model is causal between blocks.
        prompt_ids: tokens before the text, always clean.
        target_ids: the text. Masks fill the canvas behind it, up to the next whole block and to
            `options.gen_length`; they take part as any suffix does and are not scored.
        options: `block_length`, `gen_length` and `schedule` are used; a model that is causal between blocks has
            no schedule.
        draws: number of estimates, 65536 at most.
        seed: of masks and of the suffix dropout.
        index: of each of the estimates.

    Raises:
        InvalidRequest: the text is empty, holds a mask, or does not fit on a canvas; no such number of draws.
    """
    if not is_integer(draws) or not 1 <= draws <= MOST_DRAWS:
        raise InvalidRequest(f"{draws!r} draws cannot be served; give an integer from 1 to {MOST_DRAWS}")
    options = fitted(contract, prompt_ids, target_ids, options)
    prompt, target = tuple(prompt_ids), np.asarray(target_ids, dtype=np.int64)
    seeds = np.random.default_rng(seed).integers(1 << 32, size=draws).tolist()
    return (Estimate(Request(prompt, seed=one), target, options, contract, index) for one in seeds)


def fitted(
    contract: StepContract, prompt_ids: Several[int], target_ids: Several[int], options: GenerationOptions
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
