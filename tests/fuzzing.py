"""What the fuzz tests share: sizes, a tally of what came out, and a report.

    @fuzz(short=300, long=20_000)
    def test_mutated_manifests(mutants: int, tally: Tally, tmp_path: Path) -> None:
        for number in range(mutants):
            rng = random.Random(number)               # so that a mutant can be made again by its number
            bundle = tally.attempt(f"mutant {number}", lambda: Bundle.open(mutate(tmp_path, rng)))

`make test` runs the short form, `make fuzz` the long one and writes docs/fuzzing.json: what was tried, what was
accepted, what was refused with which error. Anything but a result or an error of this package fails the test, and
so does what hangs: after `HANG` seconds the process ends with the stacks of all threads.
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
_LIBRARIES = ("onnxruntime", "tokenizers", "jinja2", "safetensors")  # that read what is drawn
HANG = 120.0  # seconds


def fuzz(short: int, long: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a test the argument `mutants`: `short` in `make test`, `long` in `make fuzz`."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        sizes = [pytest.param(short, id="short"), pytest.param(long, id="long", marks=pytest.mark.fuzz)]
        return pytest.mark.parametrize("mutants", sizes)(test)

    return decorate


class Tally:
    """Counts what came out of the attempts of one test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.slowest = 0.0

    def attempt(self, label: str, action: Callable[[], T]) -> T | None:
        """What `action` returns; None where it raised a `DpadError`, whose message must not be empty.

        Any other error goes on, with `label` in its notes.
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
        """The counts as JSON takes them."""
        return {
            "attempts": self.accepted + self.refused.total(),
            "accepted": self.accepted,
            "refused": dict(self.refused.most_common()),
            "slowest_seconds": round(self.slowest, 3),
        }


def write_report(tallies: list[Tally], path: Path) -> None:
    """Put the counts of `tallies` into the JSON at `path`, beside those of tests that did not run now, and a table of
    all of them into the Markdown file beside it.
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
