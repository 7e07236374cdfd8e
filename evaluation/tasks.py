"""`Task`: prompts with their targets, and a function that grades an answer.

    task = problems(limit=100, shots=2, seed=0)
    task.samples[0].prompt, task.grade(task.samples[0], "... #### 18")

Prompts of word problems and of GSM8K have the layout of lm-evaluation-harness's GSM8K: worked examples, then
`Question: ...` and `Answer:`. Each question has its own worked examples, drawn by the seed and the
question's number, so that a sample does not depend on the number of samples.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dpad.evaluation.data import digests, read_lines
from dpad.evaluation.errors import DataError
from dpad.evaluation.scoring import STOPS, cut, grade_numbers, grade_text
from dpad.models.training import corpus
from dpad.models.training.problems import PROBLEMS, Example
from dpad.models.training.routines import LONG
from dpad.runtime.errors import InvalidRequest

LIMIT = 100  # default number of samples of tasks that generate their own
MOST, MOST_SHOTS = 10_000, 100  # most samples and worked examples of these; no canvas holds as many examples


@dataclass(frozen=True)
class Sample:
    """One prompt.

    Attributes:
        index: its number within the task.
        prompt: the user's text.
        target: the text that grading compares with; for perplexity, the text that is scored.
        facts: further data for grading.
    """

    index: int
    prompt: str
    target: str
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Digest of all fields, under which its result is stored."""
        text = json.dumps([self.index, self.prompt, self.target, dict(self.facts)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


Grade = Callable[[Sample, str], dict[str, float]]


@dataclass(frozen=True)
class Task:
    """Samples under a name; `grade` returns metric -> score of an answer, `data` maps data file -> SHA-256."""

    name: str
    samples: list[Sample]
    grade: Grade
    data: dict[str, str] = field(default_factory=dict)


def problems(limit: int | None = None, shots: int = 0, seed: int = 0) -> Task:
    """Held-out word problems of the training text, with worked examples from the training split.

    Raises `InvalidRequest` for more than 10,000 samples or 100 worked examples.
    """
    _check_counts(limit, shots)
    asked = corpus.heldout(seed, limit or LIMIT)

    def draw(rng: random.Random) -> list[Example]:
        return [corpus.sample(rng, "train", rng.choice(list(PROBLEMS))) for _ in range(shots)]

    samples = _questions(asked, draw, seed)
    return Task("problems", samples, _grade_problem)


def long(limit: int | None = None, seed: int = 0) -> Task:
    """Held-out tasks with long, regular answers: counting, numbered lists, weeks; the whole text must match.

    Raises `InvalidRequest` for more than 10,000 samples.
    """
    _check_counts(limit, 0)
    asked = corpus.heldout(seed, limit or LIMIT, kinds=tuple(LONG))
    samples = [Sample(index, example.question, example.answer) for index, example in enumerate(asked)]
    return Task("long", samples, lambda sample, text: grade_text(text, sample.target))


def gsm8k(
    data: Path, limit: int | None = None, shots: int = 0, seed: int = 0, fewshot_data: Path | None = None
) -> Task:
    """Problems in GSM8K's layout, from a local file of `question` and `answer`; worked examples from `fewshot_data`.

    Raises `DataError` for a file that cannot be read, and for fewer worked examples than `shots`.
    """
    asked = [Example(row["question"], row["answer"]) for row in read_lines(data, ("question", "answer"))[:limit]]
    files, worked = [data], []
    if shots:
        if fewshot_data is None:
            raise DataError("gsm8k takes worked examples from a second file; give --fewshot-data, or --shots 0")
        worked = [Example(row["question"], row["answer"]) for row in read_lines(fewshot_data, ("question", "answer"))]
        if len(worked) < shots:
            raise DataError(f"{fewshot_data} has {len(worked)} examples, fewer than --shots {shots}")
        files.append(fewshot_data)
    samples = _questions(asked, lambda rng: rng.sample(worked, shots), seed)
    return Task("gsm8k", samples, _grade_problem, digests(files))


def texts(data: Path, limit: int | None = None) -> Task:
    """Texts for perplexity, from a local file of `text`, each with an optional `prompt`."""
    rows = read_lines(data, ("text",), ("prompt",))[:limit]
    samples = [Sample(index, row.get("prompt", ""), row["text"]) for index, row in enumerate(rows)]
    return Task("perplexity", samples, lambda sample, text: {}, digests([data]))


def answers(limit: int | None = None, shots: int = 0, seed: int = 0) -> Task:
    """The answers of `problems` as texts for perplexity."""
    return replace(problems(limit, shots, seed), name="perplexity")


def _check_counts(limit: int | None, shots: int) -> None:
    for name, count, most in (("--limit", limit or LIMIT, MOST), ("--shots", shots, MOST_SHOTS)):
        if count > most:
            raise InvalidRequest(f"{name} {count} is over {most}, the limit of a task that generates its own samples")


def _questions(asked: list[Example], draw: Callable[[random.Random], list[Example]], seed: int) -> list[Sample]:
    return [
        Sample(index, corpus.few_shot(draw(random.Random(f"{seed}/{index}")), example.question), example.answer)
        for index, example in enumerate(asked)
    ]


def _grade_problem(sample: Sample, text: str) -> dict[str, float]:
    return grade_numbers(cut(text, STOPS), sample.target)
