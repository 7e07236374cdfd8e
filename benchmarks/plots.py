"""Draws figures from the benchmarks' JSON files, 800 pixels wide; equal numbers give identical files.

python benchmarks/plots.py docs/benchmarks
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

import measure

Document = dict[str, Any]

# Okabe and Ito's colours, which the colour-blind can distinguish; markers and dashes work without colour.
STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "marker": marker, "linestyle": dashes, "markersize": 5}
    for colour, marker, dashes in (
        ("#0072B2", "o", "-"),
        ("#D55E00", "s", "-"),
        ("#009E73", "^", "--"),
        ("#CC79A7", "D", "-"),
        ("#E69F00", "v", "--"),
    )
)
INCHES, DPI = 8.0, 100


def panels(title: str, document: Document, rows: int, columns: int, height: float) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `height` inches with a grid of panels; the title names model, engine, processor and threads."""
    threads = f", {plural(document['threads'], 'thread')}" if "threads" in document else ""
    facts = f"{document['model']}, {document['dtype']}, {document['engine']}{threads}, {document['machine']['cpu']}"
    figure = Figure(figsize=(INCHES, height), dpi=DPI, layout="constrained")
    figure.suptitle(f"{title}\n{facts}", fontsize=11)
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def plural(count: int, noun: str) -> str:
    """A count with its noun: `1 thread`, `2 threads`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def line(axes: Axes, style: int, name: str, x: Sequence[float], spreads: Sequence[Document]) -> None:
    """Draw medians joined by a line, with the quartiles as error bars."""
    middle = [entry["median"] for entry in spreads]
    down = [entry["median"] - entry["q1"] for entry in spreads]
    up = [entry["q3"] - entry["median"] for entry in spreads]
    axes.errorbar(x, middle, yerr=(down, up), capsize=3, label=name, **STYLES[style])


def ticks(axes: Axes, values: Sequence[int], label: str) -> None:
    """Make the x axis logarithmic with ticks at `values`, and draw a light grid."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)
    axes.grid(True, which="major", color="0.88")
    axes.set_axisbelow(True)


def log_values(axes: Axes, label: str) -> None:
    """Make the y axis logarithmic, with labels as plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(label)


def step_floor(document: Document) -> dict[str, Figure]:
    """Step and floors in milliseconds, and the step over each floor; one column for each number of threads."""
    threads = sorted({found["threads"] for found in document["results"]})
    figure, grid = panels("A step without cache, and its matrix products alone", document, 2, len(threads), 6.4)
    for column, count in enumerate(threads):
        found = [r for r in document["results"] if r["threads"] == count and r["cache"] == "none"]
        rows = [result["rows"] for result in found]
        above, below = grid[0][column], grid[1][column]
        line(above, 0, "step", rows, [result["step_ms"] for result in found])
        for style, floor in enumerate(found[0]["floors"], 1):
            line(above, style, f"floor, {floor}", rows, [result["floors"][floor]["ms"] for result in found])
            line(below, style, f"floor, {floor}", rows, [result["floors"][floor]["ratio"] for result in found])
        below.axhline(document["goal"]["at_most"], color="0.4", linestyle="--", linewidth=1)
        above.set_title(plural(count, "thread"), fontsize=10)
        log_values(above, "milliseconds")
        below.set_ylim(bottom=0)
        below.set_ylabel("step / floor (dashed: goal)")
        for axes in (above, below):
            ticks(axes, rows, "query rows")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return {"step_floor": figure}


def batching(document: Document) -> dict[str, Figure]:
    """Throughput of requests that run together, and their share of padding, for each `pass_rows`."""
    figure, [(speed, waste)] = panels("Requests of unequal length together", document, 1, 2, 3.9)
    one, *others = document["ways"]
    for style, width in enumerate(dict.fromkeys(way["pass_rows"] for way in others)):
        ways = [one, *(way for way in others if way["pass_rows"] == width)]
        sizes = [way["running"] for way in ways]
        line(speed, style, f"pass_rows {width}", sizes, [way["tokens_per_s"] for way in ways])
        waste.plot(sizes, [100 * way["padded_query_rows"] for way in ways], **STYLES[style])
    speed.set_ylabel("tokens a second")
    waste.set_ylabel("% of query rows that pad")
    speed.legend(fontsize=9, frameon=False)
    for axes in (speed, waste):
        axes.set_ylim(bottom=0)
        ticks(axes, [way["running"] for way in document["ways"]], "requests together")
    return {"batching": figure}


def ladder(document: Document) -> dict[str, Figure]:
    """Seconds per sample of every rung on every executor, at the longest length, with one shot if that was measured."""
    cell = max(document["cells"], key=lambda cell: (cell["length"], cell["shots"] == 1))
    document = document | {"engine": f"{cell['length']} tokens, {cell['shots']}-shot", "dtype": "float32"}
    names = list(cell["rungs"])
    executors = [key for key, facts in cell["rungs"][names[0]].items() if isinstance(facts, dict)]
    figure, [(axes,)] = panels("End to end, seconds a sample", document, 1, 1, 1.2 + 0.16 * len(names) * len(executors))
    for style, executor in enumerate(executors):
        ran = [(index, rung[executor]) for index, rung in enumerate(cell["rungs"].values()) if executor in rung]
        places = [index + 0.8 * ((style + 0.5) / len(executors) - 0.5) for index, _ in ran]
        medians = [facts["seconds"]["median"] for _, facts in ran]
        axes.barh(places, medians, height=0.72 / len(executors), label=executor, color=STYLES[style]["color"])
        for place, value in zip(places, medians):
            axes.annotate(
                f"{value:.3g}", (value, place), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center"
            )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds a sample (median)")
    axes.margins(x=0.12)
    axes.legend(fontsize=9, frameon=False)
    return {"ladder": figure}


def sweep(document: Document) -> dict[str, Figure]:
    """Score and speed of every setting, with one panel for each task; a ring marks the preset."""
    figure, [panes] = panels("Suffix dropout and threshold", document, 1, len(document["tasks"]), 4.4)
    for axes, (name, task) in zip(panes, document["tasks"].items()):
        thresholds = sorted({point["threshold"] for point in task["points"]})
        for style, threshold in enumerate(thresholds):
            found = [point for point in task["points"] if point["threshold"] == threshold]
            marks = dict(STYLES[style % len(STYLES)], linestyle="none")
            axes.plot(*_scores(found), label=f"threshold {threshold:g}", alpha=0.8, **marks)
        whole = [point for point in task["points"] if point["schedule"] is None]
        axes.plot(*_scores(whole), "x", color="black", markersize=7, label="whole suffix")
        axes.plot(*_scores([task["preset"]]), "o", markersize=13, mfc="none", mec="black", label="preset")
        axes.set_title(f"{name}, {task['samples']} samples", fontsize=10)
        axes.set_xlabel("seconds for all samples")
        axes.set_ylabel(task["metric"].replace("_", " "))
        axes.grid(True, color="0.88")
        axes.set_axisbelow(True)
    handles, names = panes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    return {"sweep": figure}


def _scores(points: Sequence[Document]) -> tuple[list[float], list[float]]:
    return [point["seconds_total"] for point in points], [point["score"] for point in points]


# Name of a benchmark -> function from its document to figures by file name.
PLOTS: dict[str, Callable[[Document], dict[str, Figure]]] = {
    "ladder": ladder,
    "sweep": sweep,
    "step_floor": step_floor,
    "batching": batching,
}


@click.command(cls=measure.Benchmark)
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
def main(directory: Path) -> None:
    """Draw the figures of every benchmark's JSON file in DIRECTORY, beside that file."""
    for name, draw in PLOTS.items():
        path = directory / f"{name}.json"
        if not path.exists():
            measure.say(f"{path} is not there: no figure")
            continue
        for file, figure in draw(json.loads(path.read_text(encoding="utf-8"))).items():
            figure.savefig(directory / f"{file}.png", metadata={"Software": None})
            click.echo(str(directory / f"{file}.png"))


if __name__ == "__main__":
    main()
