"""The perplexity task and the definition of its numbers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from estimating import bounds

from dpad import Gaussian, GenerationOptions, load
from dpad.cli import main
from dpad.evaluation import tasks
from dpad.evaluation.perplexity import perplexities
from dpad.models.training import corpus
from dpad.runtime.decoding.suffix import Full

TEXTS = [("w5 w6 w7 w8 w9", "w3 w4"), ("w20 w21 w20 w21 " * 5, ""), ("w90", "w91 w92 w93")]
OPTIONS = ("--gen-length", "48", "--block-length", "8", "--mc-samples", "6", "--seed", "2", "--window", "16")


def measure(bundle: Path, *arguments: object) -> dict[str, dict[str, float]]:
    command = ["eval", str(bundle), "--task", "perplexity", *OPTIONS, *map(str, arguments), "--json"]
    ran = CliRunner().invoke(main, command)
    assert ran.exit_code == 0, ran.output
    metrics: dict[str, dict[str, float]] = json.loads(ran.stdout)["metrics"]
    return metrics


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "prompt": prompt}) + "\n" for text, prompt in TEXTS))
    return path


def test_texts_are_scored_given_their_prompts(eval_bundle: Path, data: Path) -> None:
    """Fails if a text is scored without its prompt, masks or suffixes differ, or texts weigh the same at any length."""
    metrics = measure(eval_bundle, "--data", data)
    gaussian = GenerationOptions(gen_length=48, block_length=8, schedule=Gaussian(window=16), seed=2)
    full = GenerationOptions(gen_length=48, block_length=8, schedule=Full(), seed=2)
    with load(eval_bundle, threads=1) as model:
        nats, sizes = [], []
        for index, (text, prompt) in enumerate(TEXTS):
            words = [int(word[1:]) for word in text.split()]
            context = model.request(prompt).prompt_ids if prompt else ()
            pair = [bounds(model.engine, context, words, o, 6, (2, index)).mean() for o in (full, gaussian)]
            nats.append(pair)
            sizes.append(len(words))
    whole, thinned = np.array(nats).sum(axis=0) / sum(sizes)
    assert metrics["nats_per_token_full"]["value"] == pytest.approx(whole)
    assert metrics["nats_per_token_dpad"]["value"] == pytest.approx(thinned)
    assert metrics["perplexity_dpad"]["value"] == pytest.approx(math.exp(thinned))
    assert metrics["nats_per_token_difference"]["value"] == pytest.approx(thinned - whole, abs=1e-9)
    assert whole != pytest.approx(thinned)
    error = metrics["nats_per_token_full"]["standard_error"]
    assert 0 < error < whole
    assert metrics["perplexity_full"]["standard_error"] == pytest.approx(error * math.exp(whole))


def test_without_dropout_there_is_one_number(eval_bundle: Path, data: Path) -> None:
    """Fails if a schedule without dropout is measured twice."""
    metrics = measure(eval_bundle, "--data", data, "--schedule", "none")
    assert metrics.keys() == {"nats_per_token_full", "perplexity_full"}
    assert metrics["perplexity_full"] == measure(eval_bundle, "--data", data)["perplexity_full"]


def test_problems_are_scored_by_their_answers() -> None:
    """Fails if the built-in texts are not the held-out answers after their questions."""
    task = tasks.answers(3, shots=1, seed=5)
    examples = corpus.heldout(5, 3)
    assert [sample.target for sample in task.samples] == [example.answer for example in examples]
    for sample, example in zip(task.samples, examples):
        assert sample.prompt.endswith(f"\n\nQuestion: {example.question}\nAnswer:")


def test_one_text_has_no_standard_error() -> None:
    """Fails if a single sample has a standard error."""
    metrics = perplexities([{"scores": {"full": 20.0, "dpad": 22.0}, "tokens": 10}])
    assert metrics["nats_per_token_full"] == (2.0, None)
    assert metrics["perplexity_dpad"] == (pytest.approx(math.exp(2.2)), None)
    assert metrics["nats_per_token_difference"] == (pytest.approx(0.2), None)
