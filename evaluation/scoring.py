"""Scores of one answer, and their means: the metrics of lm-evaluation-harness's gsm8k task (version 3.0).

    grade_numbers("Together 18.\\n#### 18", "16 + 2 = 18\\n#### 18")
    # {"strict_match": 1.0, "flexible_extract": 1.0}

`strict_match` takes the first number behind `####`, `flexible_extract` the last part of the text that
looks like a number. The number is compared with the target, both in lower case and without commas, dollar signs,
everything up to the last `#### `, and a full stop at the end. An answer without a number becomes `[invalid]`.
"""

import math
import re
from collections.abc import Sequence

_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = tuple(re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"))
_INVALID = "[invalid]"

STOPS = ("Question:", "</s>", "<|im_end|>")  # an answer to a problem is cut before the first of these


def cut(text: str, stops: Sequence[str]) -> str:
    """Cut `text` before each of `stops` in turn, as lm-evaluation-harness does; empty ones are ignored."""
    for stop in stops:
        text = text.split(stop, 1)[0] if stop else text
    return text


def grade_numbers(text: str, target: str) -> dict[str, float]:
    """1.0 or 0.0 for each of the two ways to extract a number from `text`; `target` is the whole correct answer."""
    strict = _STRICT.findall(text)
    flexible = _FLEXIBLE.findall(text)
    answers = {
        "strict_match": strict[0].strip() if strict else _INVALID,
        "flexible_extract": next(filter(None, flexible[-1])).strip() if flexible else _INVALID,
    }
    return {name: float(_plain(answer) == _plain(target)) for name, answer in answers.items()}


def grade_text(text: str, target: str) -> dict[str, float]:
    """1.0 if the text equals the target, character by character, else 0.0."""
    return {"exact_match": float(text == target)}


def mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (n - 1 in the variance); one value has no standard error."""
    average = math.fsum(values) / len(values)
    if len(values) < 2:
        return average, None
    variance = math.fsum((value - average) ** 2 for value in values) / (len(values) - 1)
    return average, math.sqrt(variance / len(values))


def ratio(parts: Sequence[float], sizes: Sequence[float]) -> tuple[float, float | None]:
    """Sum of `parts` over sum of `sizes`, and the standard error of this ratio over the samples.

    The error is that of the usual linearisation: the residuals part - ratio · size have mean 0, and the ratio varies
    as their sum divided by the sum of the sizes.
    """
    total = math.fsum(sizes)
    value = math.fsum(parts) / total
    count = len(parts)
    if count < 2:
        return value, None
    residuals = math.fsum((part - value * size) ** 2 for part, size in zip(parts, sizes))
    return value, math.sqrt(residuals * count / (count - 1)) / total


def _plain(text: str) -> str:
    for pattern in _IGNORED:
        text = pattern.sub("", text)
    return text.lower()
