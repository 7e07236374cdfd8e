"""`page`: the document of the server's acceptance as tables to read.

page(json.loads(Path("docs/benchmarks/serving.json").read_text()))
"""

from collections.abc import Iterator
from typing import Any

import measure
from sections import Document, table

_VERDICTS = {True: "yes", False: "no", None: ""}
_TOLD = ("goal", "met", "seconds")


def page(document: Document) -> str:
    """Goals and whether they were met, then all figures of each scenario; a list is told by its first and last."""
    machine, found = document["machine"], document["scenarios"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["libraries"].items() if value)
    where = f"{document['model']}, commit {document['commit']}, {machine['cpu']}, {machine['cores']} cores; {versions}."
    note = "Made by `make bench BENCH=serving`; what each scenario does: [README.md](README.md)."
    short = ["**Short form: these figures say nothing of a server's speed.**"] if document["short"] else []
    goals = [[name, each["goal"], _VERDICTS[each["met"]]] for name, each in found.items()]
    parts = ["# `dpad serve`", note, where, *short, table(["scenario", "goal", "met"], goals)]
    for name, each in found.items():
        figures = {key: value for key, value in each.items() if key not in _TOLD}
        parts += [f"## {name}", table(["figure", ""], _rows(figures))]
    return "\n\n".join(parts) + "\n"


def _rows(figures: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Nested figures, their names joined."""
    for name, value in figures.items():
        told = f"{before}{name.replace('_', ' ')}"
        if isinstance(value, dict) and value:
            yield from _rows(value, f"{told}, ")
        elif isinstance(value, list) and len(value) > 4:
            yield told, f"{value[0]} ... {value[-1]}"
        else:
            listed = ", ".join(map(str, value)) if isinstance(value, list | dict) else value
            yield told, str(measure.digits(listed) if isinstance(listed, float) else listed)
