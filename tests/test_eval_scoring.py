"""Compares scores with lm-evaluation-harness's own filters and metric, on difficult strings."""

import math
from pathlib import Path

import lm_eval
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from lm_eval.api.metrics import exact_match_hf_evaluate, mean_stderr
from lm_eval.filters.extraction import RegexFilter
from lm_eval.filters.selection import TakeFirstFilter
from lm_eval.models.utils import postprocess_generated_text

from dpad.evaluation import scoring

TASK = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
RULES = {"ignore_case", "ignore_punctuation", "regexes_to_ignore"}

# Pieces that occur in the regular expressions, so that random texts are near their edge cases.
PIECES = (
    "####",
    " ",
    "#",
    "#### ",
    "-",
    "$",
    ".",
    ",",
    "1",
    "23",
    "٣",
    "²",
    "\n",
    "A",
    "ß",
    "İ",
    "[invalid]",
    "Question:",
)
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


def harness_scores(text: str, target: str) -> dict[str, float]:
    """The scores of the real package: each of the task's filter chains, then its metric."""
    metric = {key: value for key, value in TASK["metric_list"][0].items() if key in RULES}
    scores = {}
    for chain in TASK["filter_list"]:
        regex, first = chain["filter"]
        assert (regex["function"], first["function"]) == ("regex", "take_first")
        arguments = {key: value for key, value in regex.items() if key != "function"}
        answer = next(iter(TakeFirstFilter().apply(RegexFilter(**arguments).apply([[text]], [{}]), [{}])))
        score = exact_match_hf_evaluate([answer], [target], **metric)["exact_match"]
        scores[chain["name"].replace("-", "_")] = float(score)
    return scores


@examples(max_examples=1500)
@given(text=texts, target=texts)
def test_numbers_score_as_in_the_harness(text: str, target: str) -> None:
    """Fails if an expression, the choice of a group or the normalisation differs for any text."""
    assert scoring.grade_numbers(text, target) == harness_scores(text, target)


@examples(max_examples=500)
@given(text=texts)
def test_right_answers_score_as_in_the_harness(text: str) -> None:
    """Fails if scores of right answers differ; random pairs in the test above almost never match."""
    target = f"so\n#### {text}"
    assert scoring.grade_numbers(target, target) == harness_scores(target, target)
    assert scoring.grade_numbers(text, text) == harness_scores(text, text)


@pytest.mark.parametrize(
    ("text", "target", "strict", "flexible"),
    [
        ("16 + 2 = 18\n#### 18", "#### 18", 1, 1),
        ("#### 18", "working 5\n#### 18", 1, 1),
        ("#### 18.", "#### 18", 1, 1),
        ("#### 1,800", "#### 1800", 1, 1),
        ("#### -3", "#### -3", 1, 1),
        ("####18", "#### 18", 0, 1),
        ("The answer is $18.", "#### 18", 0, 1),
        ("#### 17 and then #### 18", "#### 18", 0, 1),
        ("#### 18 of 20", "#### 18", 1, 0),
        ("#### 18.00", "#### 18", 0, 0),
        ("18 ... and so on.", "#### 18", 0, 0),
        ("", "#### 18", 0, 0),
    ],
)
def test_numbers_by_example(text: str, target: str, strict: int, flexible: int) -> None:
    """Fails if scores change, also if the harness's change in the same way."""
    expected = {"strict_match": strict, "flexible_extract": flexible}
    assert scoring.grade_numbers(text, target) == expected == harness_scores(text, target)


@given(text=texts, stops=st.lists(st.sampled_from((*PIECES, "", "1\n2")), max_size=4))
def test_texts_are_cut_as_in_the_harness(text: str, stops: list[str]) -> None:
    """Fails if a stop string ends a text elsewhere than in the harness."""
    assert scoring.cut(text, stops) == postprocess_generated_text(text, stops, None)


def test_the_stops_are_those_of_the_task() -> None:
    """Fails if GSM8K's stop strings change."""
    assert list(scoring.STOPS) == TASK["generation_kwargs"]["until"]


def test_only_the_whole_text_is_an_exact_match() -> None:
    """Fails if a long output passes that ends too early or too late."""
    assert [scoring.grade_text(text, "1, 2")["exact_match"] for text in ("1, 2", "1, 2 ", "1, 2, 3", "1")] == [
        1,
        0,
        0,
        0,
    ]


@given(values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30))
def test_standard_errors_are_those_of_the_harness(values: list[float]) -> None:
    """Fails if the variance is divided by n instead of n - 1, or a ratio with equal sizes is not a mean."""
    average, error = scoring.mean(values)
    assert error == pytest.approx(mean_stderr(values), abs=1e-9)
    assert scoring.ratio(values, [1.0] * len(values)) == pytest.approx((average, error), abs=1e-9)
    assert scoring.mean(values[:1]) == (values[0], None)


def test_a_ratio_has_the_error_that_repeated_draws_show() -> None:
    """Fails if the linearised error differs from the spread of 2,000 draws of 40 samples."""
    import numpy as np

    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        sizes = rng.integers(5, 50, 40).astype(float)
        found.append(scoring.ratio((2 * sizes + rng.normal(0, 8, 40)).tolist(), sizes.tolist()))
    values, errors = np.array(found, dtype=float).T
    assert values.mean() == pytest.approx(2, abs=0.01)
    assert math.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.1)
