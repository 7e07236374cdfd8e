"""The goals on a GPU, and whether the measurements meet them: met, missed, or not measured.

    for goal in goals(merged):
        goal.text, goal.verdict, goal.found

The goals are for an H100, batch 1 and LLaDA-8B's shape; on other devices the numbers are shown too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Parts = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A goal, whether it is met (None: not measured), and the measured value."""

    text: str
    met: bool | None
    found: str

    @property
    def verdict(self) -> str:
        """`met`, `missed` or `not measured`, for the page."""
        return "not measured" if self.met is None else "met" if self.met else "missed"


def goals(merged: dict[str, Any]) -> list[Goal]:
    """All goals, judged by the parts of a merged document."""
    parts = {name: part for group in merged["groups"].values() for name, part in group["parts"].items()}
    return [_goal(text, check, parts) for text, check in _GOALS.items()]


def _goal(text: str, check: Callable[[Parts], tuple[bool, str]], parts: Parts) -> Goal:
    try:
        met, found = check(parts)
    except (KeyError, ValueError):  # the part, or the goal's value in it, was not measured
        return Goal(text, None, "")
    return Goal(text, met, found)


def _over_sdpa(parts: Parts) -> tuple[bool, str]:
    ratios = [row["over_sdpa"] for row in parts["speed"]["rows"]]
    return min(ratios) >= 1, f"{sum(ratio >= 1 for ratio in ratios)} of {len(ratios)} shapes; least {min(ratios):.2f}"


def _over_gather(parts: Parts) -> tuple[bool, str]:
    ratios = [row["over_gather_sdpa"] for row in parts["speed"]["rows"]]
    return min(ratios) >= 1.6, f"{sum(r >= 1.6 for r in ratios)} of {len(ratios)} shapes; least {min(ratios):.2f}"


def _step(parts: Parts) -> tuple[bool, str]:
    rows = {mode: parts["step"]["modes"][mode] for mode in ("prefix", "dual")}
    told = ", ".join(f"{mode} {row['over_products']:.2f} ({row['step_ms']:.2f} ms)" for mode, row in rows.items())
    return all(row["over_products"] <= 1.15 for row in rows.values()), told


def _fp8(parts: Parts) -> tuple[bool, str]:
    rows = {mode: parts["fp8"]["modes"][mode] for mode in ("prefix", "dual")}
    told = ", ".join(f"{mode} {row['over_products']:.2f} ({row['step_ms']:.2f} ms)" for mode, row in rows.items())
    return all(row["over_products"] <= 1.3 for row in rows.values()), told


def _passes(parts: Parts) -> tuple[bool, str]:
    engine, decoders = parts["step"]["engine"], parts["end_to_end"]["decoders"]
    found = {cache: decoders[f"{engine} {cache}"]["ms_per_pass"] for cache in ("prefix", "dual")}
    told = ", ".join(f"{cache} {value:.2f} ms" for cache, value in found.items())
    return max(found.values()) <= 8, told


def _published(parts: Parts) -> tuple[bool, str]:
    engine, decoders = parts["step"]["engine"], parts["end_to_end"]["decoders"]
    found = {cache: decoders[f"{engine} {cache}"]["times_published"] for cache in ("prefix", "dual")}
    return min(found.values()) >= 4, ", ".join(f"{cache} {value:.2f} times" for cache, value in found.items())


def _eight(parts: Parts) -> tuple[bool, str]:
    times = parts["concurrent"]["requests"]["8"]["times_one"]
    return times >= 6, f"{times:.2f} times"


def _warm(parts: Parts) -> tuple[bool, str]:
    return parts["warm"]["total_s"] <= 30, f"{parts['warm']['total_s']:.1f} s"


def _cold(parts: Parts) -> tuple[bool, str]:
    return parts["cold"]["total_s"] <= 90, f"{parts['cold']['total_s']:.1f} s"


_GOALS: dict[str, Callable[[Parts], tuple[bool, str]]] = {
    "kernel at least as fast as SDPA on keys gathered before, at every shape": _over_sdpa,
    "kernel 1.6 times as fast as gather + SDPA, at every shape": _over_gather,
    "cached step at most 1.15 times its merged products alone": _step,
    "the same in fp8, at most 1.3 times fp8 products": _fp8,
    "end to end at most 8 ms a pass, prefix and dual": _passes,
    "end to end at least 4 times the published loop at the same passes": _published,
    "8 concurrent requests: at least 6 times the tokens a second of one": _eight,
    "dpad.load to the first token, cached: at most 30 s": _warm,
    "dpad.load to the first token, nothing cached: at most 90 s": _cold,
}
