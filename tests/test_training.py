"""The text that the embedded checkpoint learns from is right, and training it can be repeated and resumed."""

import json
import random
import re
from pathlib import Path

import pytest
import torch

from dpad.models import corpus
from dpad.models.llada import Config
from dpad.models.train import SHIPPED, Data, Recipe, Trainer, new_model

KINDS = (*corpus.PROBLEMS, *corpus.OTHERS)


@pytest.mark.parametrize("kind", corpus.PROBLEMS)
def test_every_line_of_an_answer_is_true(kind: str) -> None:
    """Fails if a worked answer holds a wrong sum, or does not end in its own result."""
    rng = random.Random(0)
    for _ in range(200):
        example = corpus.sample(rng, "train", kind)
        sums = re.findall(r"(\d+) ([+*-]) (\d+) = (\d+)", example.answer)
        assert sums
        for a, sign, b, result in sums:
            wanted = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert wanted == int(result) >= 0, example
        assert corpus.final_answer(example.answer) == sums[-1][3]


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_question(kind: str) -> None:
    """Fails if accuracy on held-out problems measures memory."""
    rng = random.Random(1)
    seen = {corpus.sample(rng, "train", kind).question for _ in range(500)}
    assert not any(corpus.is_heldout(question) for question in seen)
    if kind != "instruction":  # most instructions have no numbers and are never held out
        held = [example.question for example in corpus.heldout(2, 50, (kind,))]
        assert all(map(corpus.is_heldout, held))
        assert not seen & set(held)


def test_right_and_wrong_answers_are_told_apart() -> None:
    """Fails if the measure of accuracy lets a wrong number pass or a right one fail."""
    problem = corpus.Example("?", "1 + 2 = 3.\n#### 3")
    assert corpus.is_right("any work\n#### 3", problem)
    assert not corpus.is_right("1 + 2 = 3.\n#### 33", problem)
    assert not corpus.is_right("3", problem)
    assert corpus.is_right(" 1, 2, 3\n", corpus.Example("?", "1, 2, 3"))


def trainer(seed: int = 0) -> Trainer:
    """The recipe of the embedded checkpoint with a batch of 4."""
    text = corpus.Text(corpus.build_tokenizer(seed), (SHIPPED / "chat_template.jinja").read_text())
    config = Config.from_json(json.loads((SHIPPED / "config.json").read_text()))
    return Trainer(new_model(config, seed), Data(Recipe(seed, batch=4), text))


def test_a_resumed_run_ends_in_the_same_weights(tmp_path: Path) -> None:
    """Fails if an interruption changes the outcome, or training depends on more than its seed."""
    straight, first, other = trainer(), trainer(), trainer(1)
    for step in range(4):
        straight.update(step / 4)
        other.update(step / 4)
    for step in range(2):
        first.update(step / 4)
    first.save(tmp_path / "training.pt")
    resumed = trainer()
    resumed.load(tmp_path / "training.pt")
    for step in range(2, 4):
        resumed.update(step / 4)
    for (name, a), b, c in zip(straight.model.named_parameters(), resumed.model.parameters(), other.model.parameters()):
        assert torch.equal(a, b), name
        assert a.ndim < 2 or not torch.equal(a, c), name
    assert resumed.loss == straight.loss


def test_the_embedded_checkpoint_is_small_and_whole() -> None:
    """Fails if it outgrows its place, loses its head size, or its tokens disagree with its configuration."""
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 12e6
    config = Config.from_json(json.loads((SHIPPED / "config.json").read_text()))
    assert config.head_size == 64
    text = corpus.Text(
        corpus.Tokenizer.from_file(str(SHIPPED / "tokenizer.json")), (SHIPPED / "chat_template.jinja").read_text()
    )
    assert (config.mask_token_id, config.eos_token_id) == (text.mask, text.eos)
    assert text.tokenizer.get_vocab_size() == config.vocab_size
