"""Perplexity of texts given their prompts: with the whole suffix, and with the suffix that DPad keeps.

    records = evaluate(task.samples, score_texts(model, task, options, draws=32), journal)
    perplexities(records)["perplexity_full"]

Both are bounds by `likelihood.estimates` on the same masks, so that only the suffix causes their difference.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from dpad.evaluation.errors import DataError
from dpad.evaluation.finished import finished
from dpad.evaluation.journal import Record
from dpad.evaluation.likelihood import Estimate, estimates, fitted
from dpad.evaluation.report import Metrics
from dpad.evaluation.run import Work
from dpad.evaluation.scoring import ratio
from dpad.evaluation.tasks import Sample, Task
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.suffix import Full
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.model import DiffusionModel

_LARGEST = sys.float_info.max  # JSON cannot express infinity


def score_texts(model: DiffusionModel, task: Task, options: GenerationOptions, draws: int, raw: bool = False) -> Work:
    """Work whose records hold the mean bound of each text in nats: `full`, and `dpad` if the schedule drops tokens.

    `nfe` counts the passes of all draws, and `seconds` adds up their seconds by `finished`. Block-causal models attend
    no suffix, so their records have only `full`. Raises a `DataError` with the sample's number if a text of the task
    cannot be scored.
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

    def drawn(samples: Sequence[Sample]) -> Iterator[Estimate]:
        for place, sample in enumerate(samples):
            prompt, target = _tokens(model, sample, raw)
            for kind, chosen in enumerate(schedules.values()):
                seed, index = (options.seed, sample.index), place * len(schedules) + kind
                yield from estimates(contract, prompt, target, chosen, draws, seed, index)

    def work(samples: Sequence[Sample]) -> Iterable[Record]:
        found = [[list[float]() for _ in schedules] for _ in samples]
        nfe, seconds = [0] * len(samples), [0.0] * len(samples)
        for estimate, more in finished(
            model, drawn(samples), lambda one: f"sample {samples[one.index // len(schedules)].index + 1}"
        ):
            place, kind = divmod(estimate.index, len(schedules))
            found[place][kind].append(estimate.nats)
            nfe[place] += estimate.nfe
            seconds[place] += more
            if all(len(nats) == draws for nats in found[place]):
                yield {
                    "key": samples[place].key,
                    "index": samples[place].index,
                    "scores": {name: math.fsum(nats) / draws for name, nats in zip(schedules, found[place])},
                    "nfe": nfe[place],
                    "tokens": len(estimate.target),
                    "seconds": seconds[place],
                }

    return work


def _tokens(model: DiffusionModel, sample: Sample, raw: bool) -> tuple[tuple[int, ...], list[int]]:
    """Token ids of prompt and text; an empty prompt gives only the tokens that the tokenizer adds before every text."""
    model.check_size(sample.target)
    prompt = model.request(sample.prompt, raw=raw or not sample.prompt).prompt_ids
    return prompt, model.codec.encode_plain(sample.target)


def perplexities(records: Sequence[Record]) -> Metrics:
    """Nats per token and perplexity for each kind of suffix, over all tokens of the records.

    Standard errors are over the texts, and include the noise of the draws. The error of a perplexity
    is the error of its logarithm times the perplexity. Raises `DataError` for records of another task.
    """
    sizes = [record["tokens"] for record in records]
    if not sum(sizes) or "full" not in records[0]["scores"]:
        raise DataError("the file of samples has no scored texts with tokens; remove it, or give another --out")
    metrics: Metrics = {}
    for name in records[0]["scores"]:
        nats, error = ratio([record["scores"][name] for record in records], sizes)
        perplexity = math.exp(min(nats, 700.0))  # a larger exponent would overflow
        metrics[f"nats_per_token_{name}"] = nats, error
        metrics[f"perplexity_{name}"] = perplexity, None if error is None else min(perplexity * error, _LARGEST)
    if "dpad" in records[0]["scores"]:
        gaps = [record["scores"]["dpad"] - record["scores"]["full"] for record in records]
        metrics["nats_per_token_difference"] = ratio(gaps, sizes)
    return metrics
