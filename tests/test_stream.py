"""What `stream` brings is what `generate` returns, and it can be left."""

from pathlib import Path
from typing import Any

import pytest

import dpad

PROMPTS = ["w5 w6 w7", [9, 10], dpad.Request((11, 12, 13, 14), suffix_ids=(15, 16))]


@pytest.mark.parametrize("raw", [False, True])
def test_a_streamed_canvas_reads_as_generate_does(eval_bundle: Path, raw: bool) -> None:
    """Fails if a service that streams gets another text, or the prompt, what follows the end, or the suffix with it."""
    with dpad.load(eval_bundle, threads=1) as model:
        free = model.generate_batch(PROMPTS, raw=raw, gen_length=32, block_length=16)
        ends = tuple(row.token_ids[4] for row in free)
        options: dict[str, Any] = {"gen_length": 32, "block_length": 16, "eos_token_ids": ends}
        told = model.generate_batch(PROMPTS, raw=raw, **options)
        read = {}
        for event in model.stream_batch(PROMPTS, raw=raw, **options):
            for row, canvas in zip(event.finished, event.canvases, strict=True):
                read[row] = model.read(PROMPTS[row], canvas, raw=raw, **options)
    assert [read[row] for row in range(3)] == [(row.text, row.token_ids) for row in told]
    assert all(len(row.token_ids) <= 4 for row in told) and all(len(row.token_ids) > 4 for row in free)


def test_closing_cancels(eval_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a client that went away is computed for on and on."""
    with dpad.load(eval_bundle, threads=1) as model:
        step, steps = model.engine.step, []
        monkeypatch.setattr(model.engine, "step", lambda *given: (steps.append(1), step(*given))[1])
        events = model.stream("w5 w6", gen_length=32, decoder="fixed")
        next(events)
        events.close()
        assert list(events) == [] and len(steps) == 1
