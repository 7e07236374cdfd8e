"""`page`: the document of the server's acceptance as tables to read.

page(json.loads(Path("docs/benchmarks/serving.json").read_text()))
"""

from collections.abc import Iterator
from typing import Any

import measure
from sections import Document, table

_VERDICTS = {True: "yes", False: "no", None: ""}
_TOLD = ("goal", "met", "seconds")
_CHIEF = {  # the figures of a scenario that its goal is about
    "overhead": (
        "null, added ms, whole, p50",
        "null, added ms, whole, p99",
        "most requests per s",
        "null, resident mib, server",
    ),
    "throughput": ("null, times one, 2", "null, times one, 4", "null, times one, 8"),
    "deadline": ("late ms, p99", "pass ms"),
    "overload": ("refused ms, p99", "goodput", "health ms, p99"),
    "disconnects": ("disconnects", "back ms, p99"),
    "slow": ("times",),
    "drain": ("whole", "exit status"),
    "engine_killed": ("kills", "error ms, p99", "error ms, most", "ready again ms, most", "hung"),
    "counts": ("admitted", "equal"),
    "same_tokens": ("prompts", "same"),
    "oversize": ("requests", "statuses", "growth bytes"),
    "bad_input": ("cases", "wrong", "growth bytes"),
    "privacy": ("errors",),
    "conformance": ("cases", "passed"),
    "schema": ("cases", "failures"),
    "ray": ("in flight", "at the killed one", "lost"),
    "soak": ("minutes", "requests", "mib an hour"),
}


def page(document: Document) -> str:
    """Goals and whether they were met, then all figures of each scenario; a list is told by its first and last."""
    machine, found = document["machine"], document["scenarios"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["libraries"].items() if value)
    where = f"{document['model']}, commit {document['commit']}, {machine['cpu']}, {machine['cores']} cores; {versions}."
    note = "Made by `make bench BENCH=serving`; [what each scenario does](README.md#the-server)."
    short = ["**Short form: these figures say nothing of a server's speed.**"] if document["short"] else []
    figures = {name: dict(_rows({key: each[key] for key in each if key not in _TOLD})) for name, each in found.items()}
    goals = [
        [f"[{name}](#{name})", each["goal"], _chief(name, figures[name]), _VERDICTS[each["met"]]]
        for name, each in found.items()
    ]
    parts = ["# `dpad serve`", note, where, *short, table(["scenario", "goal", "measured", "met"], goals)]
    for name, rows in figures.items():
        parts += [f"## {name}", table(["figure", ""], rows.items())]
    return "\n\n".join(parts) + "\n"


def _chief(name: str, figures: dict[str, str]) -> str:
    """The figures that a goal is about, in a line."""
    return "; ".join(f"{each}: {figures[each]}" for each in _CHIEF[name] if each in figures)


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
