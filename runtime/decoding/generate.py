"""`generate`: the only decode loop. Every mode, rule and engine runs through it.

    for event in generate(engine, requests, options):
        event.positions, event.tokens

Block by block (semi-autoregressive, as in LLaDA and DPad): thin the suffix, run steps
until no mask is left in the block, stop a row early when its block contains EOS. Yields
one `StepEvent` a forward pass; the canvases of the finished rows come with the events.
"""

from collections.abc import Generator, Iterator
from itertools import count
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpad.runtime.cache import GROWING
from dpad.runtime.checks import check_outputs
from dpad.runtime.decoding.batch import Batch, Masks
from dpad.runtime.decoding.commit import commit_count
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.sampler import Choice, choose
from dpad.runtime.engines.base import Engine, StepOutputs
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import shown

# Rows whose block is finished wait for the others. Once they are more than a quarter, an engine whose steps cost by
# the row computes the busy ones only, for one copy of these rows' keys and values. On a GPU a step of few rows costs
# what reading the weights does, and a batch of another size would be another shape to record.
_NARROW = 0.75


class StepEvent(NamedTuple):
    """What one forward pass decided. The arrays are parallel, one entry a committed token, and can only be read.

    Attributes:
        block, step: index of the block, and of the step within it (0 is the refresh; in block-causal models
            the pass that adds finished blocks to the cache).
        nfe: forward passes so far.
        active: rows (indices of the requests) that had masks to fill in this pass, or blocks to add to
            the cache; for each of them the pass counts as one evaluation.
        rows, positions, tokens, confidences: row, canvas position, token and its
            probability, for every token committed now.
        finished: rows whose text is complete with this step.
        canvases: the whole canvas of each row in `finished`.
        engine_seconds: time inside `Engine.step`.
    """

    block: int
    step: int
    nfe: int
    active: NDArray[np.int64]
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    tokens: NDArray[np.int64]
    confidences: NDArray[np.float64]
    finished: tuple[int, ...]
    canvases: tuple[NDArray[np.int64], ...]
    engine_seconds: float


Events = Generator[StepEvent, None, None]  # what may be closed before its end


def generate(engine: Engine, requests: list[Request], options: GenerationOptions) -> Events:
    """Fill the canvases of `requests` together; raises `InvalidRequest` before any work is done."""
    contract = engine.contract
    options.check(contract)
    if not 1 <= len(requests) <= contract.max_batch:
        way_out = "use smaller batches, or export with a larger --max-batch" if requests else "give at least one prompt"
        raise InvalidRequest(
            f"a batch of {len(requests)} is outside this bundle's 1 to {contract.max_batch}; {way_out}"
        )
    if options.cache not in engine.caches:
        way_out = " or ".join(engine.caches) or "a compiled engine, ONNX Runtime on the CPU, or eager PyTorch"
        raise InvalidRequest(f"cache {shown(options.cache)} does not run in {engine.name}; use {way_out}")
    for request in requests:
        request.check(options, contract)
    return _blocks(engine, Batch(requests, options, contract), options)


def _blocks(engine: Engine, batch: Batch, options: GenerationOptions) -> Events:
    cache: Any = None
    nfe = 0
    finished = np.zeros(len(batch.rows), dtype=bool)
    for block in count():
        if cache is not None and finished.any() and options.cache in GROWING:
            cache = engine.rows_of(cache, ~finished)
        elif cache is None or finished.any():
            cache = engine.new_cache(int((~finished).sum()), 0 if options.cache == "none" else batch.canvas.shape[1])
        batch.drop_rows(finished)
        finished = np.zeros(len(batch.rows), dtype=bool)
        for turn in range(batch.turns(block)):
            batch.start_block(block, turn)
            for event in _steps(engine, batch, options, cache, nfe, finished):
                nfe = event.nfe
                yield event
        if finished.all():
            return


def _steps(
    engine: Engine, batch: Batch, options: GenerationOptions, cache: Any, nfe: int, finished: NDArray[np.bool_]
) -> Iterator[StepEvent]:
    """Decode one turn of a block; marks in `finished` [B] the rows whose text ends with it."""
    stuck: NDArray[np.bool_] | None = None
    masks, step, due = batch.masks(batch.lines), batch.first_step, batch.appends
    while due or masks.offsets.shape[1]:  # a pass that adds to the cache is made even where it decides nothing
        inputs = batch.step_inputs(masks, step == 0, engine, options.needs_logits or stuck is not None)
        began = perf_counter()
        outputs = engine.step(inputs, cache)
        seconds = perf_counter() - began
        check_outputs(outputs, inputs, batch.contract, engine.name)
        outputs = outputs.first_rows(masks.offsets.shape[1])
        choice = _choose(outputs, options, batch, masks.lines, step, stuck)
        rows, columns, tokens = _select(choice, masks, options, step - batch.first_step, batch.contract.mask_token_id)
        lines, worked = masks.lines, masks.counts > 0
        active, due = batch.due[lines] if due else worked, False
        committed = lines[rows]
        positions = batch.positions[committed, masks.offsets[rows, columns]]
        batch.canvas[committed, positions] = tokens
        masks = batch.masks(lines)
        stuck = _stuck(worked, rows)
        ends: list[int] = []
        if not masks.counts.all():
            complete = np.zeros(len(batch.rows), dtype=bool)
            complete[lines] = worked & (masks.counts == 0)
            ended = batch.finish(complete)
            finished |= ended
            ends = np.flatnonzero(ended).tolist()
        nfe += 1
        yield StepEvent(
            block=batch.block,
            step=step,
            nfe=nfe,
            active=_read_only(batch.rows[lines[active]]),
            rows=_read_only(batch.rows[committed]),
            positions=_read_only(positions),
            tokens=_read_only(tokens),
            confidences=_read_only(choice.confidence[rows, columns]),
            finished=tuple(batch.rows[ends].tolist()) if ends else (),
            canvases=tuple(_read_only(batch.canvas_of(row)) for row in ends),
            engine_seconds=seconds,
        )
        step += not batch.appends
        if len(lines) > 1 and engine.narrows:
            busy = masks.counts > 0
            if 0 < busy.sum() <= _NARROW * len(busy):
                cache, masks = engine.rows_of(cache, busy), masks.of(busy)
                stuck = None if stuck is None else stuck[busy]


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """The same array, which a caller can no longer change: results are added up from these."""
    array.setflags(write=False)
    return array


def _choose(
    outputs: StepOutputs,
    options: GenerationOptions,
    batch: Batch,
    lines: NDArray[np.int64],
    step: int,
    stuck: NDArray[np.bool_] | None,
) -> Choice:
    """Propose tokens; a row whose last step only predicted masks may not propose the mask again."""
    tempered, mask = batch.contract.tempers_confidence, batch.contract.mask_token_id
    choice = choose(outputs, options, batch.generators(step, lines), tempered=tempered)
    if stuck is None:
        return choice
    other = choose(outputs, options, batch.generators(step, lines), mask, tempered=tempered)
    pairs = zip(choice, other)
    return Choice(*(np.where(stuck[:, None], b, a) for a, b in pairs))


def _stuck(worked: NDArray[np.bool_], rows: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    """Which rows that `worked` [B] committed nothing; None if every one did."""
    if len(worked) == 1 and len(rows):
        return None
    stuck = worked.copy()
    stuck[rows] = False
    return stuck if stuck.any() else None


def _select(
    choice: Choice, masks: Masks, options: GenerationOptions, step: int, mask_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Row and column in [B, R] and token of the proposals to commit now; ties go to the lower position.

    A mask that predicts itself is selected like any other, but stays undecided.
    """
    scores, confidence = choice.scores, choice.confidence
    if len(scores) == 1:  # the same in fewer operations: a loop of one row has the least time between its steps
        ranked = (-scores[0]).argsort(kind="stable")
        columns = ranked[: commit_count(options, lambda: confidence[:, ranked], masks.counts, step)[0]]
        columns = columns[choice.tokens[0, columns] != mask_id]
        return np.zeros(len(columns), dtype=np.int64), columns, choice.tokens[0, columns]
    if masks.valid is not None:
        scores = np.where(masks.valid, scores, -np.inf)
        confidence = np.where(masks.valid, confidence, -np.inf)
    order = (-scores).argsort(axis=1, kind="stable")
    lines = np.arange(len(order))[:, None]
    count = commit_count(options, lambda: confidence[lines, order], masks.counts, step)
    rows, ranks = np.nonzero(np.arange(order.shape[1]) < count[:, None])
    columns = order[rows, ranks]
    tokens = choice.tokens[rows, columns]
    decided = tokens != mask_id
    return rows[decided], columns[decided], tokens[decided]
