"""Common parts of the fuzz tests: sizes, a tally of outcomes, and a report.

    @fuzz(short=300, long=20_000)
    def test_mutated_manifests(mutants: int, tally: Tally, tmp_path: Path) -> None:
        for number in range(mutants):
            rng = random.Random(number)               # a mutant can be reproduced by its number
            bundle = tally.attempt(f"mutant {number}", lambda: Bundle.open(mutate(tmp_path, rng)))

`make test` runs the short form. `make fuzz` runs the long one and writes docs/fuzzing.json: the numbers of attempts, of
accepted ones, and of refused ones by error. A test fails on any outcome that is not a result or an error of this
package. It also fails on a hang: after `HANG` seconds the process ends with the stacks of all threads.
"""

import faulthandler
import json
import platform
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dpad.runtime.engines.machine import library_version
from dpad.runtime.errors import DpadError

T = TypeVar("T")
_LIBRARIES = ("onnxruntime", "tokenizers", "jinja2", "safetensors")  # libraries that read the random inputs
HANG = 120.0  # seconds


def fuzz(short: int, long: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a test the argument `mutants`: `short` in `make test`, `long` in `make fuzz`."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        sizes = [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.fuzz)]
        return pytest.mark.parametrize("mutants", sizes)(test)

    return decorate


class Tally:
    """Counts the outcomes of the attempts of one test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.slowest = 0.0

    def attempt(self, label: str, action: Callable[[], T]) -> T | None:
        """The result of `action`, or None if it raised a `DpadError`, whose message must not be empty.

        Other errors propagate with `label` in their notes.
        """
        faulthandler.dump_traceback_later(HANG, exit=True)
        began = time.perf_counter()
        try:
            result = action()
        except DpadError as error:
            assert str(error), label
            self.refused[type(error).__name__] += 1
            return None
        except BaseException as error:
            error.add_note(f"{self.name}: {label}")
            raise
        finally:
            faulthandler.cancel_dump_traceback_later()
            self.slowest = max(self.slowest, time.perf_counter() - began)
        self.accepted += 1
        return result

    def report(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {
            "attempts": self.accepted + self.refused.total(),
            "accepted": self.accepted,
            "refused": dict(self.refused.most_common()),
            "slowest_seconds": round(self.slowest, 3),
        }


def write_report(tallies: list[Tally], path: Path) -> None:
    """Write the counts of `tallies` to the JSON file `path`, and a table of all counts to the Markdown file beside it.

    Counts of tests that did not run now are kept.
    """
    before = json.loads(path.read_text()) if path.exists() else {}
    after = dict(sorted((before | {tally.name: tally.report() for tally in tallies}).items()))
    path.write_text(json.dumps(after, indent=1) + "\n")
    path.with_suffix(".md").write_text(_table(after))


def _table(counts: dict[str, Any]) -> str:
    """The counts as a page of Markdown."""
    rows = [
        f"| `{name}` | {count['attempts']:,} | {count['accepted']:,} | "
        f"{', '.join(f'{kind} {number:,}' for kind, number in count['refused'].items()) or 'none'} |"
        for name, count in counts.items()
    ]
    versions = ", ".join(f"{name} {library_version(name)}" for name in _LIBRARIES)
    total = sum(count["attempts"] for count in counts.values())
    return "\n".join(
        [
            "# Fuzzing",
            "",
            "`make fuzz` writes this page and fuzzing.json. Each test draws inputs by number, always the same ones.",
            "An attempt ends with a result or an error of this package. Anything else, such as an abort or a hang of",
            "two minutes, fails the test, and then nothing is written. `make test` runs a short form of each.",
            "",
            f"{total:,} attempts: none raised another error, hung or aborted.",
            f"Python {platform.python_version()}, {versions}.",
            "",
            "| test | attempts | accepted | refused with |",
            "| --- | ---: | ---: | --- |",
            *rows,
            "",
        ]
    )
