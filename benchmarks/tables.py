"""The benchmarks' JSON files as tables to read, with the goals and whether they were met.

python benchmarks/tables.py docs/benchmarks

Writes results.md beside the documents; every number in it is one of theirs, and where the weights measured
are not those that an embedded model ships with now, it says so. Why goals were missed is written by hand, in
misses.json: reason -> goals, which are refused if they were met.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

import measure
from plots import plural

Document = dict[str, Any]
REASONS = "misses.json"


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def middle(entry: Document | None, unit: str = "") -> str:
    """`1.25 (1.2 to 1.3)`: median and quartiles; nothing where it was not measured."""
    if entry is None:
        return ""
    return f"{entry['median']:g}{unit} ({entry['q1']:g} to {entry['q3']:g})"


def share(value: float | None) -> str:
    """Percent; nothing where it was not measured."""
    return "" if value is None else f"{100 * value:.3g} %"


def ladder(document: Document) -> str:
    """Seconds of every rung and executor, what the total is made of, and what engines add."""
    parts = []
    for cell in document["cells"]:
        executors = [name for name, facts in cell["rungs"]["vanilla"].items() if isinstance(facts, dict)]
        rows = []
        for name, rung in cell["rungs"].items():
            facts = rung.get("onnxruntime", {})
            counts = [f"{facts[key]['median']:g}" for key in ("nfe", "tokens", "tokens_per_s", "ms_per_step")]
            seconds = [middle(rung[executor]["seconds"]) if executor in rung else "" for executor in executors]
            rows.append([name, *seconds, *counts, share(rung["strict_match"])])
        head = [*(f"{name}, s" for name in executors), "passes", "tokens", "tokens/s", "ms a pass", "strict match"]
        parts.append(f"### {cell['length']} tokens, {cell['shots']}-shot\n\n{table(['', *head], rows)}")
        links = [[told, f"{ratio:g}"] for told, ratio in cell["chain"].items()]
        links.append(["engine alone, best published combination, same passes", middle(cell["engine_at_same_passes"])])
        links.append(["cache extend over dual, both in ONNX Runtime", middle(cell["extend_over_dual"])])
        if "w8a8" in cell:
            links.append(["w8a8 over published, a pass", middle(cell["w8a8"]["engine_a_pass"])])
            links.append(["strict match of everything in w8a8", share(cell["w8a8"]["strict_match"])])
        parts.append(table(["times faster, by cause", ""], links))
    note = (
        "Seconds a sample, median and quartiles; passes, tokens and milliseconds are those of ONNX Runtime in float32."
    )
    return "\n\n".join([note, *parts])


def sweep(document: Document) -> str:
    """Every setting of each task; the recommended one in bold."""
    parts = []
    for name, task in document["tasks"].items():
        rows = []
        for point in sorted(task["points"], key=lambda point: point["seconds"]["median"]):
            mark = "**" if point == task["preset"] else ""
            told = "whole suffix" if point["schedule"] is None else json.dumps(point["schedule"]).replace('"', "")
            cells = [told, f"{point['threshold']:g}", share(point["score"]), middle(point["seconds"])]
            rows.append([f"{mark}{cell}{mark}" for cell in [*cells, f"{point['nfe']['median']:g}"]])
        told = f"### {name}: {task['samples']} samples, canvases of {task['gen_length']} tokens"
        parts.append(f"{told}\n\n{table(['suffix', 'threshold', task['metric'], 'seconds', 'passes'], rows)}")
    return "\n\n".join(parts)


def step_floor(document: Document) -> str:
    """Each step and its floors."""
    floors = list(document["results"][0]["floors"])
    head = ["threads", "cache", "rows", "cached rows", "step, ms", *(f"over {floor}" for floor in floors)]
    rows = []
    for found in document["results"]:
        ratios = [middle(found["floors"][floor]["ratio"]) for floor in floors]
        facts = [found[key] for key in ("threads", "cache", "rows", "cached_rows")]
        rows.append([*facts, middle(found["step_ms"]), *ratios])
    return table(head, rows)


def growth(document: Document) -> str:
    """Time and memory of every point, and what was skipped."""
    head = ["canvas", "batch", "method", "query rows", "step, ms", "refresh, ms", "vanilla over this", "memory, MiB"]
    rows = []
    for point in document["points"]:
        facts = [point[key] for key in ("length", "batch", "method", "query_rows")]
        times = [middle(point[key]) for key in ("step_ms", "refresh_ms", "vanilla_over_this")]
        rows.append([*facts, *times, f"{point['memory_mib']:g}"])
    left = [f"- {p['method']}, canvas {p['length']}, batch {p['batch']}: {p['reason']}" for p in document["skipped"]]
    return "\n\n".join([table(head, rows), *(["Skipped:\n\n" + "\n".join(left)] if left else [])])


def batching(document: Document) -> str:
    """Every batch size."""
    head = ["batch", "tokens/s", "seconds a sample", "times one by one", "rows that pad", "canvases that wait"]
    rows = []
    for batch in document["batches"]:
        speeds = [middle(batch[key]) for key in ("tokens_per_s", "s_per_sample", "times_one_by_one")]
        rows.append([batch["size"], *speeds, share(batch["padded_query_rows"]), share(batch["waiting_canvases"])])
    return f"{table(head, rows)}\n\nTokens that a batch changed: {document['mismatches']}."


def loop_overhead(document: Document) -> str:
    """Every cache mode."""
    rows = []
    for found in document["results"]:
        shares = [share(found["overhead"]["median"]), share(found["overhead_worst"])]
        loop = [middle(found[key]) for key in ("loop_us", "loop_alone_us")]
        rows.append([found["threads"], found["cache"], middle(found["step_ms"]), *loop, *shares])
    head = ["threads", "cache", "step, ms", "loop, us", "loop alone, us", "outside the engine", "worst decode"]
    return table(head, rows)


def sampling(document: Document) -> str:
    """Every decoder beside the vocabularies."""
    found = {(one["setting"], one["family"]): middle(one["choose_ms"]) for one in document["results"]}
    sizes = {one["family"]: f"{one['family']}, {one['vocabulary']} tokens" for one in document["results"]}
    rows = [[name, *(found[name, family] for family in sizes)] for name in dict.fromkeys(name for name, _ in found)]
    return table([f"ms for {document['rows']} rows", *sizes.values()], rows)


def off_by(logits: Document) -> list[str]:
    """How far logits are from those of float32: as a share, in the mean, at most; and tokens that stay the same."""
    sizes = [f"{logits[name]:g}" for name in ("mean_abs", "max_abs")]
    return [share(logits["relative"]), *sizes, share(logits["same_token"])]


def precision(document: Document) -> str:
    """Every precision of each model, then the choices behind the packed ones."""
    parts = []
    for model in document["models"]:
        rows = []
        for row in model["precisions"]:
            error = row["standard_error"]  # none of a single problem
            right = share(row["strict_match"]) + ("" if error is None else f" ± {100 * error:.1f}")
            size = f"{row['weights_bytes'] / 1e6:.2f}"
            rows.append([row["step"], row["engine"], size, *off_by(row["logits"]), right, row["nfe"]])
        off = ["logits off by", "mean", "largest", "same token"]
        head = ["step", "engine", "weights, MB", *off, "strict match", "passes"]
        parts.append(f"### {model['model']}: {document['limit']} problems\n\n{table(head, rows)}")
        rows = []
        for choice in model["choices"]:
            rows.append([choice["weights"], choice["part"], choice["scale"], *off_by(choice["logits"])])
        parts.append(table(["weights", "packed", "a scale for", *off], rows))
    return "\n\n".join(parts)


def full_size(document: Document) -> str:
    """Every model's stages."""
    parts = []
    for name, model in document["models"].items():
        rows = []
        for stage, facts in model["stages"].items():
            seconds = [f"{facts['seconds']:g}", f"{facts['seconds'] - facts['reading']:.3g}"]
            rows.append([stage, *seconds, facts["peak_mib"], facts["own_mib"]])
        head = ["stage", "seconds", "without reading the shards", "peak memory, MiB", "not mapped from files, MiB"]
        synth = model["stages"]["synth"]
        told = f"{synth['layers']} layers, {synth['weights'] / 1e9:.2f} billion weights, {synth['bytes'] / 1e9:.1f} GB"
        parts.append(f"### {name}: {told}\n\n{table(head, rows)}")
        if built := model["stages"].get("plan_int4"):
            tasks = {name.split()[0]: seconds for name, seconds in built["tasks"].items()}
            parts.append(
                f"The plan ({built['library']}) has {built['plan_bytes'] / 1e9:.2f} GB, of "
                f"{built['weights_bytes'] / 1e9:.2f} GB of weights; packing took {tasks['pack']:g} s, building "
                f"{tasks['build']:g} s. It was measured beside other work, and was not run."
            )
    return "\n\n".join(parts)


def forecast(document: Document) -> str:
    """Every build."""
    rows = []
    for found in document["results"]:
        pairs = [
            (f"{found[f'{name}_mib']}", f"{found[f'{name}_ratio']:g}") for name in ("activations", "plan", "build")
        ]
        point = [found[key] for key in ("model", "weights", "layers", "batch", "length")]
        rows.append([*point, *(cell for pair in pairs for cell in pair)])
    measured = ("activations, MiB", "plan, MiB", "memory of the build, MiB")
    pairs = [cell for name in measured for cell in (name, "predicted over it")]
    return table(["model", "weights", "layers", "batch", "canvas", *pairs], rows)


TABLES: dict[str, tuple[str, Callable[[Document], str]]] = {
    "ladder": ("End to end", ladder),
    "sweep": ("Suffix dropout and threshold", sweep),
    "step_floor": ("A step against its matrix products alone", step_floor),
    "growth": ("Longer canvases, larger batches", growth),
    "batching": ("Requests of unequal length in batches", batching),
    "loop_overhead": ("Share of a decode outside the engine", loop_overhead),
    "sampling": ("The choice of tokens beside a step", sampling),
    "precision": ("Precisions: error and accuracy", precision),
    "full_size": ("Full-size checkpoints", full_size),
    "forecast": ("What `dpad plan` predicts, against TensorRT-RTX", forecast),
}


def goals(documents: dict[str, Document]) -> list[tuple[str, str, bool]]:
    """Each goal of what was measured: what it asks, what was found, whether it was met."""
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
        below, median = documents["loop_overhead"]["goal"]["below"], one["overhead"]["median"]
        told = f"loop at most {below:.0%} of a step, {one['cache']}, {plural(one['threads'], 'thread')}"
        found.append((told, share(median), median < below))
    for name, model in documents.get("full_size", {}).get("models", {}).items():
        wanted, done = documents["full_size"]["goal"], model["stages"]["export"]
        told = f"export of {name} in {wanted['seconds']} s and {wanted['peak_mib']} MiB, without reading the shards"
        found.append((told, f"{done['seconds'] - done['reading']:.3g} s, {done['peak_mib']} MiB", model["met"]))
    return found


def earlier(document: Document) -> str:
    """`tiny and tiny-dream`: those of its embedded models whose weights are others now; nothing if there are none."""
    measured, names = document.get("weights_sha256", {}), document["model"].split(" and ")
    now = {name: measure.shipped(name) for name in names}
    return " and ".join(name for name in names if now[name] and measured.get(name) != now[name])


def judged(rows: list[tuple[str, str, bool]], reasons: dict[str, list[str]]) -> str:
    """The goals as a table, reasons of those missed as notes; a reason of a goal that was met is a `ClickException`."""
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
    """All tables as one Markdown page; for `reasons` see `judged`."""
    old = {name: models for name, document in documents.items() if (models := earlier(document))}
    parts = ["# Results", "Made by `make bench`; how each number is measured: [README.md](README.md)."]
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
    """Write results.md from the JSON files in FOLDER."""
    files = {name: folder / f"{name}.json" for name in TABLES}
    documents = {name: json.loads(file.read_text("utf-8")) for name, file in files.items() if file.exists()}
    reasons = json.loads((folder / REASONS).read_text("utf-8")) if (folder / REASONS).exists() else {}
    (folder / "results.md").write_text(report(documents, reasons), encoding="utf-8")
    measure.say(f"{folder / 'results.md'}: {', '.join(documents) or 'no documents found'}")


if __name__ == "__main__":
    main()
