"""The tally of the fuzz tests counts outcomes, and does not hide errors that are not this package's."""

import json
from pathlib import Path

import pytest
from fuzzing import Tally, write_report

from dpad.runtime.errors import CheckpointError


def test_a_tally_counts_and_lets_other_errors_through(tmp_path: Path) -> None:
    """Fails if a refusal is not counted by its type, or another error counts as a refusal."""
    tally = Tally("kind")

    def refuse() -> None:
        raise CheckpointError("no")

    assert tally.attempt("a", lambda: 3) == 3 and tally.attempt("b", refuse) is None
    with pytest.raises(ZeroDivisionError) as caught:
        tally.attempt("c", lambda: 1 // 0)
    assert caught.value.__notes__ == ["kind: c"]
    path = tmp_path / "report.json"
    path.write_text('{"another": {"attempts": 5, "accepted": 5, "refused": {}, "slowest_seconds": 1}}')
    write_report([tally], path)
    told = json.loads(path.read_text())
    assert list(told) == ["another", "kind"]
    assert (told["kind"]["attempts"], told["kind"]["refused"]) == (2, {"CheckpointError": 1})
    page = path.with_suffix(".md").read_text()
    assert "| `kind` | 2 | 1 | CheckpointError 1 |" in page and "| `another` | 5 | 5 | none |" in page
    assert "\n7 attempts: " in page
