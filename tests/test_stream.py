"""`stream` gives the result of `generate`, and can be stopped early."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpad
from dpad.runtime.errors import ModelClosed

PROMPTS = ["w5 w6 w7", [9, 10], dpad.Request((11, 12, 13, 14), suffix_ids=(15, 16))]


@pytest.mark.parametrize("raw", [False, True])
def test_what_is_streamed_is_what_generate_gives(eval_bundle: Path, raw: bool) -> None:
    """Fails if the streamed text differs, or includes the prompt, the suffix, or tokens after the end."""
    with dpad.load(eval_bundle, threads=1) as model:
        free = model.generate_batch(PROMPTS, raw=raw, gen_length=32, block_length=16)
        ends = tuple(row.token_ids[4] for row in free)
        options: dict[str, Any] = {"gen_length": 32, "block_length": 16, "eos_token_ids": ends}
        told = model.generate_batch(PROMPTS, raw=raw, **options)
        events = list(model.stream_batch(PROMPTS, raw=raw, **options))
        start = [len(model.request(prompt, raw=raw).prompt_ids) for prompt in PROMPTS]
    read = {event.index: event.generation for event in events if event.generation is not None}
    assert [read[row].text for row in range(3)] == [row.text for row in told]
    assert [read[row].canvas.tolist() for row in range(3)] == [row.canvas.tolist() for row in told]
    assert [event.finished for event in events] == [event.generation is not None for event in events]
    for row, generation in read.items():
        own = [event for event in events if event.index == row]
        assert [event.nfe for event in own] == list(range(1, generation.nfe + 1)) and own[-1].finished
        for event in own:
            at = event.positions - start[row]
            assert (generation.commit_steps[at] == event.nfe).all()
            assert generation.canvas[event.positions].tolist() == event.tokens.tolist()
    assert all(len(row.token_ids) <= 4 for row in told) and all(len(row.token_ids) > 4 for row in free)


def _change(event: dpad.StepEvent) -> None:
    """Change the arrays of an event in place, in every way that a caller might."""
    for array in (event.positions, event.tokens, event.confidences):
        with suppress(ValueError):
            array[...] = array[::-1] + 1


def test_what_a_caller_does_to_an_event_changes_no_result(eval_bundle: Path) -> None:
    """Fails if changing an event's arrays changes the result, or a result's arrays cannot be changed."""
    options: dict[str, Any] = {"gen_length": 32, "block_length": 16}
    with dpad.load(eval_bundle, threads=1) as model:
        kept = model.generate_batch(PROMPTS, **options)
        changed = model.generate_batch(PROMPTS, on_step=_change, **options)
        streamed = list(model.stream(PROMPTS[0], **options))
    for before, after in zip(kept, changed, strict=True):
        assert (after.text, after.nfe) == (before.text, before.nfe)
        np.testing.assert_array_equal(after.canvas, before.canvas)
        np.testing.assert_array_equal(after.commit_steps, before.commit_steps)
        after.canvas[:] = 0
        after.commit_steps[:] = 0
    with pytest.raises(ValueError, match="read-only"):
        streamed[-1].tokens.sort()


@pytest.mark.parametrize("raw", ["false", "", float("nan"), object(), None, 0, 1, []])
def test_raw_is_true_or_false(eval_bundle: Path, raw: Any) -> None:
    """Fails if a value of `raw` that is not a bool is accepted."""
    with dpad.load(eval_bundle, threads=1) as model:
        for prompt in ("w5", [5, 6], [{"role": "user", "content": "w5"}]):
            with pytest.raises(dpad.InvalidRequest, match="raw .* neither True nor False"):
                model.request(prompt, raw=raw)
        assert model.request("w5", raw=np.True_) == model.request("w5", raw=True)  # type: ignore[arg-type]
        assert model.request("w5", raw=np.False_) == model.request("w5")  # type: ignore[arg-type]


def test_a_closed_model_says_so(eval_bundle: Path) -> None:
    """Fails if a call after `close`, or a stream interrupted by it, raises an error about the engine."""
    model = dpad.load(eval_bundle, threads=1)
    events = model.stream("w5 w6", gen_length=32, decoder="fixed")
    next(events)
    model.close()
    with pytest.raises(ModelClosed, match=r"^this model over onnxruntime-cpu is closed; load it again$"):
        list(events)
    with pytest.raises(ModelClosed, match="is closed; load it again"):
        model.generate("w5 w6")
