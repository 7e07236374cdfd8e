"""The sections of results.md: formats the document of each benchmark as tables.

sections.ladder(document)
"""

import json
from collections.abc import Iterable
from typing import Any

Document = dict[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def middle(entry: Document | None, unit: str = "") -> str:
    """Median and quartiles, as `1.25 (1.2 to 1.3)`; empty if not measured."""
    if entry is None:
        return ""
    return f"{entry['median']:g}{unit} ({entry['q1']:g} to {entry['q3']:g})"


def share(value: float | None) -> str:
    """A share as percent; empty if not measured."""
    return "" if value is None else f"{100 * value:.3g} %"


def ladder(document: Document) -> str:
    """Seconds of every rung and executor, the total speed-up by cause, and the gain by engines."""
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
    """Every setting of each task, with the recommended one in bold."""
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
    """The time of each step and of its floors."""
    floors = list(document["results"][0]["floors"])
    head = ["threads", "cache", "rows", "cached rows", "step, ms", *(f"over {floor}" for floor in floors)]
    rows = []
    for found in document["results"]:
        ratios = [middle(found["floors"][floor]["ratio"]) for floor in floors]
        facts = [found[key] for key in ("threads", "cache", "rows", "cached_rows")]
        rows.append([*facts, middle(found["step_ms"]), *ratios])
    return table(head, rows)


def batching(document: Document) -> str:
    """The cost of steps, and every way to run requests together."""
    fit = document["fit"]
    told = (
        f"A step takes {fit['fixed_ms']:g} ms, {fit['row_us']:g} us a query row and {fit['slot_us']:g} us an attended "
        f"slot (half of the {len(document['steps'])} shapes within {share(fit['off_median'])}): all but the rows costs "
        f"as much as {fit['pass_rows']} of them."
    )
    head = ["together", "pass_rows", "tokens/s", "seconds a sample", "times one by one", "passes", "a pass", "padding"]
    rows = []
    for way in document["ways"]:
        speeds = [middle(way[key]) for key in ("tokens_per_s", "s_per_sample", "times_one_by_one")]
        counts = [way["passes"], f"{way['sequences_a_pass']:g}", share(way["padded_query_rows"])]
        rows.append([way["running"], way["pass_rows"], *speeds, *counts])
    return f"{told}\n\n{table(head, rows)}\n\nTokens that batching changed: {document['mismatches']}."


def scheduling(document: Document) -> str:
    """Passes compared with a perfect packing, waits, and the host's time."""
    head = ["decodes", "load", "engine", "running at most", "passes", "over perfect", "worst", "modelled s"]
    rows = []
    for one in document["passes"]:
        facts = [one[key] for key in ("workload", "load", "engine", "max_running")]
        rows.append([*facts, *(middle(one[key]) for key in ("passes", "ratio")), f"{one['worst']:g}"])
        rows[-1].append(middle(one["modelled_s"]))
    parts = [table(head, rows), "Longest wait of a short request, between two of its passes and before its first:"]
    waits = []
    for one in document["waits"]:
        told = [f"{one[f'{at}_passes']} ({one[f'{at}_s']:g} s)" for at in ("running", "queued")]
        waits.append([one["long"], one["max_running"], *told, one["bound_passes"]])
    head = ["long requests beside it", "running at most", "between passes", "before the first", "bound between passes"]
    parts.append(table(head, waits))
    rows = [
        [one["sequences"], one["setting"], *(middle(one[key]) for key in ("pass_us", "step_us", "in_a_pass"))]
        for one in document["host"]
    ]
    parts.append("Microseconds of a pass of LLaDA-8B's shapes on the host, around an engine that answers at once:")
    parts.append(table(["sequences", "options", "a pass, us", "of it in `Engine.step`, us", "sequences in it"], rows))
    return "\n\n".join(parts)


def mixes(document: Document) -> str:
    """The number of compared requests, and the differences."""
    keys = ("model", "mixes", "requests", "tokens", "passes_alone", "passes_together", "differing_tokens")
    rows = [[one[key] for key in keys] for one in document["results"]]
    parts = [table([key.replace("_", " ") for key in keys], rows)]
    for one in document["results"]:
        for found in one["differences"]:
            sides = f"alone {found['alone']}, together {found['together']}"
            parts.append(f"- {one['model']}, mix {found['mix']}, pass {found['pass']}: {sides}; {found['options']}")
    return "\n\n".join(parts)


def ab(document: Document) -> str:
    """The ratios, after over before, of every rung in every cell."""
    rows = []
    for cell in document["cells"]:
        for name, rung in cell["rungs"].items():
            times = [middle(rung[what][key]) for what in ("sample", "step") for key in ("before_ms", "ratio")]
            differ = f"{rung['differing_tokens']}, {rung['differing_passes']}"
            rows.append([cell["length"], cell["shots"], name, *times, differ])
    over = "after / before"
    head = ["tokens", "shots", "", "a sample before, ms", over, "a step before, ms", over, "tokens, passes that differ"]
    return table(head, rows)


def loop_overhead(document: Document) -> str:
    """The overhead of every cache mode and way to choose tokens."""
    rows = []
    for found in document["results"]:
        shares = [share(found["overhead"]["median"]), share(found["overhead_worst"])]
        loop = [middle(found[key]) for key in ("step_ms", "outside_us", "loop_us", "outside_alone_us")]
        rows.append([found["threads"], found["way"], *loop, *shares])
    head = ["threads", "cache, or choice", "step, ms", "outside the engine, us", "of it in `timings.loop`, us"]
    return table([*head, "outside, steps replayed, us", "outside, share of a step", "worst decode"], rows)


def sampling(document: Document) -> str:
    """The time of every way to choose tokens, by vocabulary size."""
    found = {(one["setting"], one["family"]): middle(one["decide_ms"]) for one in document["results"]}
    sizes = {one["family"]: f"{one['family']}, {one['vocabulary']} tokens" for one in document["results"]}
    rows = [[name, *(found[name, family] for family in sizes)] for name in dict.fromkeys(name for name, _ in found)]
    return table([f"ms for {document['rows']} rows", *sizes.values()], rows)


def off_by(logits: Document) -> list[str]:
    """Errors of logits relative to float32: relative, mean and largest; and the share of equal tokens."""
    sizes = [f"{logits[name]:g}" for name in ("mean_abs", "max_abs")]
    return [share(logits["relative"]), *sizes, share(logits["same_token"])]


def precision(document: Document) -> str:
    """Every precision of each model, then the measurements behind the choices for packed weights."""
    parts = []
    for model in document["models"]:
        rows = []
        for row in model["precisions"]:
            error = row["standard_error"]  # None for a single problem
            right = share(row["strict_match"]) + ("" if error is None else f" ± {100 * error:.1f}")
            size = f"{row['weights_bytes'] / 1e6:.2f}"
            rows.append([row["step"], row["engine"], size, *off_by(row["logits"]), right, row["nfe"]])
        off = ["logits off by", "mean error", "largest error", "same token"]
        head = ["step", "engine", "weights, MB", *off, "strict match", "passes"]
        parts.append(f"### {model['model']}: {document['limit']} problems\n\n{table(head, rows)}")
        rows = []
        for choice in model["choices"]:
            rows.append([choice["weights"], choice["part"], choice["scale"], *off_by(choice["logits"])])
        parts.append(table(["weights", "packed", "a scale for", *off], rows))
    return "\n\n".join(parts)


def full_size(document: Document) -> str:
    """The stages of every model."""
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
    """Measured and predicted memory of every build."""
    rows = []
    for found in document["results"]:
        pairs = [
            (f"{found[f'{name}_mib']}", f"{found[f'{name}_ratio']:g}") for name in ("activations", "plan", "build")
        ]
        point = [found[key] for key in ("model", "weights", "layers", "batch", "length")]
        rows.append([*point, *(cell for pair in pairs for cell in pair)])
    measured = ("activations, MiB", "plan, MiB", "memory of the build, MiB")
    pairs = [cell for name in measured for cell in (name, "predicted / measured")]
    return table(["model", "weights", "layers", "batch", "canvas", *pairs], rows)
