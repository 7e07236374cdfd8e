"""`Request`: one sequence to generate, as token ids.

Request(prompt_ids=(1, 2, 3), seed=7)
Request(prompt_ids=head, suffix_ids=tail)      # infill: the text between the two is generated
"""

from dataclasses import dataclass

from dpad.runtime.arguments import listed, reading
from dpad.runtime.cache import BLOCKS
from dpad.runtime.checks import as_integer, is_integer
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.suffix import Explicit, SuffixSchedule
from dpad.runtime.decoding.thinning import check_is_schedule, check_schedule, drops_all
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import counted, shown


@dataclass(frozen=True)
class Request:
    """A prompt, and the settings that may differ between the requests of a batch.

    Attributes:
        prompt_ids: tokens before the text to generate.
        suffix_ids: tokens behind it (infill); they always take part, as DPad drops masks only.
        seed: seed of this request, which makes it give the same tokens alone and in a batch; None is the options' seed.
        schedule: suffix schedule of this request; None is the options' schedule.
        given: pairs (place, token) of fixed tokens between blanks; a place counts from the first generated position.
            Like the suffix, these tokens always take part. With any of them, EOS does not end the canvas early,
            because a blank may follow.
    """

    prompt_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...] = ()
    seed: int | None = None
    schedule: SuffixSchedule | None = None
    given: tuple[tuple[int, int], ...] = ()

    @reading("a request")
    def __post_init__(self) -> None:
        """Convert lists of token ids to tuples; raises `InvalidRequest` for other values and integers over 128 bits."""
        for name in ("prompt_ids", "suffix_ids"):
            ids = listed(getattr(self, name))
            if ids is None:
                raise InvalidRequest(f"{name} {shown(getattr(self, name))} is not a list of token ids")
            object.__setattr__(self, name, tuple(as_integer(token, "a token id") for token in ids))
        object.__setattr__(self, "seed", as_integer(self.seed, "seed"))
        object.__setattr__(self, "given", _pairs(self.given))

    def canvas_length(self, options: GenerationOptions) -> int:
        """Number of tokens on the canvas: prompt, generated and suffix."""
        return len(self.prompt_ids) + options.gen_length + len(self.suffix_ids)

    def check(self, options: GenerationOptions, contract: StepContract) -> None:
        """Raise `InvalidRequest` if the request cannot be served; it names the value and the limit."""
        for token in (*self.prompt_ids, *self.suffix_ids, *(token for _, token in self.given)):
            if not is_integer(token) or not 0 <= token < contract.vocab_size:
                raise InvalidRequest(f"token id {shown(token)} is outside the vocabulary of {contract.vocab_size}")
            if token == contract.mask_token_id:
                raise InvalidRequest(
                    f"the prompt contains the mask id {token}, which marks blanks to fill; "
                    "remove it, or pass the text behind the blank as the suffix"
                )
        if self.schedule is not None:
            check_is_schedule(self.schedule)
        places = {place for place, _ in self.given}
        if self.given and (len(places) < len(self.given) or not 0 <= min(places) <= max(places) < options.gen_length):
            raise InvalidRequest(
                f"the places of given tokens must be distinct and among the {options.gen_length} generated positions"
            )
        if len(places) == options.gen_length:
            raise InvalidRequest("every place has a given token; leave at least one blank to fill")
        length = self.canvas_length(options)
        if length > contract.max_length:
            raise InvalidRequest(
                f"a canvas of {counted(length, 'token')} ({len(self.prompt_ids)} prompt, {options.gen_length} new, "
                f"{len(self.suffix_ids)} suffix) is over this bundle's {contract.max_length}; "
                "shorten it, or export with a larger --max-length"
            )
        own = self.schedule is not None and not drops_all(self.schedule)
        behind = len(self.suffix_ids) + len(self.given)
        if contract.block_causal and (behind or own):
            what = f"schedule {shown(self.schedule)}" if own else f"a suffix of {counted(behind, 'token')}"
            raise InvalidRequest(
                f"{what} cannot be served: this {contract.family} model is causal between blocks and attends nothing "
                "behind the block that it decodes; leave it out"
            )
        schedule = options.schedule if self.schedule is None else self.schedule
        check_schedule(schedule, options.gen_length, options.block_length)
        if isinstance(schedule, Explicit):
            schedule.check_prompt(len(self.prompt_ids))
        if self.seed is not None and (not is_integer(self.seed) or self.seed < 0):
            raise InvalidRequest(f"seed {shown(self.seed)} must be an integer, 0 or more")

    def slots(self, options: GenerationOptions) -> int:
        """Pool slots that the request holds while it is decoded: enough for any of its blocks."""
        if options.cache == "none":
            return 0
        length = self.canvas_length(options)
        if options.cache == BLOCKS:
            return length
        behind = len(self.suffix_ids) if options.cache == "prefix" else 0
        return length - options.block_length - behind


def _pairs(given: object) -> tuple[tuple[int, int], ...]:
    """Read pairs of integers; raises `InvalidRequest` for anything else."""
    pairs = [listed(pair) or [] for pair in listed(given) or ()]
    if listed(given) is None or any(len(pair) != 2 or not all(map(is_integer, pair)) for pair in pairs):
        raise InvalidRequest(f"given {shown(given)} is not a list of pairs of a place and a token id")
    return tuple((as_integer(place, "a place"), as_integer(token, "a token id")) for place, token in pairs)
