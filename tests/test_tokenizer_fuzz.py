"""No tokenizer.json that passes the checks of `load` crashes the process that uses it."""

from pathlib import Path

from fuzzing import Tally, fuzz
from tokenizer_mutants import fates

from dpad.runtime import errors


@fuzz(short=400, long=60_000)
def test_mutated_tokenizers(mutants: int, tally: Tally, tmp_path: Path) -> None:
    """Fails if a mutant aborts the library, hangs, exhausts memory or raises another error than this package's."""

    def judge(fate: str) -> None:
        kind, _, words = fate.partition(" ")
        assert kind == "used" or issubclass(getattr(errors, kind, type(None)), errors.DpadError), fate
        if kind != "used":
            raise getattr(errors, kind)(words)

    results = fates(range(mutants), tmp_path)
    for number in range(mutants):
        tally.attempt(f"mutant {number}", lambda: judge(next(results)[1]))
    assert tally.accepted > mutants / 10 and tally.refused
