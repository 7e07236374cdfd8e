"""Monte-Carlo bounds of -log p(text | prompt) of a masked-diffusion model, computed by the engine's own step.

    drawn = list(estimates(contract, prompt_ids, target_ids, options, draws=32, seed=(0,)))
    for outcome in model.run(drawn): ...
    mean(estimate.nats for estimate in drawn) / len(target_ids)

The text is scored block by block. In a block of n tokens a number l is drawn from 1 … n, and l of its tokens, drawn
without replacement, are masked. n/l times their summed -log p is an unbiased estimate of an upper bound of the block's
-log p given the text before it (LLaDA, arXiv 2502.09992, appendix; the paper draws l instead of a masking rate because
the estimate then has less variance). The text before the block is unmasked; the canvas behind it is masked and thinned
by the schedule, exactly as in decoding. So the sum over the blocks bounds -log p of the text in the order in which the
decoder writes it. With one block as long as the text it is the bound that LLaDA measures (`whole`).

Block-causal models are scored in their own blocks, with the keys and values of the unmasked text before them cached. If
such a model predicts a block's first token from the block before it (shift 1), that token is scored alone, as it is
decoded, and only the others are masked.

The masks depend only on seed, draw and lengths, so two schedules are compared on the same masks.
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
    """One draw: a sequence whose text is known, of which each block has some tokens masked and scored.

    Attributes:
        target: int64 [tokens], the text.
        nats: the estimate of the bound over the blocks so far, in nats.
    """

    def __init__(
        self,
        request: Request,
        target: NDArray[np.int64],
        options: GenerationOptions,
        contract: StepContract,
        index: int = 0,
    ) -> None:
        """`target` follows the prompt of `request`, whose seed draws the masks."""
        super().__init__(request, options, contract, index)
        self.nats = 0.0
        self.target = target
        self._text = self.canvas[self.prompt : self.prompt + len(target)]
        self._shares = np.ones(len(target))  # weight of each token's -log p
        self._masks = np.random.default_rng(request.seed)

    def _start_block(self, block: int) -> None:
        """Write the block's text, and mask a uniformly drawn number of its tokens, at least one.

        A token that a block-causal model predicts from the block before (`ahead`) is not drawn: it stays a mask until
        it is scored.
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
        """Score no masks behind the text, which take part all the same."""
        super()._begin(decided[decided < self.prompt + len(self.target)], step, first, later)

    def part(self) -> Part:
        """The part for the next pass, with logits."""
        return Part(self._views[self._fresh], self.canvas, self._rows[self._fresh][self._masked], want_logits=True)

    def take(self, answer: Answer) -> Any:
        """Add the weighted -log p of the pass's masked tokens, and write these tokens."""
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
        """Whether the whole text is written."""
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
    """Yield `draws` independent estimates of the bound of the whole text, in nats; each is created on demand.

    Args:
        contract: contract of the engine that runs them. Rows are cached for block-causal models only.
        prompt_ids: tokens before the text, never masked.
        target_ids: the text. Masks fill the canvas behind it, up to the next whole block and to
            `options.gen_length`; they take part as any suffix does and are not scored.
        options: `block_length`, `gen_length` and `schedule` are used; a block-causal model has no schedule.
        draws: number of estimates, 65536 at most.
        seed: seeds the masks and the suffix dropout.
        index: `index` of each estimate.

    Raises:
        InvalidRequest: the text is empty, contains a mask or does not fit on a canvas, or `draws` is out of range.
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
    """Adapt `options` to a canvas that holds the text; raises `InvalidRequest` if no canvas can."""
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

    A block-causal model keeps its own block length, with as many blocks as hold the text.
    """
    if contract.block_causal:
        return replace(options, gen_length=-(-length // options.block_length) * options.block_length, steps=None)
    return replace(options, gen_length=length, block_length=length, steps=None, schedule=Full())
