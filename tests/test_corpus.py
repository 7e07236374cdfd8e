"""The training text of the embedded checkpoints is correct, and its splits are disjoint."""

import random
import re

import pytest

from dpad.models.training import corpus
from dpad.models.training.problems import PROBLEMS, Forms


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_line_of_an_answer_is_true(kind: str, split: corpus.Split) -> None:
    """Fails if an answer has a wrong sum, fewer than two or more than four steps, or does not end in its result."""
    rng = random.Random(0)
    for _ in range(200):
        example = corpus.sample(rng, split, kind)
        sums = re.findall(r"(\d+) ([+*-]) (\d+) = (\d+)", example.answer)
        assert 2 <= len(sums) <= 4
        for a, sign, b, result in sums:
            wanted = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert wanted == int(result) >= 0, example
        assert example.answer.endswith(f"\n#### {sums[-1][3]}")


@pytest.mark.parametrize("kind", corpus.KINDS)
def test_splits_share_no_question(kind: str) -> None:
    """Fails if a question occurs in both splits."""
    rng = random.Random(1)
    seen = {corpus.sample(rng, "train", kind).question for _ in range(500)}
    assert not any(corpus.is_heldout(question) for question in seen)
    if kind != "instruction":  # most instructions have no numbers and are never held out
        held = [example.question for example in corpus.heldout(2, 50, (kind,))]
        assert all(map(corpus.is_heldout, held))
        assert not seen & set(held)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_one_form_of_each_problem_is_held_out(kind: str) -> None:
    """Fails if training has the held-out pair of opening and question."""

    def forms(heldout: bool) -> set[tuple[str, str]]:
        met: set[tuple[str, str]] = set()

        class Watched(Forms):
            def pick(self, openings, questions):  # type: ignore[no-untyped-def]
                met.add(super().pick(openings, questions))
                return openings[0], questions[0]

        rng = random.Random(3)
        for _ in range(300):
            PROBLEMS[kind](rng, Watched(rng, heldout))
        return met

    assert len(forms(True)) == 1
    assert len(forms(False)) >= 3
    assert not forms(True) & forms(False)


def test_worked_examples_stand_before_a_question_as_in_gsm8k() -> None:
    """Fails if few-shot prompts differ from lm-evaluation-harness, or show held-out numbers in training."""
    shots = [corpus.Example("How many?", "1 + 1 = 2\n#### 2")]
    assert corpus.few_shot(shots, "And now?") == (
        "Question: How many?\nAnswer: 1 + 1 = 2\n#### 2\n\nQuestion: And now?\nAnswer:"
    )
    rng = random.Random(4)
    turns = [corpus.turn(rng).question for _ in range(500)]
    many = [question for question in turns if question.count("Question: ") > 1]
    assert many
    for question in many:
        for asked in re.findall(r"Question: (.*)\nAnswer:", question):
            assert not corpus.is_heldout(asked)
    assert not any("Question: " in corpus.turn(rng, simple=True).question for _ in range(300))


def test_where_answers_end_is_asked_for_all_ways() -> None:
    """Fails if an answer that compares numbers is wrong, or if such questions never repeat numbers."""
    rng, repeated = random.Random(6), 0
    for _ in range(300):
        asked = corpus.sample(rng, "train", "find")
        wanted, *numbers = re.findall(r"\d+", asked.question)
        assert asked.answer == ", ".join(f"{n} {'yes' if n == wanted else 'no'}" for n in numbers)
        asked = corpus.sample(rng, "train", "until")
        wanted, *numbers = re.findall(r"\d+", asked.question)
        assert asked.answer.split(", ") == numbers[: numbers.index(wanted) + 1]
        repeated += len(numbers) > len(set(numbers) | {wanted})
    assert repeated > 100
