"""Repeating the run of another decoder, from its suffix positions and its default options."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from bundles import export, write_source
from test_requests import CONTRACT, Untouched

import dpad
from dpad import DiffusionModel, Explicit, InvalidRequest, Request
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.scheduler import decode

IDS = [5, 6, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DiffusionModel]:
    folder = tmp_path_factory.mktemp("repeat")
    with dpad.load(export(write_source(folder / "source"), folder / "bundle").directory) as opened:
        yield opened


# Positions for a prompt of 3 tokens, blocks of 32 and 128 new tokens -> words of the message.
POSITIONS: dict[str, tuple[Any, str]] = {
    "before the block's end": ([[34]], "position 34 of block 0 is not behind the block; the suffix there is 35 to 130"),
    "past the canvas": ([[], [131]], "position 131 of block 1 is past the canvas end; the suffix there is 67 to 130"),
    "descending": ([[40, 38]], "positions of block 0 must ascend, but 38 follows 40"),
    "twice": ([[], [], [100, 100]], "positions of block 2 must ascend, but 100 follows 100"),
    "more lists than blocks": ([[]] * 5, "for 5 blocks, but gen_length 128 has only 4 of 32 tokens; leave the others"),
    "behind the last block": ([[], [], [], [131]], "position 131 of block 3 .*nothing is behind the last block"),
    "no list": ([], "for no block"),
}


@pytest.mark.parametrize("case", POSITIONS)
def test_messages_about_positions_speak_in_positions(case: str) -> None:
    """Fails if invalid positions reach the engine, or the message names distances instead of positions."""
    given, said = POSITIONS[case]
    schedule = Explicit.from_positions(given, prompt_length=3, block_length=32)
    with pytest.raises(InvalidRequest, match=said):
        decode(Untouched(), [Request((5, 6, 7))], GenerationOptions(schedule=schedule))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (([[35], 36], 3, 32), "block 1 has 36"),
        (([[35], ["36"]], 3, 32), "'36' of block 1 is not an integer"),
        (([[True]], 3, 32), "True of block 0"),
        (([[35.0]], 3, 32), "35.0 of block 0"),
        (([[35]], -3, 32), "prompt_length -3"),
        (([[35]], 3, 0), "block_length 0"),
        ((iter([[35]]), 3, 32), "lists of integers"),
        (([range(10**12)], 3, 32), "longer than any canvas"),
    ],
)
def test_what_is_no_position_is_named(values: Any, said: str) -> None:
    """Fails if True is accepted as 1, or the message does not name the value and the block."""
    with pytest.raises(InvalidRequest, match=said):
        Explicit.from_positions(*values)


@pytest.mark.parametrize("cache", ["none", "prefix", "dual", "extend"])
@pytest.mark.parametrize("ending", [[], [[]]])
def test_positions_of_blocks_that_were_decoded_repeat_a_run(
    model: DiffusionModel, cache: str, ending: list[list[int]]
) -> None:
    """Fails if a run that ended early cannot be repeated, or missing positions of a decoded block are not an error."""
    end = int(model.generate(IDS, gen_length=128, early_termination=False).canvas[3 + 40])  # ends in the second block
    options: Any = {"gen_length": 128, "eos_token_ids": (end,), "cache": cache}
    kept = [[40, 50, 60], [70, 130]]
    whole = Explicit.from_positions([*kept, [], []], 3, 32)
    full = model.generate(IDS, schedule=whole, **options)
    blocks = -(-int(np.count_nonzero(full.commit_steps)) // 32)
    decoded = Explicit.from_positions([*kept, [], *ending][:blocks], 3, 32)
    assert model.generate(IDS, schedule=decoded, **options).canvas.tolist() == full.canvas.tolist()
    early = Explicit.from_positions(kept[:1], 3, 32)
    options["early_termination"] = False
    with pytest.raises(InvalidRequest, match="given for 1 block only, but decoding has reached block 1"):
        model.generate(IDS, schedule=early, **options)


def test_counts_are_in_the_singular() -> None:
    """Fails if a message says "1 blocks"."""
    with pytest.raises(InvalidRequest, match="for 2 blocks, but gen_length 32 has only 1 of 32"):
        Explicit(((), ())).check(32, 32)
    with pytest.raises(InvalidRequest, match="for 1 block only"):
        Explicit(((),)).keep(1, 32, 96, np.random.default_rng(0))


DOCUMENT = (Path(__file__).parent.parent / "docs/repeat.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"^```python\noptions = (.+?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))
def test_runs_to_repeat_are_written_in_our_options(code: str) -> None:
    """Fails if the documented options for another decoder's run are refused, or lack a default of that decoder."""
    options = eval(code, {"dpad": dpad, "dict": dict})
    family = "dream" if "pace" in options else "llada"
    contract = dataclasses.replace(CONTRACT, family=family, tempers_confidence=family == "dream")
    GenerationOptions(**options).check(contract)
    assert options.keys() >= {"gen_length", "block_length", "cache", "schedule", "early_termination"}


def test_the_installed_transformers_has_the_defaults_that_are_told() -> None:
    """Fails if the documented default filters differ from those of the installed transformers."""
    assert transformers.GenerationConfig().top_k is None and "In transformers 5 they are None" in DOCUMENT
