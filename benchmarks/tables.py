"""Formats the benchmarks' JSON files as tables, with the goals and whether they were met.

python benchmarks/tables.py docs/benchmarks

It writes results.md, and serving.md for the server, beside the documents; every number comes from a document. If a
document was measured with other weights than the embedded model has now, results.md says so. The reasons of missed
goals are written by hand in misses.json (reason -> goals); a reason for a goal that was met is an error.
"""

import json
from collections.abc import Callable
from pathlib import Path

import click

import measure
import sections
from plots import plural
from sections import Document, middle, share, table
from serving_load.page import page

REASONS = "misses.json"

TABLES: dict[str, tuple[str, Callable[[Document], str]]] = {
    "ladder": ("End to end", sections.ladder),
    "ab": ("This version against the one before", sections.ab),
    "sweep": ("Suffix dropout and threshold", sections.sweep),
    "step_floor": ("A step against its matrix products alone", sections.step_floor),
    "batching": ("What a pass costs, and requests of unequal length together", sections.batching),
    "scheduling": ("Passes, waits and the scheduler's own time", sections.scheduling),
    "mixes": ("Requests together against each alone", sections.mixes),
    "loop_overhead": ("Share of a decode outside the engine", sections.loop_overhead),
    "sampling": ("Drawn tokens, filters and orders beside a step", sections.sampling),
    "precision": ("Precisions: error and accuracy", sections.precision),
    "full_size": ("Full-size checkpoints", sections.full_size),
    "forecast": ("What `dpad plan` predicts, against TensorRT-RTX", sections.forecast),
}


def goals(documents: dict[str, Document]) -> list[tuple[str, str, bool]]:
    """For each measured goal: its text, the measured value, and whether it was met."""
    found: list[tuple[str, str, bool]] = []
    for cell in documents.get("ladder", {}).get("cells", ()):
        at, wanted = f"{cell['length']} tokens, {cell['shots']}-shot", documents["ladder"]["goals"]
        if (cell["length"], cell["shots"]) == (1024, 1):
            total = cell["chain"]["total"]
            found.append(
                (f"{wanted['total']} times vanilla in eager PyTorch ({at})", f"{total:g}", total >= wanted["total"])
            )
            scores = [cell["rungs"][name]["strict_match"] for name in ("vanilla", "parallel + DPad + dual")]
            if None not in scores:
                told = f"everything together as accurate as vanilla ({at})"
                found.append((told, f"{share(scores[1])} and {share(scores[0])}", scores[1] >= scores[0]))
        ratio = cell["engine_at_same_passes"]
        told = f"{wanted['engine']:g} times the best published combination, same passes ({at})"
        found.append((told, middle(ratio), ratio["median"] >= wanted["engine"]))
    for name, task in documents.get("sweep", {}).get("tasks", {}).items():
        whole = next(p for p in task["points"] if p["schedule"] is None and p["threshold"] == 0.9)["score"]
        score, told = task["preset"]["score"], f"{name}: the preset within 1 point of the whole suffix at threshold 0.9"
        found.append((told, f"{share(score)} and {share(whole)}", whole > 0 and score >= whole - 0.01))
    if floor := documents.get("step_floor", {}).get("goal"):
        for threads, ratio in floor["ratio"].items():
            told = f"a step of {floor['rows']} rows at most {floor['at_most']} times its products, {threads} thread(s)"
            found.append((told, f"{ratio:g}", floor["met"][threads]))
    for one in documents.get("loop_overhead", {}).get("results", ()):
        below, median = one["below"], one["overhead"]["median"]
        told = f"loop at most {below:.0%} of a step, {one['way']}, {plural(one['threads'], 'thread')}"
        found.append((told, share(median), median <= below))
    for one in documents.get("scheduling", {}).get("goal", {}).get("judged", ()):
        told = f"passes at most {documents['scheduling']['goal']['at_most']} times a perfect packing"
        found.append((f"{told}, {one['workload']} at load {one['load']}", middle(one["ratio"]), one["met"]))
    for one in documents.get("mixes", {}).get("results", ()):
        told = f"the tokens of each alone in {one['mixes']} random mixes, {one['model']}"
        found.append((told, f"{one['differing_tokens']} of {one['tokens']} differ", not one["differences"]))
    for cell in documents.get("ab", {}).get("cells", ()):
        for name, rung in cell["rungs"].items():
            ratio, most = rung["sample"]["ratio"], documents["ab"]["goal"]["at_most"]
            told = f"no slower than before, {name} ({cell['length']} tokens, {cell['shots']}-shot)"
            found.append((told, middle(ratio), ratio["median"] <= most))
    for name, model in documents.get("full_size", {}).get("models", {}).items():
        wanted, done = documents["full_size"]["goal"], model["stages"]["export"]
        told = f"export of {name} in {wanted['seconds']} s and {wanted['peak_mib']} MiB, without reading the shards"
        found.append((told, f"{done['seconds'] - done['reading']:.3g} s, {done['peak_mib']} MiB", model["met"]))
    return found


def earlier(document: Document) -> str:
    """Its embedded models whose weights have changed since, such as `tiny and tiny-dream`; empty if there are none."""
    measured, names = document.get("weights_sha256", {}), document["model"].split(" and ")
    now = {name: measure.shipped(name) for name in names}
    return " and ".join(name for name in names if now[name] and measured.get(name) != now[name])


def judged(rows: list[tuple[str, str, bool]], reasons: dict[str, list[str]]) -> str:
    """The goals as a table, with reasons for missed ones as notes; a reason for a met goal is a `ClickException`."""
    missed = {told for told, _, met in rows if not met}
    notes = {goal: number for number, goals in enumerate(reasons.values(), 1) for goal in goals}
    if idle := sorted(notes.keys() - missed):
        raise click.ClickException(f"{REASONS} explains a goal that was not missed: {idle[0]}")
    verdicts = [
        [told, have, "yes" if met else f"no ({notes[told]})" if told in notes else "no: not explained yet"]
        for told, have, met in rows
    ]
    found = "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, 1))
    return "\n\n".join([table(["goal", "measured", "met"], verdicts), *([found] if found else [])])


def report(documents: dict[str, Document], reasons: dict[str, list[str]]) -> str:
    """All tables as one Markdown page; see `judged` for `reasons`."""
    old = {name: models for name, document in documents.items() if (models := earlier(document))}
    parts = ["# Results", "Made by `make bench`; [how each number is measured](README.md)."]
    rows = goals(documents)
    told = ["Sections below say which of them were measured with earlier weights."] if old else []
    parts += ["## Goals", *told, judged(rows, reasons)] if rows or reasons else []
    for name, document in documents.items():
        title, make = TABLES[name]
        machine, threads = document["machine"], document.get("threads")
        versions = ", ".join(f"{key} {value}" for key, value in machine["libraries"].items() if value and key != "dpad")
        facts = f"{document['model']}, {machine['cpu']}, {plural(machine['cores'], 'core')}"
        facts += f", {plural(threads, 'thread')}" if threads else ""
        told = [f"Measured with earlier weights of {old[name]}."] if name in old else []
        parts += [f"## {title}", f"{facts}; {versions}.", *told, make(document)]
    return "\n\n".join(parts) + "\n"


@click.command(cls=measure.Benchmark)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(folder: Path) -> None:
    """Write results.md and serving.md from the JSON files in FOLDER."""
    files = {name: folder / f"{name}.json" for name in TABLES}
    documents = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}
    reasons = json.loads((folder / REASONS).read_text("utf-8")) if (folder / REASONS).exists() else {}
    (folder / "results.md").write_text(report(documents, reasons), encoding="utf-8")
    if (served := folder / "serving.json").exists():
        served.with_suffix(".md").write_text(page(json.loads(served.read_text("utf-8"))), encoding="utf-8")
    measure.say(f"{folder / 'results.md'}: {', '.join(documents) or 'no documents found'}")


if __name__ == "__main__":
    main()
