"""`dpad` inside the real lm-evaluation-harness, offline, on tasks written here."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import yaml
from bundles import TEMPLATE
from click.testing import CliRunner
from estimating import bounds
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager

from dpad import Full, Gaussian, Request
from dpad.cli import main
from dpad.evaluation.harness import DpadLM
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.errors import InvalidRequest

ROWS = [
    {"question": f"w{i + 8} w{i + 30} w{2 * i + 8}", "answer": f"w{i + 11} w{i + 12}", "other": "w9 w9"}
    for i in range(5)
]
COMMON = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
TASKS = {
    "own_text": (
        'output_type: generate_until\ndoc_to_text: "{{question}} w5"\ndoc_to_target: "{{answer}}"\n'
        "generation_kwargs:\n  until: [w112]\n  max_gen_toks: 20\n"
        "metric_list:\n  - {metric: exact_match, aggregation: mean, higher_is_better: true}\n"
    ),
    "own_choice": (
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{[answer, other]}}"\n'
        "doc_to_target: 0\nmetric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    ),
    "own_rolling": (
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{question}} {{answer}}"\n'
        "metric_list:\n  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}\n"
    ),
}


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    for name, body in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{COMMON.format(data=folder / 'rows.jsonl')}{body}")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Disable the hub, and use a new cache of data sets; this holds for child processes too."""
    cache = tmp_path_factory.getbasetemp() / "datasets"
    for name, value in (("HF_DATASETS_OFFLINE", "1"), ("HF_HUB_OFFLINE", "1"), ("HF_HOME", str(cache))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)


@pytest.fixture(scope="module")
def model(eval_bundle: Path) -> Iterator[DpadLM]:
    """The harness's model with a canvas of two blocks and few Monte-Carlo samples."""
    yield DpadLM(str(eval_bundle), threads=1, mc_samples=8, gen_length=32, block_length=16, window=16, batch_size=3)


def ask(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]


def evaluate(model: DpadLM, folder: Path, task: str, **settings: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = simple_evaluate(
        model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True, **settings
    )
    assert isinstance(results, dict)
    return results


def test_the_harness_finds_it_by_name() -> None:
    """Fails if importing the module does not register the model."""
    assert get_model("dpad") is DpadLM


def test_texts_are_what_the_model_writes(model: DpadLM, task_folder: Path) -> None:
    """Fails if texts are not cut at stop sequences and lengths, or are not in the order of requests."""
    results = evaluate(model, task_folder, "own_text")
    assert results["results"]["own_text"]["exact_match,none"] == 0
    samples = sorted(results["samples"]["own_text"], key=lambda sample: sample["doc_id"])
    expected = []
    for row in ROWS:
        prompt = model.model.codec.encode(f"{row['question']} w5")
        answer = model.model.generate(
            Request(tuple(prompt)), gen_length=32, block_length=16, schedule=Gaussian(window=16)
        )
        expected.append(model.model.codec.decode(answer.token_ids[:20]).split("w112")[0])
    assert [sample["resps"][0][0] for sample in samples] == expected
    assert len(set(expected)) > 1
    assert any(len(text.split()) < 20 for text in expected)


def test_requests_of_several_kinds_keep_their_order(model: DpadLM) -> None:
    """Fails if answers with different generation arguments are mixed up, or affect each other."""
    arguments = [
        (
            f"w{i + 5} w{i + 9}",
            {"max_gen_toks": (16, 32)[i % 2], "do_sample": i % 3 == 0, "temperature": 0.5, "until": "w1"},
        )
        for i in range(7)
    ]
    together = model.generate_until(ask("generate_until", *arguments))
    assert together == [model.generate_until(ask("generate_until", each))[0] for each in arguments]
    greedy = [
        model.generate_until(ask("generate_until", (text, {"max_gen_toks": 16 + 16 * (i % 2), "until": ["w1"]})))
        for i, (text, _) in enumerate(arguments)
    ]
    assert [text for i, text in enumerate(together) if i % 3] == [text for i, (text,) in enumerate(greedy) if i % 3]
    assert any(text != together[i] for i, (text,) in enumerate(greedy) if i % 3 == 0), "nothing was sampled"
    with pytest.raises(InvalidRequest, match="num_beams"):
        model.generate_until(ask("generate_until", ("w1", {"num_beams": 4})))


def test_choices_are_ranked_by_the_bound(model: DpadLM, task_folder: Path) -> None:
    """Fails if context and continuation are split at a wrong place, or the bound is not that of the whole text."""
    results = evaluate(model, task_folder, "own_choice")
    samples = sorted(results["samples"]["own_choice"], key=lambda sample: sample["doc_id"])
    right = []
    for sample, row in zip(samples, ROWS):
        expected = []
        for choice in (row["answer"], row["other"]):
            words = [int(word[1:]) for word in choice.split()]
            context = [int(word[1:]) for word in row["question"].split()]
            options = GenerationOptions(gen_length=2, block_length=2, schedule=Full())
            expected.append(-bounds(model.model.engine, context, words, options, 8, (0,)).mean())
        # The harness stores numbers as text in its samples.
        assert [float(answer[0][0]) for answer in sample["resps"]] == pytest.approx(expected, abs=1e-4)
        right.append(float(np.argmax(expected) == 0))
    assert results["results"]["own_choice"]["acc,none"] == pytest.approx(np.mean(right))


def test_greedy_is_what_decoding_writes(model: DpadLM) -> None:
    """Fails if a continuation counts as greedy that greedy decoding, token by token, does not write."""
    context = "w13 w14 w15"
    options: dict[str, Any] = {"gen_length": 4, "block_length": 4, "decoder": "fixed", "cache": "none"}
    answer = model.model.generate(Request((13, 14, 15)), schedule=Full(), **options)
    words = [f"w{token}" for token in answer.canvas[3:]]
    assert all(token > 4 for token in answer.canvas), "a word that the tokenizer does not know"
    pairs = [(context, " " + " ".join(words)), (context, " " + " ".join([*words[:3], "w7"]))]
    answers = model.loglikelihood(ask("loglikelihood", *pairs))
    assert [greedy for _, greedy in answers] == [True, False]
    moved = model.loglikelihood(ask("loglikelihood", (f"{context} ", " ".join(words))))
    assert moved[0] == answers[0], "a space at the end of the context belongs to the continuation"


def test_rolling_texts_are_scored_in_pieces(model: DpadLM, task_folder: Path) -> None:
    """Fails if long texts are truncated, or the bounds of their pieces are not added."""
    size = model.contract.max_length
    words = [5 + i % 90 for i in range(size + 40)]
    pieces = [words[:size], words[size:]]
    text = " ".join(f"w{word}" for word in words)
    total = 0.0
    for piece in pieces:
        options = GenerationOptions(gen_length=len(piece), block_length=len(piece), schedule=Full())
        total -= float(bounds(model.model.engine, [], piece, options, 8, (0,)).mean())
    assert model.loglikelihood_rolling(ask("loglikelihood_rolling", (text,))) == [pytest.approx(total, rel=1e-4)]
    found = evaluate(model, task_folder, "own_rolling")["results"]["own_rolling"]["word_perplexity,none"]
    assert 1 < found < math.inf


def test_chats_are_laid_out_by_the_bundle(model: DpadLM, eval_bundle: Path, task_folder: Path) -> None:
    """Fails if the harness does not use the bundle's chat template, or special tokens are added twice."""
    chatting = DpadLM(str(eval_bundle), threads=1, gen_length=32, block_length=16, window=16)
    results = evaluate(chatting, task_folder, "own_text", apply_chat_template=True)
    assert chatting.chat_template(True) == model.model.codec.template == TEMPLATE
    assert chatting.chat_template(False) is None
    sample = next(sample for sample in results["samples"]["own_text"] if sample["doc_id"] == 2)
    prompt = f"{ROWS[2]['question']} w5"
    assert sample["arguments"][0][0] == f"user {prompt} assistant"
    answer = chatting.model.generate(prompt, gen_length=32, block_length=16, schedule=Gaussian(window=16))
    assert sample["resps"][0][0] == chatting.model.codec.decode(answer.token_ids[:20]).split("w112")[0]
    history = [{"role": "user", "content": "w8"}]
    assert chatting.apply_chat_template(history, add_generation_prompt=False) == "user w8 "
    assert chatting.tokenizer_name == model.tokenizer_name
    with pytest.raises(InvalidRequest, match="named 'rag'"):
        chatting.chat_template("rag")


def test_its_gsm8k_and_ours_agree(eval_bundle: Path, model: DpadLM, tmp_path: Path) -> None:
    """Fails if prompts, answers, scores or their errors differ between `dpad eval` and the harness's own task."""
    task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k.yaml").read_text())
    for name in ("dataset_name", "training_split", "fewshot_split", "tag"):
        del task[name]
    task |= {"task": "own_gsm8k", "dataset_path": "json", "test_split": "test", "num_fewshot": 0}
    task["dataset_kwargs"] = {"data_files": {"test": str(tmp_path / "rows.jsonl")}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(task))
    rows = [{"question": f"w{i + 9} w{2 * i + 30}", "answer": f"w8\n#### {-i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ours = [*("--task", "gsm8k", "--data", str(tmp_path / "rows.jsonl"), "--raw", "--json", "--batch-size", "2")]
    ours += [*("--gen-length", "32", "--block-length", "16", "--window", "16", "--out", str(tmp_path / "out"))]
    assert CliRunner().invoke(main, ["eval", str(eval_bundle), *ours]).exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "out.samples.jsonl").read_text().splitlines()[1:]]
    texts = [line["text"] for line in sorted(lines, key=lambda line: line["index"])]
    for row, text in zip(rows[::2], texts[::2]):  # make half of the answers right
        row["answer"] = f"w8\n#### {(re.findall('[0-9]+', text) or [0])[-1]}"
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "out.samples.jsonl").unlink()
    metrics = json.loads(CliRunner().invoke(main, ["eval", str(eval_bundle), *ours]).stdout)["metrics"]
    theirs = evaluate(model, tmp_path, "own_gsm8k")
    samples = sorted(theirs["samples"]["own_gsm8k"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in samples if sample["filter"] == "strict-match"] == texts
    for name, metric in metrics.items():
        key = f"exact_match,{name.replace('_', '-')}"
        assert metric["value"] == pytest.approx(theirs["results"]["own_gsm8k"][key])
    assert 0 < metrics["flexible_extract"]["value"] < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"beams": 2}, "beams"),
        ({"schedule": "cosine"}, "schedule 'cosine'"),
        ({"gen_length": 33}, "does not divide"),
    ],
)
def test_model_arguments_are_checked(eval_bundle: Path, arguments: dict[str, Any], said: str) -> None:
    """Fails if a misspelt argument is ignored."""
    with pytest.raises(InvalidRequest, match=said):
        DpadLM(str(eval_bundle), **arguments)


@pytest.mark.parametrize("limits", [{"batch_size": 1}, {"batch_size": 100}, {"batch_size": "auto"}])
def test_batches_may_be_larger_than_a_pass(model: DpadLM, eval_bundle: Path, limits: dict[str, Any]) -> None:
    """Fails if the number of requests in a call changes an answer, or is limited by the engine."""
    settings: dict[str, Any] = {"threads": 1, "mc_samples": 8, "gen_length": 32, "block_length": 16, "window": 16}
    other = DpadLM(str(eval_bundle), **settings, **limits)
    asked = ask("generate_until", *[(f"w{number} w9", {"until": ["w1"]}) for number in range(8, 15)])
    assert other.generate_until(asked) == model.generate_until(asked)
    pairs = ask("loglikelihood", *[(f"w{number} w9", "w7") for number in range(8, 11)])
    for ours, theirs in zip(other.loglikelihood(pairs), model.loglikelihood(pairs), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert DpadLM(str(eval_bundle), **settings, **limits, max_batch_size=3).batch_size <= 3


def test_its_command_line_is_the_harness_s_own(eval_bundle: Path, task_folder: Path, tmp_path: Path) -> None:
    """Fails if the real command line does not know the model, its arguments, or the chat template."""
    command = [sys.executable, "-m", "dpad.evaluation.harness", "--model", "dpad"]
    command += [
        "--model_args",
        f"bundle={eval_bundle},threads=1,gen_length=32,block_length=16,schedule=none,mc_samples=2",
    ]
    command += ["--tasks", "own_text,own_choice", "--include_path", str(task_folder), "--apply_chat_template"]
    command += ["--batch_size", "4", "--output_path", str(tmp_path / "results.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "|own_choice|" in ran.stdout
    (written,) = tmp_path.glob("*.json")
    assert json.loads(written.read_text())["results"].keys() == {"own_text", "own_choice"}
