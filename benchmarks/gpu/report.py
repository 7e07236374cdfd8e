"""The results of `make gpu-check` as a page for people."""

from typing import Any

from gpu.goals import goals
from gpu.parts import GROUPS
from gpu.tables import lines, precisions, table


def markdown(merged: dict[str, Any]) -> str:
    """The page of a merged document; parts that did not run have the reason."""
    page = [
        f"# {merged['device']}",
        "",
        *_head(merged),
        "",
        "## Goals",
        "",
        "Of an H100, and of nothing else; a goal that is missed fails no check.",
        "",
        *table(["goal", "", "found"], [[goal.text, goal.verdict, goal.found] for goal in goals(merged)]),
    ]
    page += ["", "## Precisions side by side", "", *precisions(merged)]
    for name, group in GROUPS.items():
        page += ["", f"## {group.title}", "", _origin(merged, name)]
        found = merged["groups"].get(name, {"parts": {}})["parts"]
        for part in group.parts:
            if part.name in found:
                page += ["", f"### {part.title}", "", *_section(part.name, found[part.name])]
    return "\n".join(page) + "\n"


def _head(merged: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version or 'absent'}" for name, version in merged["versions"].items())
    verdict = "Everything that ran is right." if merged["passed"] else "**FAILED:**"
    return [
        f"Made by `make gpu-check` at commit {merged['commit']} (code {merged['code']}). Driver {merged['driver']}, "
        f"compute capability {merged['compute_capability']}, Python {merged['python']}, {versions}.",
        "",
        verdict,
        *(f"- {failure}" for failure in merged["failures"]),
    ]


def _origin(merged: dict[str, Any], group: str) -> str:
    if told := merged["not_merged"].get(group):
        return f"Not put together with this: it was measured {told}."
    if kept := merged["groups"].get(group):
        return f"`make gpu-check GROUP={group}`, {kept['measured']}, {kept['seconds']:.0f} s."
    return f"Not measured: `make gpu-check GROUP={group}`."


def _section(name: str, part: dict[str, Any]) -> list[str]:
    failures = [f"- **FAILED**: {failure}" for failure in part.get("failures", ())]
    if "skipped" in part:
        return [f"Skipped: {part['skipped']}.", *failures]
    if "error" in part:
        return [f"**FAILED**: {part['error']}"]
    return [*failures, *([""] if failures else []), *lines(name, part)]
