"""Training of the embedded checkpoints is reproducible, can be resumed, and has the intended objective."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from tokenizers import Tokenizer
from vocabulary import tokenizer_of

from dpad.export.hub import EMBEDDED
from dpad.models.checkpoint.checkpoint import FAMILIES, Checkpoint, parse_config, read_json
from dpad.models.training import corpus
from dpad.models.training.__main__ import SHIPPED, main
from dpad.models.training.batches import Batch, Data
from dpad.models.training.recipe import Recipe
from dpad.models.training.trainer import Trainer, attend, attend_causally, initialise, loss_of
from dpad.models.training.views import BLOCK, WIDTHS
from dpad.models.training.vocabulary import Text, number_values


def test_a_run_ends_with_all_examples() -> None:
    """Fails if the phases of a run are not in order, or the phase `stops` does not mostly teach endings."""
    recipe, rng = Recipe(), random.Random(8)
    assert [recipe.phase(at) for at in (0.0, 0.39, 0.41, 0.6, 0.7, 0.99)] == [
        *("simple", "simple", "all", "stops", "all", "all")
    ]
    told = [corpus.turn(rng, stops=True).question for _ in range(400)]
    assert sum(question.startswith(("Count", "Read", "Find", "Write")) for question in told) > 280


def trainer(name: str = "tiny", seed: int = 0, **recipe: Any) -> Trainer:
    """A trainer of an embedded model, with small batches."""
    source = SHIPPED / name
    architecture, config = parse_config(read_json(source / "config.json"))
    model = FAMILIES[architecture].Model(config)
    text = Text(tokenizer_of(name), source)
    initialise(model, seed, number_values(text.tokenizer))
    return Trainer(model, Data(Recipe(seed, rows=256, pool=64, **recipe), text))


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_batch_masks_answers_only_and_keeps_positions(name: str) -> None:
    """Fails if a prompt is masked, a target has another position, or a weight is not 1/l of the sample's share."""
    data = trainer(name, spreads=(1, 0, 0, 0), maskings=(0.4, 0.2, 0.4, 0)).data
    text = data.text
    widths = set()
    for _ in range(60):
        batch = data.batch()
        widths.add(batch.ids.shape[1])
        assert batch.ids.shape[1] in WIDTHS
        masked = batch.ids == text.mask
        assert torch.equal(batch.ids[~masked], batch.targets[~masked])
        assert not (batch.weight[~masked] != 0).any()
        weighed = batch.weight != 0
        assert torch.allclose(batch.weight.sum(1), torch.full((len(batch.ids),), 1 / len(batch.ids)))
        assert torch.allclose(batch.weight * weighed.sum(1, keepdim=True) * len(batch.ids), weighed.float())
        ascending = batch.positions.diff(dim=1)
        assert (ascending >= (1 if batch.ids.shape[1] < WIDTHS[-1] else 0)).all()
        for row in range(len(batch.ids)):
            first = int(masked[row].nonzero()[0]) if masked[row].any() else 0
            prompt = text.tokenizer.decode(batch.targets[row, :first].tolist(), skip_special_tokens=False)
            assert not masked[row].any() or "assistant" in prompt
    assert len(widths) >= 4


def test_the_rows_of_a_sample_do_not_tell_how_long_its_answer_is() -> None:
    """Fails if the number of rows tells a model where the answer ends.

    Such a model would end too early when DPad keeps few rows, and too late with a whole canvas.
    """
    data = trainer(maskings=(1, 0, 0, 0)).data
    wide: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(900):
        batch = data.batch(causal=True)
        for targets, weight in zip(batch.targets, batch.weight):
            answer = targets[weight > 0]
            if len(targets) - len(answer) < 32:  # after longer prompts more rows fill the width
                wide[bool((answer[:24] == data.text.eos).any())].append(len(answer) > 128)
    shares = [sum(found) / len(found) for found in wide.values()]
    assert min(len(found) for found in wide.values()) > 100
    assert 0.1 < shares[0] < 0.6 and abs(shares[0] - shares[1]) < 0.1


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_causal_batch_shows_everything_and_weighs_answers(name: str) -> None:
    """Fails if next-token steps mask a token, train on prompts, or predict a token from others than those before it."""
    run = trainer(name)
    batch = run.data.batch(causal=True)
    assert torch.equal(batch.ids, batch.targets)
    assert float(batch.weight.sum()) == pytest.approx(1)
    for ids, row in zip(batch.ids, batch.weight > 0):
        prompt = run.data.text.tokenizer.decode(ids[~row].tolist(), skip_special_tokens=False)
        assert "user" in prompt and prompt.count("assistant") == 1
        assert row.int().diff().abs().sum() == 1  # the answer is everything after the prompt
    weight = torch.zeros_like(batch.weight[:1])
    places = batch.weight[0].nonzero()[:, 0][[0, 3, -1]].tolist()
    weight[0, places] = torch.tensor([0.2, 0.3, 0.5])
    one = Batch(batch.ids[:1], batch.positions[:1], batch.targets[:1], weight)
    wanted = 0.0
    for place in places:
        ids = batch.ids[:1, : place + 1].clone()
        ids[0, place] = (
            run.data.text.mask
        )  # LLaDA predicts a token from the mask in its place, Dream from the row before
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            hidden = run.model(ids, torch.arange(place + 1)[None], attend_causally)
            logits = run.model.logits(hidden)[0, place - (name == "tiny-dream")]
        surprise = torch.nn.functional.cross_entropy(logits, batch.targets[0, place])
        wanted += float(weight[0, place] * surprise)
    assert float(loss_of(run.model, one, causal=True).detach()) == pytest.approx(wanted, rel=2e-2)


def test_masks_come_uniformly_or_from_the_right() -> None:
    """Fails if no sample is masked uniformly, or none roughly from the right, as in decoding."""
    for spreads, ordered in (((1, 0, 0, 0), False), ((0, 0, 0, 1), True)):
        data = trainer(spreads=spreads).data
        gaps = 0
        for _ in range(20):
            batch = data.batch("simple")
            for masked in batch.weight > 0:
                first = int(masked.nonzero()[0])
                gaps += int((~masked[first + 4 :]).sum())  # shown tokens after a mask, farther than the spread
            for weight in batch.weight:
                weighed = weight[weight > 0]
                assert len(weighed) <= 20 or (weighed[0] > 2 * weighed[-1]) == ordered
        assert (gaps == 0) == ordered


def test_next_token_steps_come_first_and_fade() -> None:
    """Fails if next-token steps do not come first, or still occur at the end of a run."""
    recipe = Recipe()
    shares = [sum(recipe.is_causal(step, p) for step in range(400)) / 400 for p in (0.05, 0.11, 0.5, 0.86, 0.99)]
    assert shares[0] == 1 and 0.4 < shares[1] < 0.6 and 0.15 < shares[2] < 0.35 and shares[3:] == [0, 0]


def test_the_loss_is_the_weighted_cross_entropy_of_the_right_rows() -> None:
    """Fails if masked rows are compared with other targets than their own, or Dream's shift is missing."""
    for name, shift in (("tiny", 0), ("tiny-dream", 1)):
        run = trainer(name)
        batch = run.data.batch("simple")
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            logits = run.model.logits(run.model(batch.ids, batch.positions, attend))
        wanted = torch.tensor(0.0)
        for row, column in batch.weight.nonzero().tolist():
            surprise = torch.nn.functional.cross_entropy(logits[row, column - shift], batch.targets[row, column])
            wanted += batch.weight[row, column] * surprise
        assert float(loss_of(run.model, batch).detach()) == pytest.approx(float(wanted), rel=1e-3)


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_resumed_run_ends_in_the_same_weights(name: str, tmp_path: Path) -> None:
    """Fails if an interruption changes the weights, or training depends on more than its seed."""
    straight, first, other = trainer(name), trainer(name), trainer(name, 1)
    for step in range(4):
        straight.update(step / 4)
        other.update(step / 4)
    for step in range(2):
        first.update(step / 4)
    first.save(tmp_path / "training.pt")
    resumed = trainer(name)
    resumed.load(tmp_path / "training.pt")
    for step in range(2, 4):
        resumed.update(step / 4)
    for (key, a), b in zip(straight.model.named_parameters(), resumed.model.parameters()):
        assert torch.equal(a, b), key
    exported = (run.average.module.parameters() for run in (resumed, other))
    for (key, a), b, c in zip(straight.average.module.named_parameters(), *exported):
        assert torch.equal(a, b), key
        assert a.ndim < 2 or not torch.equal(a, c), key
    assert resumed.loss == straight.loss


def test_what_is_exported_is_the_mean_of_late_weights() -> None:
    """Fails if the average equals the last weights, has another decay, or affects training."""
    run, name = trainer(average=0.5), "model.transformer.ff_out.weight"
    weights = []
    for step in range(12):
        run.update(step / 12)
        weights.append(run.model.state_dict()[name].double().clone())
    mean = weights[0]
    for step, weight in enumerate(weights[1:], 1):
        share = min(0.5, (1 + step) / (10 + step))
        mean = share * mean + (1 - share) * weight
    assert torch.allclose(run.average.module.state_dict()[name].double(), mean, atol=1e-6)
    assert not torch.allclose(weights[-1], mean, atol=1e-5)


def test_numbers_begin_close_to_their_neighbours() -> None:
    """Fails if initial embeddings of close numbers are not similar, or have another scale than other tokens'."""
    run = trainer()
    values = number_values(run.data.text.tokenizer)
    assert sorted(values.values()) == list(range(1000))
    rows = {value: run.model.model.transformer.wte.weight[token].detach() for token, value in values.items()}
    close = torch.stack([torch.cosine_similarity(rows[n], rows[n + 1], dim=0) for n in range(10, 990)])
    far = torch.stack([torch.cosine_similarity(rows[n], rows[n + 3], dim=0) for n in range(10, 990)])
    assert close.mean() > far.mean() + 0.1
    assert 0.8 < torch.stack(list(rows.values())).std() < 1.2


@pytest.mark.parametrize("name", EMBEDDED)
def test_what_the_head_learns_of_a_number_holds_for_others(name: str) -> None:
    """Fails if the head's rows of numbers are not restricted to the shared directions, or other rows are."""
    run = trainer(name)
    for step in range(3):
        run.update(step / 4)
    numbers = list(number_values(run.data.text.tokenizer))
    weights = run.average.module.state_dict()
    head = weights["model.transformer.ff_out.weight" if name == "tiny" else "lm_head.weight"]
    others = [token for token in range(len(head)) if token not in set(numbers)]
    assert torch.linalg.matrix_rank(head[numbers], rtol=1e-4) == 117 < head.shape[1]  # 100 endings, 9 hundreds, 4 waves
    assert torch.linalg.matrix_rank(head[others], rtol=1e-4) == head.shape[1]


def test_training_lowers_the_loss() -> None:
    """Fails if a few steps on one batch do not lower its loss, since gradients do not reach the weights."""
    run = trainer(warmup=0.01)
    batch = run.data.batch("simple")
    before = float(loss_of(run.model, batch).detach())
    run.data.batch = lambda phase, causal: batch  # type: ignore[method-assign]
    for step in range(8):
        run.update(step / 16)
    assert float(loss_of(run.model, batch).detach()) < 0.7 * before


def test_the_script_writes_a_checkpoint_that_opens(tmp_path: Path) -> None:
    """Fails if the script does not write a checkpoint in the family's format."""
    command = ["tiny-dream", "--out", str(tmp_path), "--steps", "1", "--threads", "1", "--no-compile"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    checkpoint = Checkpoint.open(tmp_path)
    assert (checkpoint.architecture, checkpoint.dtype) == ("DreamModel", "float32")
    resumed = CliRunner().invoke(main, [*command[:4], "2", *command[5:], "--resume"])
    assert resumed.exit_code == 0, resumed.output
    missing = CliRunner().invoke(main, ["tiny", "--out", str(tmp_path / "new"), "--steps", "1", "--resume"])
    assert missing.exit_code != 0


def test_a_run_may_begin_with_trained_weights(tmp_path: Path) -> None:
    """Fails if further training does not start from the given weights or with endings, or differs when resumed."""
    recipe = Recipe.further(0)
    assert [recipe.phase(at) for at in (0.0, 0.39, 0.41, 0.99)] == ["stops", "stops", "all", "all"]
    assert not any(recipe.is_causal(step, at) for step, at in enumerate((0.0, 0.01, 0.5, 0.99)))
    options = ["--threads", "1", "--no-compile", "--start", str(SHIPPED / "tiny")]
    result = CliRunner().invoke(main, ["tiny", "--out", str(tmp_path), "--steps", "1", *options])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "tokenizer.json").read_text("utf-8") == (SHIPPED / "tiny/tokenizer.json").read_text("utf-8")
    before, after = (load_file(path / "model.safetensors") for path in (SHIPPED / "tiny", tmp_path))
    changes = [float((after[name] - before[name]).abs().max()) for name in before]
    assert 0 < max(changes) < 0.1
    resumed = trainer()
    resumed.load(tmp_path / "training.pt")
    assert resumed.recipe == resumed.data.recipe == recipe
    other = CliRunner().invoke(main, ["tiny-dream", "--out", str(tmp_path), "--steps", "1", *options])
    assert other.exit_code == 2 and "not a checkpoint of tiny-dream" in other.output


@pytest.mark.parametrize("name", EMBEDDED)
def test_endings_are_asked_for_as_often_as_not(name: str) -> None:
    """Fails if the end of an answer can be predicted without its text, or has a small weight."""
    data = trainer(name, endings=(0, 0, 0, 1)).data
    ends = []
    for _ in range(200):
        batch = data.batch("stops")
        for ids, targets, weight in zip(batch.ids, batch.targets, batch.weight):
            place = int(weight.argmax())
            assert weight[place] >= 0.25 * weight.sum() * 0.999
            masked = ids == data.text.mask
            assert masked[place:].all() and not masked[: max(0, place - BLOCK)].any()
            ends.append(int(targets[place]) == data.text.eos)
    assert len(ends) > 100 and 0.35 < sum(ends) / len(ends) < 0.65


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_checkpoint_is_small_and_whole(name: str) -> None:
    """Fails if an embedded checkpoint is too large, or its tokenizer does not match its config.json."""
    directory = SHIPPED / name
    assert sum(path.stat().st_size for path in directory.iterdir()) < 12e6
    checkpoint = Checkpoint.open(directory)
    text = Text(Tokenizer.from_file(str(directory / "tokenizer.json")), directory)
    assert (checkpoint.config.mask_token_id, checkpoint.config.eos_token_id) == (text.mask, text.eos)
    assert 600 < text.tokenizer.get_vocab_size() <= checkpoint.config.vocab_size
