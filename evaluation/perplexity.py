"""Perplexity of texts given their prompts: with the whole suffix, and with the suffix that DPad leaves.

    records = evaluate(task.samples, score_texts(model, options, draws=32), journal)
    perplexities(records)["perplexity_full"]

Both are bounds by `likelihood.bounds` on the same masks, so their difference is that of the suffix alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from time import perf_counter

from dpad.evaluation.errors import DataError
from dpad.evaluation.journal import Record
from dpad.evaluation.likelihood import bounds
from dpad.evaluation.report import Metrics
from dpad.evaluation.run import Work
from dpad.evaluation.scoring import ratio
from dpad.evaluation.tasks import Sample
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel
from dpad.runtime.options import GenerationOptions
from dpad.runtime.suffix import Full


def score_texts(model: DiffusionModel, options: GenerationOptions, draws: int, raw: bool = False) -> Work:
    """Work whose records hold the mean bound of each text in nats, `full` and (unless that is all) `dpad`.

    `nfe` counts one a draw and block, as the decoder's counts one a row and step. A text that cannot be
    scored is a `DataError` with the sample's number.
    """
    schedules = {"full": replace(options, schedule=Full())}
    if not isinstance(options.schedule, Full):
        schedules["dpad"] = options

    def work(samples: Sequence[Sample]) -> Iterable[Record]:
        for sample in samples:
            began = perf_counter()
            prompt = model.request(sample.prompt, raw=raw or not sample.prompt).prompt_ids
            target = model.codec.encode_plain(sample.target)
            seed = (options.seed, sample.index)
            try:
                scores = {
                    name: float(bounds(model.engine, prompt, target, chosen, draws, seed).mean())
                    for name, chosen in schedules.items()
                }
            except InvalidRequest as error:
                raise DataError(f"sample {sample.index + 1} cannot be scored: {error}") from error
            yield {
                "key": sample.key,
                "index": sample.index,
                "scores": scores,
                "nfe": len(schedules) * draws * math.ceil(len(target) / options.block_length),
                "tokens": len(target),
                "seconds": perf_counter() - began,
            }

    return work


def perplexities(records: Sequence[Record]) -> Metrics:
    """Nats a token and perplexity of each kind of suffix, over all tokens of the records.

    Standard errors are over the texts, which includes the noise of the draws. The error of a perplexity
    is that of its logarithm times the perplexity.
    """
    sizes = [record["tokens"] for record in records]
    metrics: Metrics = {}
    for name in records[0]["scores"]:
        nats, error = ratio([record["scores"][name] for record in records], sizes)
        perplexity = math.exp(min(nats, 700.0))  # beyond, a float overflows
        metrics[f"nats_per_token_{name}"] = nats, error
        metrics[f"perplexity_{name}"] = perplexity, None if error is None else perplexity * error
    if "dpad" in records[0]["scores"]:
        gaps = [record["scores"]["dpad"] - record["scores"]["full"] for record in records]
        metrics["nats_per_token_difference"] = ratio(gaps, sizes)
    return metrics
