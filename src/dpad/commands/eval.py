"""`dpad eval DIR --task NAME`."""

import json
import math
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from dpad.commands.decoding import chosen, decoding_options
from dpad.commands.opening import opened
from dpad.commands.terminal import TerminalProgress
from dpad.evaluation import tasks
from dpad.evaluation.errors import DataError
from dpad.evaluation.humaneval import humaneval
from dpad.evaluation.journal import Journal, Record
from dpad.evaluation.likelihood import MOST_DRAWS
from dpad.evaluation.perplexity import perplexities, score_texts
from dpad.evaluation.report import check_replaceable, mean_scores, report, save
from dpad.evaluation.run import Work, evaluate, generate_answers, settings_of
from dpad.evaluation.sandbox.sandbox import Limits, Sandbox
from dpad.evaluation.tasks import Task
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.decoding.presets import DEFAULT
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import escaped

TASKS = ("problems", "long", "gsm8k", "humaneval", "perplexity")
_FILE = click.Path(path_type=Path, dir_okay=False)


def _finite(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """Refuse NaN and infinity, which click's ranges accept."""
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


@click.command("eval")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--task",
    "name",
    required=True,
    help=f"The task: {', '.join(TASKS)}. Without --preset, the bundle's preset of that name is used, if it has one.",
)
@click.option("--data", type=_FILE, help="JSON lines, plain or gzipped: for gsm8k, humaneval, and perplexity of texts.")
@click.option("--limit", type=click.IntRange(1), help=f"Samples. Default: all of --data, or {tasks.LIMIT}.")
@click.option("--shots", default=0, show_default=True, type=click.IntRange(0), help="Worked examples before a problem.")
@click.option("--fewshot-data", type=_FILE, help="File with the worked examples of gsm8k.")
@click.option(
    "--data-seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of problems and examples."
)
@click.option(
    "--mc-samples",
    default=32,
    show_default=True,
    type=click.IntRange(1, MOST_DRAWS),
    help="Monte-Carlo draws per text, for perplexity.",
)
@click.option(
    "--time-limit",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1),
    callback=_finite,
    help="Most seconds of a humaneval program.",
)
@click.option("--weak-sandbox", is_flag=True, help="Run humaneval programs even if the kernel refuses some isolation.")
@click.option(
    "--batch-size", default=1, show_default=True, type=click.IntRange(1), help="Samples given to the model at a time."
)
@click.option("--out", type=_FILE, help="File for the results; samples are kept beside it, and a rerun continues them.")
@decoding_options
@click.option("--raw", is_flag=True, help="Do not wrap prompts in the chat template.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def command(
    directory: Path,
    engine: str,
    threads: int,
    name: str,
    mc_samples: int,
    batch_size: int,
    out: Path | None,
    raw: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Measure the bundle DIR on a task. A stopped run continues when it is started again with the same --out."""
    asked = {key: arguments.pop(key) for key in ("data", "limit", "shots", "fewshot_data", "data_seed")}
    limits = {key: arguments.pop(key) for key in ("time_limit", "weak_sandbox")}
    kept = out and _samples_beside(out, directory, [path for path in (asked["data"], asked["fewshot_data"]) if path])
    task, settings = _task(name, raw, **asked, **limits)
    with opened(directory, engine=engine, threads=threads) as model:
        if arguments["preset"] is None:
            arguments["preset"] = next((preset for preset in (name, DEFAULT) if preset in model.presets), None)
        options = model.options(**chosen(model, arguments))
        options.check(model.engine.contract)
        if name == "perplexity":
            settings["mc_samples"] = mc_samples
            work = score_texts(model, task, options, mc_samples, raw)
        else:
            work = generate_answers(model, task, options, raw)
        bundle = Bundle.open(directory, hashes=False)
        settings = settings_of(bundle, task, options, model.engine.name, raw=raw, **settings)
        records = _records(task, work, settings, kept, batch_size)
    metrics = perplexities(records) if name == "perplexity" else mean_scores(records)
    document = report({**settings, "preset": arguments["preset"]}, records, metrics)
    if out is not None:
        save(document, out)
    if as_json:
        click.echo(json.dumps(document))
    else:
        _print(document)


def _samples_beside(out: Path, directory: Path, inputs: list[Path]) -> Path:
    """The file for samples; raises a typed error if it or `out` cannot be written, or would overwrite other data."""
    if out == Path():
        raise DataError("--out names no file; give one, or leave --out out")
    kept = out.with_name(f"{out.name}.samples.jsonl")
    try:
        if not out.parent.is_dir():
            raise DataError(f"{out.parent} is not a folder; make it, or give another --out")
        if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(directory)):
            raise InvalidRequest(f"{out} lies in the bundle, which may hold only its own files; give another --out")
        for path in (out, kept):
            if path.exists() and any(data.exists() and path.samefile(data) for data in inputs):
                raise InvalidRequest(f"{path} is an input of the task and would be overwritten; give another --out")
    except OSError as error:  # such as a name that is too long, or a folder without permission
        raise DataError(f"{out} cannot be written: {error}; give another --out") from None
    check_replaceable(out)
    return kept


def _records(task: Task, work: Work, settings: dict[str, Any], kept: Path | None, batch_size: int) -> list[Record]:
    """Run the task with a progress bar; Ctrl-C exits with status 130 and says how to continue."""
    count = len(task.samples)
    with Journal.open(kept, settings) as journal, TerminalProgress().task(task.name, count) as advance:
        try:
            return evaluate(task.samples, work, journal, batch_size, advance)
        except KeyboardInterrupt:
            state = f"kept in {kept}; the same command continues" if kept else "lost; with --out they would be kept"
            click.echo(f"dpad: stopped after {len(journal.records)} of {count} samples, which are {state}", err=True)
            raise click.exceptions.Exit(130) from None


def _task(
    name: str,
    raw: bool,
    data: Path | None,
    limit: int | None,
    shots: int,
    fewshot_data: Path | None,
    data_seed: int,
    time_limit: float,
    weak_sandbox: bool,
) -> tuple[Task, dict[str, Any]]:
    """The task, and the settings that determine its samples and scores."""
    if name not in TASKS:
        raise InvalidRequest(f"task {name!r} is not one of {', '.join(TASKS)}")
    if data is None and name in ("gsm8k", "humaneval"):
        raise DataError(f"{name} needs a local file, as nothing is downloaded; give --data FILE")
    if data is not None and name in ("problems", "long"):
        raise InvalidRequest(f"{name} generates its own samples; leave --data out")
    if shots and (name in ("long", "humaneval") or (name == "perplexity" and data is not None)):
        raise InvalidRequest(f"{name} takes no worked examples{' with --data' if data else ''}; leave --shots out")
    if fewshot_data is not None and name != "gsm8k":
        raise InvalidRequest(f"{name} does not read --fewshot-data; leave it out")
    seeds = {"data_seed": data_seed, "shots": shots}
    if name == "problems":
        return tasks.problems(limit, shots, data_seed), seeds
    if name == "long":
        return tasks.long(limit, data_seed), seeds
    if data is None:
        return tasks.answers(limit, shots, data_seed), seeds
    if name == "perplexity":
        return tasks.texts(data, limit), {}
    if name == "gsm8k":
        return tasks.gsm8k(data, limit, shots, data_seed, fewshot_data), seeds
    sandbox = Sandbox(Limits(seconds=time_limit), weak=weak_sandbox)
    if sandbox.refused:
        click.echo(escaped(f"not isolated: {sandbox.refused}", lines=True), err=True)

    def tell() -> None:
        for left in sandbox.left:
            click.echo(escaped(f"dpad: {left}"), err=True)

    click.get_current_context().call_on_close(tell)
    return humaneval(data, sandbox, limit, raw), {"time_limit": time_limit, "not_isolated": sandbox.refused}


def _print(document: dict[str, Any]) -> None:
    """Print a table of the metrics, and the cost per sample."""
    table = Table("metric", "value", "standard error", title=f"{document['task']}, {document['samples']} samples")
    for name, metric in document["metrics"].items():
        error = metric["standard_error"]
        table.add_row(name, f"{metric['value']:.4f}", "" if error is None else f"{error:.4f}")
    Console(highlight=False).print(table)
    cost = ", ".join(f"{part['mean']:.4g} {name}" for name, part in document["cost"].items())
    preset = f", preset {escaped(document['preset'])}" if document["preset"] else ""
    click.echo(f"[{document['engine']}{preset}: {cost} a sample]", err=True)
