"""docs/repeat.md: what other decoders assume, and the options here that repeat it."""

import re
from pathlib import Path

import pytest
import transformers
from test_requests import CONTRACT

import dpad
from dpad.runtime.options import GenerationOptions

DOCUMENT = (Path(__file__).parent.parent / "docs/repeat.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"^```python\noptions = (.+?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL))
def test_runs_to_repeat_are_written_in_our_options(code: str) -> None:
    """Fails if the options that repeat another decoder's run are refused, or leave a default of that decoder out."""
    options = eval(code, {"dpad": dpad, "dict": dict})
    family = "dream" if "pace" in options else "llada"
    GenerationOptions(**options).check(dataclasses.replace(CONTRACT, family=family))
    assert options.keys() >= {"gen_length", "block_length", "cache", "schedule", "early_termination"}


def test_the_installed_transformers_has_the_defaults_that_are_told() -> None:
    """Fails if a later transformers filters by default again, and the document does not say so."""
    assert transformers.GenerationConfig().top_k is None and "In transformers 5 they are None" in DOCUMENT
