"""`Sequence` decodes one canvas from masks to text. It keeps its own block, phase, options and seed.

    sequence = Sequence(request, options, contract)
    sequence.join(slots)
    while not sequence.finished:
        event = sequence.take(answer_to(sequence.part()))

For each block (semi-autoregressive, as in LLaDA and DPad) it thins the suffix, commits masks until the block has none,
and ends early if the block contains EOS. It does not know the other sequences, so those that share its passes cannot
change its tokens.
"""

from math import inf
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.cache import BLOCKS, BlockView, block_view
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.commit import commit_count
from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.part import Answer, Draw, Part, Scheduled, View
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.thinning import survivors
from dpad.runtime.errors import EngineError

Guesses = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]  # positions, tokens, confidences
_NO_GUESSES: Guesses = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))
_BROKEN = "the engine produced NaN or infinite logits; check the weights, or use a wider dtype (bfloat16, float32)"


class Sequence(Scheduled):
    """One request being decoded.

    Attributes:
        canvas: int64 [N], prompt, committed tokens and masks, suffix.
        commit_steps: int64 [gen_length], the pass (from 1) that committed each new position; 0 if none did.
        nfe: passes so far.
        refresh, denoise: seconds inside the engine, of passes that begin a block and of the others.
        ended: the `time.perf_counter` time at which it finished.
        expired: whether its deadline ended it.
    """

    def __init__(
        self,
        request: Request,
        options: GenerationOptions,
        contract: StepContract,
        index: int = 0,
        began: float | None = None,
    ) -> None:
        """Set up the canvas; raises `InvalidRequest` if the request cannot be served.

        `index` marks the sequence's events. A deadline counts from `began`, a `perf_counter` time; None is now.
        """
        request.check(options, contract)
        self.request, self.options, self.contract, self.index = request, options, contract, index
        self.prompt = len(request.prompt_ids)
        self.end = self.prompt + options.gen_length  # one past the last position to fill
        masks = np.full(options.gen_length, contract.mask_token_id)
        self.canvas = np.concatenate([request.prompt_ids, masks, request.suffix_ids]).astype(np.int64)
        for place, token in request.given:
            self.canvas[self.prompt + place] = token
        self._given = np.sort(np.array([self.prompt + place for place, _ in request.given], dtype=np.int64))
        self.commit_steps = np.zeros(options.gen_length, dtype=np.int64)
        self.nfe = 0
        self.refresh = self.denoise = self.ended = 0.0
        self.need = request.slots(options)
        self._seed = options.seed if request.seed is None else request.seed
        self._schedule = options.schedule if request.schedule is None else request.schedule
        self._stuck = False  # whether the last pass predicted masks only
        self.block = self._step = 0
        self.expired = False
        if options.deadline is not None:
            self.deadline = (perf_counter() if began is None else began) + options.deadline
        self._guesses = _NO_GUESSES

    def join(self, slots: NDArray[np.int64]) -> None:
        """Begin with the first block that has a blank."""
        self._slots = slots
        self._start_block(self._next_block(0))

    def _next_block(self, block: int) -> int:
        """The first block from `block` on that has a blank. With cache `extend`, which needs every block, `block`."""
        if not len(self._given) or self.options.cache == "extend":
            return block
        blanks = np.flatnonzero(self.canvas[self.prompt : self.end] == self.contract.mask_token_id)
        return max(block, int(blanks[0]) // self.options.block_length) if blanks.size else self.options.blocks

    def _start_block(self, block: int) -> None:
        """Thin the suffix once, for all passes of the block."""
        self.block, length = block, self.options.block_length
        if self.contract.block_causal:
            start = self.prompt // length * length + block * length
            self._places = np.arange(start, min(start + length, self.end))
            self._start_turn(appends=start > 0)
            return
        start = self.prompt + block * length
        self._places = np.arange(start, start + length)
        policy, end, shift = self.options.cache, start + length, self.contract.logit_shift
        known = start - length if block and policy == "extend" else 0
        kept = self._kept(end)
        first = block_view(policy, True, start, end, kept, shift, known)
        later = block_view(policy, False, start, end, kept, shift)
        # The slot of each position that later passes attend: first the prefix in order, then the kept suffix.
        slot_of = np.full(len(self.canvas), -1)
        slot_of[later.cached] = self._slots[: len(later.cached)]
        self._begin(self._places, 0, self._view(first, slot_of, True), self._view(later, slot_of, False))

    def _start_turn(self, appends: bool) -> None:
        """Start one of the two turns of a block in a block-causal model.

        A turn that `appends` computes the finished blocks that the pool lacks: first those of the prompt, later the
        block before this one. With shift 1 it also decides the block's first token, from the row before the block.
        The other turn decides the block's masks.
        """
        start, shift, length = int(self._places[0]), self.contract.logit_shift, self.options.block_length
        self._appends, nothing = appends, np.empty(0, dtype=np.int64)
        if appends:
            span, decided = (start - length if self.block else 0, start), self._places[:shift]
        else:
            span, decided = (start, int(self._places[-1]) + 1), self._places
        view = self._view(block_view(BLOCKS, appends, *span, nothing, shift), self._slots, appends)
        self._begin(decided, 0 if appends else 1, view, view)

    def _begin(self, decided: NDArray[np.int64], step: int, first: View, later: View) -> None:
        """Decide the masks at `decided`; the first pass has number `step` and sees `first`, the others see `later`."""
        self._decided, self._step, self._first_step = decided, step, step
        self._views = {True: first, False: later}
        from_row = np.maximum(decided - self.contract.logit_shift, 0)
        # The row's index among the queries, which have no gaps up to the end of the block.
        self._rows = {which: from_row - view.queries[0] for which, view in self._views.items()}
        self._masked = np.flatnonzero(self.canvas[decided] == self.contract.mask_token_id)
        self._fresh = True

    def _view(self, view: BlockView, slot_of: NDArray[np.int64], refresh: bool) -> View:
        written = slot_of[view.queries] if view.write else None
        return View(view.queries, slot_of[view.cached], written, refresh)

    def _kept(self, end: int) -> NDArray[np.int64]:
        """Canvas positions from `end` on that take part: surviving masks, given tokens, and the suffix."""
        rng = np.random.default_rng((self._seed, self.block, 0))
        distances = survivors(self._schedule, self.block, self.end - end, self.options.gen_length, rng)
        kept = np.concatenate([end + distances, np.arange(self.end, len(self.canvas))])
        return np.union1d(kept, self._given[self._given >= end]) if len(self._given) else kept

    def part(self) -> Part:
        """The part for the next pass: the view of its phase, and the rows that predict the remaining masks."""
        return Part(self._views[self._fresh], self.canvas, self._rows[self._fresh][self._masked], self._draw())

    def _draw(self) -> Draw | None:
        options = self.options
        if not self._stuck and not options.needs_decisions:
            return None
        count = len(self._masked)
        uniform = np.zeros(count, dtype=np.float32)
        if options.temperature > 0:
            generator = np.random.default_rng((self._seed, self.block, self._step + 1))
            uniform = generator.random(count, dtype=np.float32)
        banned = self.contract.mask_token_id if self._stuck else -1
        top_p = 1.0 if options.top_p is None else options.top_p
        return Draw(uniform, options.temperature, min(options.top_k or 0, self.contract.vocab_size), top_p, banned)

    def take(self, answer: Answer) -> StepEvent:
        """Commit the tokens that the decoder's rule selects, and advance to the next pass, turn or block."""
        self.nfe += 1
        block, step, refresh = self.block, self._step, self._views[self._fresh].refresh
        if refresh:
            self.refresh += answer.seconds
        else:
            self.denoise += answer.seconds
        confidence = np.reciprocal(np.add(answer.odds_against, 1.0, dtype=np.float64))
        columns = self._select(answer, confidence)
        if self.deadline < inf:
            self._guesses = self._guessed(answer, confidence, columns)
        positions, tokens = self._decided[self._masked[columns]], answer.token_ids[columns]
        self._write(positions, tokens)
        self._advance(len(columns))
        if self.finished:
            self.ended = perf_counter()
        return self._event(block, step, (positions, tokens, confidence[columns]), answer.seconds)

    def expire(self) -> StepEvent:
        """End at the deadline: the current block's remaining masks become the tokens that the last pass proposed."""
        positions, tokens, _ = self._guesses
        self._write(positions, tokens)
        self.finished = self.expired = True
        self.ended = perf_counter()
        return self._event(self.block, self._step, self._guesses, 0.0)

    def _guessed(self, answer: Answer, confidence: NDArray[np.float64], columns: NDArray[np.int64]) -> Guesses:
        """The tokens that a pass proposed and did not commit, without those that are the mask itself."""
        left = answer.token_ids != self.contract.mask_token_id
        left[columns] = False
        return self._decided[self._masked[left]], answer.token_ids[left], confidence[left]

    def _write(self, positions: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        self.canvas[positions] = tokens
        self.commit_steps[positions - self.prompt] = self.nfe

    def _event(self, block: int, step: int, decided: Guesses, seconds: float) -> StepEvent:
        positions, tokens, confidence = decided
        return StepEvent(
            index=self.index,
            block=block,
            step=step,
            nfe=self.nfe,
            positions=_read_only(positions),
            tokens=_read_only(tokens),
            confidences=_read_only(confidence),
            finished=self.finished,
            engine_seconds=seconds,
        )

    def _select(self, answer: Answer, confidence: NDArray[np.float64]) -> NDArray[np.int64]:
        """Indices of the proposals to commit, best first; ties go to the lower position.

        A proposal of the mask itself counts towards the rule's number, but is not committed.
        """
        if not len(confidence):
            return np.empty(0, dtype=np.int64)
        scores = {"entropy": answer.negative_entropy, "margin": answer.margin}.get(self.options.decoder, confidence)
        assert scores is not None
        if not (np.minimum.reduce(confidence) >= 0 and np.minimum.reduce(scores) > -np.inf):  # false for NaN, too
            raise EngineError(_BROKEN)
        ranked = (-scores).argsort(kind="stable")
        count = commit_count(self.options, confidence, ranked, self._step - self._first_step)
        columns = ranked[:count]
        return np.asarray(columns[answer.token_ids[columns] != self.contract.mask_token_id])

    def _advance(self, committed: int) -> None:
        """Advance after a pass: to the next pass of the turn, to the next turn or block, or to the end."""
        self._stuck = committed == 0 and len(self._masked) > 0
        self._masked = np.flatnonzero(self.canvas[self._decided] == self.contract.mask_token_id)
        appends = self.contract.block_causal and self._appends
        self._step += not appends
        self._fresh = appends  # masks that an appending turn could not decide need its rows again
        if len(self._masked):
            return
        following = self._next_block(self.block + 1)
        if self._ends() or (following == self.options.blocks and len(self._given)):
            self.finished = True
        elif appends:
            self._start_turn(appends=False)
            if not len(self._masked):  # a block of one token
                self._start_block(self.block + 1)
        else:
            self._start_block(following)

    def _ends(self) -> bool:
        """Whether the text ends with this block; if so, fills the canvas behind it with EOS.

        That is the checkpoint's own EOS, or the first of `eos_token_ids` if they do not contain it.
        """
        tokens, behind = self.canvas[self._places], int(self._places[-1]) + 1
        if (tokens == self.contract.mask_token_id).any():
            return False
        own = self.contract.eos_token_id
        eos = self.options.ends_of_text(own)
        written = tokens[self._places >= self.prompt]  # EOS in the prompt ends nothing
        early = self.options.early_termination and not len(self._given)
        if behind != self.end and not (early and np.isin(written, eos).any()):
            return False
        self.canvas[behind : self.end] = own if own in eos else eos[0]
        return True

    def token_ids(self) -> list[int]:
        """The generated tokens of a finished canvas up to EOS, without the masks that a deadline left.

        With `given` tokens it is the whole text, because each blank may have its own EOS.
        """
        generated = self._generated()
        ends = self._ends_in(generated)
        return list(map(int, generated[: ends[0] if ends.size else None]))

    @property
    def finish_reason(self) -> str:
        """Why a finished canvas ended: `stop`, `length` or `deadline`, as in `Generation`."""
        if self.expired:
            return "deadline"
        return "stop" if self._ends_in(self._generated()).size else "length"

    def _generated(self) -> NDArray[np.int64]:
        generated = self.canvas[self.prompt : self.end]
        return generated[generated != self.contract.mask_token_id] if self.expired else generated

    def _ends_in(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        if len(self._given):
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(np.isin(tokens, self.options.ends_of_text(self.contract.eos_token_id)))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Make the array read-only, and return it."""
    array.setflags(write=False)
    return array
