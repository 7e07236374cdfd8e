"""`evaluate`: a task over a model, batch by batch, each finished sample kept at once.

    with Journal.open(path, settings_of(bundle, task, options, engine)) as journal:
        records = evaluate(task.samples, generate_answers(model, task, options), journal, batch_size=4)

Rows of a batch give what they would give alone, so the batch size is no setting of a run.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import dpad
from dpad.evaluation.errors import DataError
from dpad.evaluation.journal import Journal, Record
from dpad.evaluation.tasks import Sample, Task
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import FILE_NAME
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel

# The records of some samples, each with `key` and `scores`, in their order.
Work = Callable[[Sequence[Sample]], Iterable[Record]]


def evaluate(
    samples: Sequence[Sample],
    work: Work,
    journal: Journal,
    batch_size: int = 1,
    advance: Callable[[int], None] = lambda amount: None,
) -> list[Record]:
    """Records of all `samples`, in order: those in the journal, and the rest from `work`.

    `advance` is told of samples as they are finished, those of the journal first. Raises `DataError` where the
    journal's have other scores.
    """
    open_samples = [sample for sample in samples if sample.key not in journal.records]
    advance(len(samples) - len(open_samples))
    for start in range(0, len(open_samples), batch_size):
        for record in work(open_samples[start : start + batch_size]):
            journal.add(record)
            advance(1)
    records = [journal.records[sample.key] for sample in samples]
    if any(record["scores"].keys() != records[0]["scores"].keys() for record in records):
        raise DataError("the file of samples has other scores than this task gives; remove it, or give another --out")
    return records


def generate_answers(model: DiffusionModel, task: Task, options: GenerationOptions, raw: bool = False) -> Work:
    """Work that writes an answer to each prompt and grades it; `raw` leaves the chat template out.

    A record holds the text, NFE, tokens, and the seconds of the batch divided by its rows. Raises
    `DataError`, with the sample's number, if one of the task's prompts does not fit.
    """
    for sample in task.samples:
        try:
            model.request(sample.prompt, raw=raw).check(options, model.engine.contract)
        except InvalidRequest as error:
            raise DataError(f"sample {sample.index + 1} cannot be answered: {error}") from error

    def work(samples: Sequence[Sample]) -> Iterable[Record]:
        answers = model.generate_batch([sample.prompt for sample in samples], raw=raw, **vars(options))
        for sample, answer in zip(samples, answers):
            yield {
                "key": sample.key,
                "index": sample.index,
                "scores": task.grade(sample, answer.text),
                "text": answer.text,
                "nfe": answer.nfe,
                "tokens": len(answer.token_ids),
                "seconds": answer.timings.total / len(samples),
            }

    return work


def options_json(options: GenerationOptions) -> dict[str, Any]:
    """The fields of `options` as JSON takes them, the schedule with its name."""
    schedule = {"name": type(options.schedule).__name__}
    return asdict(options) | {"schedule": schedule | vars(options.schedule)}


def settings_of(bundle: Bundle, task: Task, options: GenerationOptions, engine: str, **more: Any) -> dict[str, Any]:
    """Everything that decides the records of a run, and so must stay the same when it is resumed."""
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
    """Digest of a bundle's manifest, which holds those of all its files."""
    return hashlib.sha256((bundle.directory / FILE_NAME).read_bytes()).hexdigest()
