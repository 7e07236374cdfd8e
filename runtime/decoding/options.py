"""`GenerationOptions`: everything that shapes one request, frozen and checked.

    options = GenerationOptions(gen_length=256, decoder="threshold", cache="dual")
    options.check(contract)

Defaults follow the published runs: blocks of 32, greedy, threshold 0.9, Gaussian dropout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np

from dpad.runtime.arguments import listed, reading
from dpad.runtime.cache import BLOCKS, CACHES
from dpad.runtime.checks import as_integer, as_number, is_integer, is_number
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.suffix import NOTHING, Gaussian, SuffixSchedule
from dpad.runtime.decoding.thinning import check_is_schedule, check_schedule, drops_all
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import counted, shown

_COLDEST = 1e-3  # lower temperatures would overflow the tempered logits
_NAMES = ("decoder", "pace", "cache")
_WHOLE = ("gen_length", "block_length", "seed", "steps", "top_k")
_NUMBERS = ("threshold", "factor", "temperature", "top_p", "deadline")

PLANNED = ("fixed", "entropy", "margin")  # decoders that use `steps` and `pace`
DECODERS = ("threshold", "factor", *PLANNED)
PACES = ("even", "noise")  # how a block's masks are divided among its steps


@dataclass(frozen=True)
class GenerationOptions:
    """Options that say how the canvas is filled.

    Attributes:
        gen_length: new tokens on the canvas, a multiple of `block_length`.
        block_length: tokens decoded together.
        decoder: `threshold` commits every mask with confidence >= `threshold` (and always the best); `factor` is
            Fast-dLLM's rule; `fixed` spreads the block over its steps, most confident first; `entropy` and `margin`
            do the same, ordered by least entropy, or by the largest gap between the two best probabilities.
        steps: total steps over all blocks, for `fixed`, `entropy` and `margin` only; a multiple of the number of
            blocks. None is one token per step.
        pace: how these three divide a block's masks among its steps: `even` (LLaDA), or `noise`, Dream's schedule,
            which commits few at first. Steps of `noise` that would commit nothing are skipped, and `steps` is at most
            `gen_length`.
        cache: `none`, `prefix`, `dual` or `extend`: which keys and values are kept between the steps of a block, or
            from block to block. Block-causal models have `blocks` instead.
        schedule: which suffix positions take part (DPad).
        temperature: 0 is greedy; otherwise tokens are drawn from the tempered distribution.
        top_k, top_p: limit the draw to the likeliest tokens; at temperature 0 they change Dream's confidence only.
        seed: seeds the suffix dropout and the draws of this request; there is no global state.
        early_termination: end when a finished block contains EOS.
        eos_token_ids: tokens that end the text; None is the checkpoint's own.
        deadline: seconds from the call until the text ends as it is. Masks of the current block get the tokens that the
            last pass proposed; later blocks keep their masks. A pass that would probably end later does not begin.
    """

    gen_length: int = 128
    block_length: int = 32
    decoder: str = "threshold"
    threshold: float = 0.9
    factor: float = 1.0
    steps: int | None = None
    pace: str = "even"
    cache: str = "prefix"
    schedule: SuffixSchedule = field(default_factory=Gaussian)
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    early_termination: bool = True
    eos_token_ids: tuple[int, ...] | None = None
    deadline: float | None = None

    @reading("an option")
    def __post_init__(self) -> None:
        """Convert numbers and names to Python's own types; raises `InvalidRequest` for integers over 128 bits."""
        for name in _WHOLE:
            object.__setattr__(self, name, as_integer(getattr(self, name), name))
        for name in _NUMBERS:
            object.__setattr__(self, name, as_number(getattr(self, name)))
        for name in _NAMES:
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, str.__str__(value))
        if (eos := listed(self.eos_token_ids)) is not None:
            tokens = [as_integer(token, "a token id") for token in eos]
            object.__setattr__(self, "eos_token_ids", tokens if isinstance(self.eos_token_ids, list) else tuple(tokens))

    @property
    def blocks(self) -> int:
        """Number of blocks on the canvas."""
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        """Steps per block of the decoders with a fixed number of steps."""
        return (self.steps or self.gen_length) // self.blocks

    def ends_of_text(self, eos_token_id: int) -> Sequence[int]:
        """The tokens that end the text; `eos_token_id` is the checkpoint's own."""
        return (eos_token_id,) if self.eos_token_ids is None else self.eos_token_ids

    @property
    def needs_decisions(self) -> bool:
        """Whether commits need more than each row's likeliest token and its confidence."""
        return self.shapes or self.decoder in ("entropy", "margin")

    @property
    def shapes(self) -> bool:
        """Whether temperature or filters change the model's distribution."""
        return self.temperature > 0 or self.top_k is not None or self.top_p is not None

    def check(self, contract: StepContract) -> None:
        """Raise `InvalidRequest` for the first option that cannot be served; it names the value and the limit."""
        with reading("an option"):
            self.check_types(CACHES if not contract.block_causal else (BLOCKS,))
        for problem, message in self._problems(contract):
            if problem:
                raise InvalidRequest(message)
        check_schedule(self.schedule, self.gen_length, self.block_length)

    def check_types(self, caches: Sequence[str] = (*CACHES, BLOCKS)) -> None:
        """Raise `InvalidRequest` for values of a wrong type, which no model could serve.

        `caches` are the cache policies that the message lists.
        """
        for name in _WHOLE:
            value = getattr(self, name)
            if not is_integer(value) and not (value is None and name in ("steps", "top_k")):
                raise InvalidRequest(f"{name} {shown(value)} is not an integer")
        for name in _NUMBERS:
            value = getattr(self, name)
            if not is_number(value) and not (value is None and name in ("top_p", "deadline")):
                raise InvalidRequest(f"{name} {shown(value)} is not a number")
        if not isinstance(self.early_termination, (bool, np.bool_)):
            raise InvalidRequest(f"early_termination {shown(self.early_termination)} is neither True nor False")
        for name, known in zip(_NAMES, (DECODERS, PACES, caches)):
            if not isinstance(value := getattr(self, name), str):
                raise InvalidRequest(f"{name} {shown(value)} is not a name; give one as text: {', '.join(known)}")
        check_is_schedule(self.schedule)
        eos = self.eos_token_ids
        if eos is not None and (not isinstance(eos, (list, tuple)) or not eos or not all(map(is_integer, eos))):
            raise InvalidRequest(f"eos_token_ids {shown(eos)} must be a list of one or more integers, or None")

    def _problems(self, contract: StepContract) -> list[tuple[bool, str]]:
        positive = self.gen_length >= 1 and self.block_length >= 1
        divides = positive and self.gen_length % self.block_length == 0
        steps_whole = self.decoder not in PLANNED or (divides and (self.steps or 0) % self.blocks == 0)
        eos = self.eos_token_ids or ()
        return [
            (not positive, f"gen_length {self.gen_length} and block_length {self.block_length} must be 1 or more"),
            (not divides, f"block_length {self.block_length} does not divide gen_length {self.gen_length}"),
            (self.decoder not in DECODERS, f"decoder {shown(self.decoder)} is not one of {', '.join(DECODERS)}"),
            (self.pace not in PACES, f"pace {shown(self.pace)} is not one of {', '.join(PACES)}"),
            *self._mode_problems(contract),
            (self.steps is not None and self.steps < 1, f"steps {self.steps} must be 1 or more"),
            (
                self.pace == "noise" and self.decoder in PLANNED and (self.steps or 0) > self.gen_length,
                f"steps {self.steps} must be at most gen_length {self.gen_length} with pace 'noise'",
            ),
            (
                not steps_whole,
                f"steps {self.steps} must be a multiple of the {counted(divides and self.blocks, 'block')}",
            ),
            (not 0 <= self.threshold <= 1, f"threshold {self.threshold} must be between 0 and 1"),
            (not self.factor > 0, f"factor {self.factor} must be above 0"),
            (
                self.temperature != 0 and not _COLDEST <= self.temperature < float("inf"),
                f"temperature {self.temperature} must be 0 (greedy) or at least {_COLDEST}",
            ),
            (
                self.top_k is not None and self.top_k < 1,
                f"top_k {self.top_k} must be 1 or more; for no limit leave it out, or give None",
            ),
            (
                self.top_p is not None and not 0 < self.top_p <= 1,
                f"top_p {self.top_p} must be above 0 and at most 1; for no limit leave it out, or give None",
            ),
            (
                self.temperature == 0 and self.shapes and not contract.tempers_confidence,
                "top_k and top_p do nothing at temperature 0 in this family; set a temperature or leave them out",
            ),
            (self.seed < 0, f"seed {self.seed} must be 0 or more"),
            (
                self.deadline is not None and not self.deadline > 0,
                f"deadline {self.deadline} must be above 0 seconds; for none leave it out, or give None",
            ),
            (contract.mask_token_id in eos, f"eos_token_ids {shown(eos)} contain the mask id {contract.mask_token_id}"),
            (
                any(not 0 <= token < contract.vocab_size for token in eos),
                f"eos_token_ids {shown(eos)} must lie in the vocabulary of {contract.vocab_size}",
            ),
        ]

    def _mode_problems(self, contract: StepContract) -> list[tuple[bool, str]]:
        if not contract.block_causal:
            return [(self.cache not in CACHES, f"cache {shown(self.cache)} is not one of {', '.join(CACHES)}")]
        why = f"this {contract.family} model is causal between blocks of {contract.block_length} tokens"
        return [
            (
                self.block_length != contract.block_length,
                f"block_length {self.block_length} cannot be served: {why}; leave it out",
            ),
            (
                self.cache != BLOCKS,
                f"cache {shown(self.cache)} cannot be served: {why}; leave it out, or use {BLOCKS!r}",
            ),
            (
                not drops_all(self.schedule),
                f"schedule {shown(self.schedule)} keeps a suffix, but {why} and attends no suffix; leave it out",
            ),
        ]


class Options(TypedDict, total=False):
    """Keyword arguments of `DiffusionModel.generate`: `preset` and the fields of `GenerationOptions`."""

    preset: str | None
    gen_length: int
    block_length: int
    decoder: str
    threshold: float
    factor: float
    steps: int | None
    pace: str
    cache: str
    schedule: SuffixSchedule
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    early_termination: bool
    eos_token_ids: tuple[int, ...] | None
    deadline: float | None


def defaults(contract: StepContract) -> dict[str, Any]:
    """Fields of `GenerationOptions` whose default differs for the model of `contract`."""
    if not contract.block_causal:
        return {}
    return {"block_length": contract.block_length, "cache": BLOCKS, "schedule": NOTHING}
