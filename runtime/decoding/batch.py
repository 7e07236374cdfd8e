"""`Batch`: the canvases of the rows still decoding, and the step inputs made from them.

    batch = Batch(requests, options, contract)
    batch.start_block(0)
    inputs = batch.step_inputs(batch.masks(batch.lines), refresh=True, engine=engine, want_logits=False)

Rows of unequal length share one array: each row keeps its own positions from 0, what lies
behind its canvas is never gathered, and shorter index rows are padded with -1. A row
therefore sees exactly what it would see alone.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.cache import BlockView, block_view
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.thinning import survivors
from dpad.runtime.engines.base import Engine, StepInputs


class Masks(NamedTuple):
    """The undecided positions of a block in some rows of the batch, left-aligned.

    `offsets` [B, R] within the block, `counts` [B], and `valid` [B, R]: False is filler in
    rows with fewer masks than the fullest one. `valid` None: there is no filler. `lines` [B] are the rows.
    """

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    valid: NDArray[np.bool_] | None
    lines: NDArray[np.int64]

    def of(self, rows: NDArray[np.bool_]) -> "Masks":
        """Those of the rows that are True, the fullest of which must be among them."""
        valid = None if self.valid is None else self.valid[rows]
        return Masks(self.offsets[rows], self.counts[rows], valid, self.lines[rows])


class Batch:
    """Canvases [B, N] of the active rows. Finished rows leave at a block boundary."""

    def __init__(self, requests: list[Request], options: GenerationOptions, contract: StepContract) -> None:
        self.requests = requests
        self.options = options
        self.contract = contract
        self.rows = np.arange(len(requests))  # index of each active row among the requests
        lengths = [request.canvas_length(options) for request in requests]
        self.canvas = np.full((len(requests), max(lengths)), contract.eos_token_id, dtype=np.int64)
        for row, request in enumerate(requests):
            prompt, end = len(request.prompt_ids), len(request.prompt_ids) + options.gen_length
            self.canvas[row, :prompt] = request.prompt_ids
            self.canvas[row, prompt:end] = contract.mask_token_id
            self.canvas[row, end : lengths[row]] = request.suffix_ids
        self._prompts = np.array([len(request.prompt_ids) for request in requests], dtype=np.int64)
        self.appends = False

    def drop_rows(self, finished: NDArray[np.bool_]) -> None:
        """Let the `finished` [B] rows leave; only between blocks."""
        active = ~finished
        self.rows, self.canvas, self._prompts = self.rows[active], self.canvas[active], self._prompts[active]

    def turns(self, block: int) -> int:
        """Turns that `block` takes: one, and in block-causal models one more for finished blocks that the cache
        lacks: those of the prompts, then the one before.
        """
        lacking = block > 0 or self._prompts.max() >= self.options.block_length
        return 2 if self.contract.block_causal and lacking else 1

    def start_block(self, block: int, turn: int = 0) -> None:
        """Begin a turn of `block`; where there is but one, thin the suffix of every row once, for all its steps.

        Sets `positions` [B, P], which are decided in this turn; `first_step`, the number of its first step;
        `appends`, whether it adds finished blocks to the cache, and then `due` [B], the rows that have some.
        """
        options, length = self.options, self.options.block_length
        self.block, self.lines = block, np.arange(len(self.rows))
        self._padded: dict[bool, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = {}
        self.first_step = 0
        if self.contract.block_causal:
            self._start_turn(self._prompts // length * length + block * length, turn + 1 < self.turns(block))
            return
        extends = block > 0 and options.cache == "extend"
        starts = self._prompts + block * length
        self.positions = self._block = starts[:, None] + np.arange(length)  # [B, block_length]
        views: list[list[BlockView]] = [[], []]
        for row, start in zip(self.rows, starts.tolist()):
            end = start + length
            kept = self._kept(self.requests[row], block, end)
            for refresh in (False, True):
                known = start - length if extends else 0
                view = block_view(options.cache, refresh, start, end, kept, self.contract.logit_shift, known)
                views[refresh].append(view)
        self._views = views

    def _start_turn(self, starts: NDArray[np.int64], appends: bool) -> None:
        """A turn of a block-causal model, whose blocks begin at `starts` [B].

        One that `appends` computes what is finished before them and not in the cache; a row without that is padding.
        """
        policy, shift = self.options.cache, self.contract.logit_shift
        length, nothing = self.options.block_length, np.empty(0, dtype=np.int64)
        ends = np.minimum(starts + length, self._prompts + self.options.gen_length)
        places = starts[:, None] + np.arange(length)
        self._block = np.where(places < ends[:, None], places, 0)  # a cut block follows a prompt: 0 is no mask
        self.appends, self.due = appends, starts > 0
        if appends:
            firsts = starts - length if self.block else np.zeros_like(starts)
            spans = zip(firsts.tolist(), starts.tolist())
            self.positions = self._block[:, :shift]
        else:
            spans = zip(starts.tolist(), ends.tolist())
            self.positions, self.first_step = self._block, 1
        views = [block_view(policy, self.appends, start, end, nothing, shift) for start, end in spans]
        self._views = [views, views]

    def _kept(self, request: Request, block: int, end: int) -> NDArray[np.int64]:
        """Canvas positions behind `end` that take part: surviving masks, then the given suffix."""
        options = self.options
        gen_end = len(request.prompt_ids) + options.gen_length
        seed = options.seed if request.seed is None else request.seed
        schedule = options.schedule if request.schedule is None else request.schedule
        rng = np.random.default_rng((seed, block, 0))
        distances = survivors(schedule, block, gen_end - end, options.gen_length, rng)
        return np.concatenate([end + distances, np.arange(gen_end, gen_end + len(request.suffix_ids))])

    def generators(self, step: int, lines: NDArray[np.int64]) -> list[np.random.Generator]:
        """One generator for each of `lines` for the draw of `step`; empty when greedy."""
        if self.options.temperature == 0:
            return []
        seeds = [self.requests[row].seed for row in self.rows[lines]]
        default = self.options.seed
        return [np.random.default_rng((default if seed is None else seed, self.block, step + 1)) for seed in seeds]

    def masks(self, lines: NDArray[np.int64]) -> "Masks":
        """Where the block is still undecided, in the rows `lines`."""
        masked = self.canvas[lines[:, None], self.positions[lines]] == self.contract.mask_token_id
        if self.appends:
            masked &= self.due[lines, None]
        if len(masked) == 1:
            offsets = masked[0].nonzero()[0][None]
            return Masks(offsets, np.array([offsets.shape[1]]), None, lines)
        counts = masked.sum(axis=1)
        offsets = np.argsort(~masked, axis=1, kind="stable")[:, : counts.max()]
        return Masks(offsets, counts, np.arange(offsets.shape[1]) < counts[:, None], lines)

    def finish(self, complete: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[B], rows among those `complete` in this turn whose text ends.

        Behind an early end the canvas is filled with the checkpoint's EOS, or with the first of the ends if
        the options name others only.
        """
        if not complete.any():
            return complete
        options, own = self.options, self.contract.eos_token_id
        eos = options.ends_of_text(own)
        tokens, ends = self.canvas[self.lines[:, None], self._block], self._block.max(axis=1) + 1
        gen_ends = self._prompts + options.gen_length
        stops = np.isin(tokens, eos) & (self._block >= self._prompts[:, None])  # EOS in the prompt ends nothing
        ended = complete & (tokens != self.contract.mask_token_id).all(axis=1)
        ended &= (ends == gen_ends) | (options.early_termination & stops.any(axis=1))
        for row in np.flatnonzero(ended):
            self.canvas[row, ends[row] : gen_ends[row]] = own if own in eos else eos[0]
        return np.asarray(ended)

    def canvas_of(self, row: int) -> NDArray[np.int64]:
        """A copy of one active row's canvas, without what lies behind it."""
        return self.canvas[row, : self.requests[self.rows[row]].canvas_length(self.options)].copy()

    def step_inputs(self, masks: "Masks", refresh: bool, engine: Engine, want_logits: bool) -> StepInputs:
        """Inputs of one step that predicts the masks of the block; axes padded as the engine likes."""
        if refresh not in self._padded:
            self._padded[refresh] = self._pad(self._views[refresh], engine)
        gather, cached, shown_by = self._padded[refresh]
        canvas, lines = self.canvas, masks.lines
        if len(lines) < len(canvas):
            canvas, gather, cached = canvas[lines], gather[lines], cached[lines]
        rows = shown_by[lines[:, None], masks.offsets]
        spare = engine.padded("R", max(rows.shape[1], 1)) - rows.shape[1]
        if spare:
            rows = np.pad(rows, ((0, 0), (0, spare)))
        return StepInputs(canvas, gather, cached, rows, self._views[refresh][0].write, want_logits)

    def _pad(
        self, views: list[BlockView], engine: Engine
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Index rows padded with -1 to [B, Q] and [B, K], and the query row [B, block] that predicts each position."""
        queries = engine.padded("Q", max(len(view.queries) for view in views))
        cached = engine.padded("K", max(len(view.cached) for view in views))
        gather_indices = np.full((len(views), queries), -1, dtype=np.int64)
        cache_indices = np.full((len(views), cached), -1, dtype=np.int64)
        for row, view in enumerate(views):
            gather_indices[row, : len(view.queries)] = view.queries
            cache_indices[row, : len(view.cached)] = view.cached
        predicted_from = np.maximum(self.positions - self.contract.logit_shift, 0)
        shown_by = (predicted_from - gather_indices[:, :1]).clip(0, queries - 1)  # of what is not decided here: any row
        return gather_indices, cache_indices, shown_by
