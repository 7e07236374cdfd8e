"""`evaluate` runs a task with a model, and saves each sample as soon as it is finished.

    with Journal.open(path, settings_of(bundle, task, options, engine)) as journal:
        records = evaluate(task.samples, generate_answers(model, task, options), journal, batch_size=4)

The batch size does not change a sample's result, so it is not among the settings of a run.
"""

import hashlib
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Several
from dataclasses import asdict
from typing import Any

import dpad
from dpad.evaluation.errors import DataError
from dpad.evaluation.finished import finished
from dpad.evaluation.journal import Journal, Record
from dpad.evaluation.tasks import Sample, Task
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import FILE_NAME
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel

# Runs some samples together, and yields the record of each, with `key` and `scores`, when it is finished.
Work = Callable[[Several[Sample]], Iterable[Record]]


def evaluate(
    samples: Several[Sample],
    work: Work,
    journal: Journal,
    batch_size: int = 1,
    advance: Callable[[int], None] = lambda amount: None,
) -> list[Record]:
    """Records of all `samples`, in order: those in the journal, and the rest from `work`.

    `batch_size` samples are given to the model at a time, whose scheduler divides them into passes. `advance` is called
    with the number of newly finished samples, first those of the journal. Raises `DataError` if records in the journal
    have other scores.
    """
    open_samples = [sample for sample in samples if sample.key not in journal.records]
    advance(len(samples) - len(open_samples))
    for start in range(0, len(open_samples), batch_size):
        for record in work(open_samples[start : start + batch_size]):
            journal.add(record)
            advance(1)
    records = [journal.records[sample.key] for sample in samples]
    if any(record["scores"].keys() != records[0]["scores"].keys() for record in records):
        raise DataError("the file of samples has scores of another task; remove it, or give another --out")
    return records


def generate_answers(model: DiffusionModel, task: Task, options: GenerationOptions, raw: bool = False) -> Work:
    """Work that generates an answer to each prompt and grades it; `raw` leaves the chat template out.

    A record holds the text, NFE, tokens, and the sample's seconds by `finished`, which exclude grading. Raises a
    `DataError` with the sample's number if one of the task's prompts cannot be served.
    """
    for sample in task.samples:
        try:
            model.request(sample.prompt, raw=raw).check(options, model.engine.contract)
        except InvalidRequest as error:
            raise DataError(f"sample {sample.index + 1} cannot be answered: {error}") from error

    def work(samples: Several[Sample]) -> Iterable[Record]:
        asked = [
            Sequence(model.request(sample.prompt, raw=raw), options, model.engine.contract, place)
            for place, sample in enumerate(samples)
        ]
        for sequence, seconds in finished(model, asked, lambda one: f"sample {samples[one.index].index + 1}"):
            sample, ids = samples[sequence.index], sequence.token_ids()
            text = model.codec.decode(ids)
            yield {
                "key": sample.key,
                "index": sample.index,
                "scores": task.grade(sample, text),
                "text": text,
                "nfe": sequence.nfe,
                "tokens": len(ids),
                "seconds": seconds,
            }

    return work


def options_json(options: GenerationOptions) -> dict[str, Any]:
    """The fields of `options` as JSON values; the schedule has its name among its parameters."""
    schedule = {"name": type(options.schedule).__name__}
    return asdict(options) | {"schedule": schedule | vars(options.schedule)}


def settings_of(bundle: Bundle, task: Task, options: GenerationOptions, engine: str, **more: Any) -> dict[str, Any]:
    """The settings that determine the records of a run, which must be the same when it is resumed."""
    return {
        "task": task.name,
        "manifest_sha256": manifest_sha256(bundle),
        "data_sha256": task.data,
        "engine": engine,
        "dpad": dpad.__version__,
        "options": options_json(options),
        **more,
    }


def manifest_sha256(bundle: Bundle) -> str:
    """SHA-256 of a bundle's manifest, which contains those of all its files."""
    return hashlib.sha256((bundle.directory / FILE_NAME).read_bytes()).hexdigest()
