"""Perplexity of texts given their prompts: with the whole suffix, and with the suffix that DPad leaves.

    records = evaluate(task.samples, score_texts(model, task, options, draws=32), journal)
    perplexities(records)["perplexity_full"]

Both are bounds by `likelihood.bounds` on the same masks, so their difference is that of the suffix alone.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from time import perf_counter

from dpad.evaluation.errors import DataError
from dpad.evaluation.journal import Record
from dpad.evaluation.likelihood import bounds, fitted, spans
from dpad.evaluation.report import Metrics
from dpad.evaluation.run import Work
from dpad.evaluation.scoring import ratio
from dpad.evaluation.tasks import Sample, Task
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.suffix import Full
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel

_LARGEST = sys.float_info.max  # what lies beyond has no spelling in JSON


def score_texts(model: DiffusionModel, task: Task, options: GenerationOptions, draws: int, raw: bool = False) -> Work:
    """Work whose records hold the mean bound of each text in nats, `full` and (unless that is all) `dpad`.

    `nfe` counts one a draw and step, as the decoder's counts one a row and step. Models that are causal between blocks
    attend no suffix: they have `full` alone. Raises `DataError`, with
    the sample's number, if one of the task's texts cannot be scored.
    """
    contract = model.engine.contract
    schedules = {"full": replace(options, schedule=Full())}
    if not (contract.block_causal or isinstance(options.schedule, Full)):
        schedules["dpad"] = options
    for sample in task.samples:
        try:
            fitted(contract, *_tokens(model, sample, raw), options)
        except InvalidRequest as error:
            raise DataError(f"sample {sample.index + 1} cannot be scored: {error}") from error

    def work(samples: Sequence[Sample]) -> Iterable[Record]:
        for sample in samples:
            began = perf_counter()
            prompt, target = _tokens(model, sample, raw)
            seed = (options.seed, sample.index)
            drawn = {
                name: bounds(model.engine, prompt, target, chosen, draws, seed) for name, chosen in schedules.items()
            }
            parts = spans(contract, len(prompt), len(target), options.block_length)
            yield {
                "key": sample.key,
                "index": sample.index,
                "scores": {name: float(nats.mean()) for name, nats in drawn.items()},
                "nfe": len(schedules) * draws * sum(part.passes for part in parts),
                "tokens": len(target),
                "seconds": perf_counter() - began,
            }

    return work


def _tokens(model: DiffusionModel, sample: Sample, raw: bool) -> tuple[tuple[int, ...], list[int]]:
    """Token ids of prompt and text; without a prompt there are only those the tokenizer starts every text with."""
    model.check_size(sample.target)
    prompt = model.request(sample.prompt, raw=raw or not sample.prompt).prompt_ids
    return prompt, model.codec.encode_plain(sample.target)


def perplexities(records: Sequence[Record]) -> Metrics:
    """Nats a token and perplexity of each kind of suffix, over all tokens of the records.

    Standard errors are over the texts, which includes the noise of the draws. The error of a perplexity
    is that of its logarithm times the perplexity. Raises `DataError` for records of another task.
    """
    sizes = [record["tokens"] for record in records]
    if not sum(sizes) or "full" not in records[0]["scores"]:
        raise DataError("the file of samples is not one of texts with tokens; remove it, or give another --out")
    metrics: Metrics = {}
    for name in records[0]["scores"]:
        nats, error = ratio([record["scores"][name] for record in records], sizes)
        perplexity = math.exp(min(nats, 700.0))  # beyond, a float overflows
        metrics[f"nats_per_token_{name}"] = nats, error
        metrics[f"perplexity_{name}"] = perplexity, None if error is None else min(perplexity * error, _LARGEST)
    if "dpad" in records[0]["scores"]:
        gaps = [record["scores"]["dpad"] - record["scores"]["full"] for record in records]
        metrics["nats_per_token_difference"] = ratio(gaps, sizes)
    return metrics
