"""Requests and arguments of lm-evaluation-harness: read as people write them, refused before anything is decoded."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.api.instance import Instance

from dpad.evaluation.arguments import Wanted
from dpad.evaluation.harness import DpadLM
from dpad.runtime.errors import EngineError, InvalidRequest

GREEDY = {"temperature": 0.0, "top_k": None, "top_p": None}
SMALL: dict[str, Any] = {"threads": 1, "mc_samples": 2, "gen_length": 32, "block_length": 16, "window": 16}


@pytest.fixture(scope="module")
def model(eval_bundle: Path) -> Iterator[DpadLM]:
    yield DpadLM(str(eval_bundle), **SMALL)


def ask(kind: str, *arguments: Any) -> list[Instance]:
    metadata = [("own", number, 1) for number in range(len(arguments))]
    return [Instance(kind, {}, each, 0, facts) for each, facts in zip(arguments, metadata)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "num_beams: 1",
        "num_beams: '1'",
        "num_beams: 1.0",
        "num_return_sequences: 1",
        "n: 1",
        "repetition_penalty: 1.0",
        "length_penalty: 1",
        "no_repeat_ngram_size: 0",
        "min_p: 0",
        "min_p: 0e-3",
        "typical_p: 1",
        "top_k: 0",
        "top_k: -1",
        "top_p: 1",
        "presence_penalty: 0",
        "frequency_penalty: 0.0",
        "logprobs: null",
        "logprobs: false",
        "bad_words_ids: []",
        "logit_bias: {}",
        "suppress_tokens: none",
        "do_sample: 'False'",
        "do_sample: 0",
        "temperature: '0.0'",
        "temperature: 0.7\ndo_sample: no",
        "pad_token_id: 0",
        "use_cache: true",
        "early_stopping: true",
        "skip_special_tokens: true",
        "ignore_eos: false",
        "max_length: null",
        "until: null",
        "until: ''",
        "until: ['']",
        "stop: []",
    ],
)
def test_arguments_that_change_nothing_are_taken(text: str) -> None:
    """Fails if a task of another model's habits is refused though it asks for what is done anyway."""
    wanted = Wanted(yaml.safe_load(text), 32)
    assert (wanted.tokens, wanted.options, wanted.stops) == (32, GREEDY, [])


@pytest.mark.parametrize(
    ("text", "tokens", "options", "stops"),
    [
        ("max_gen_toks: '256'", 256, GREEDY, []),
        ("max_gen_toks: 2.56e+2", 256, GREEDY, []),
        ("max_new_tokens: 16", 16, GREEDY, []),
        ("max_new_tokens: 16\nmax_gen_toks: 8", 8, GREEDY, []),
        ("max_gen_toks: null\nmax_tokens: 8", 8, GREEDY, []),
        ("until: a", 32, GREEDY, ["a"]),
        ("until: [a, '', b]\nstop: c", 32, GREEDY, ["a", "b", "c"]),
        ("temperature: 1e-1", 32, {"temperature": 0.1}, []),
        ("temperature: '5e-1'\ntop_k: '20'\ntop_p: 0.9", 32, {"temperature": 0.5, "top_k": 20, "top_p": 0.9}, []),
        ("temperature: 1\ntop_k: -1\ntop_p: 1", 32, {"temperature": 1, "top_k": None, "top_p": None}, []),
        ("do_sample: 'true'\ntemperature: 1", 32, {"temperature": 1}, []),
        ("do_sample: true", 32, GREEDY, []),
        ("seed: '7'\neos_token_id: [3, '4']", 32, {**GREEDY, "seed": 7, "eos_token_ids": (3, 4)}, []),
    ],
)
def test_arguments_are_read(text: str, tokens: int, options: dict[str, Any], stops: list[str]) -> None:
    """Fails if a number that YAML takes for text, or an argument's other name, does not count."""
    wanted = Wanted(yaml.safe_load(text), 32)
    assert (wanted.tokens, wanted.options, wanted.stops) == (tokens, options, stops)


BAD: list[tuple[Any, str]] = [
    ({"num_beams": 4}, "num_beams 4 .*only 1"),
    ({"num_beams": "four"}, "num_beams 'four'"),
    ({"num_beams": True}, "num_beams True"),
    ({"repetition_penalty": 1.2}, "repetition_penalty 1.2"),
    ({"min_p": 0.05}, "min_p 0.05 .*give top_k or top_p"),
    ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size 3"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"max_length": 100}, "max_length 100 .*give max_gen_toks"),
    ({"min_tokens": 5}, "min_tokens 5"),
    ({"ignore_eos": True}, "ignore_eos True"),
    ({"skip_special_tokens": False}, "skip_special_tokens False"),
    ({"max_gen_tok": 5}, "'max_gen_tok' .*did you mean max_gen_toks"),
    ({"foo": None}, "'foo'"),
    ({1: 2, "b": 3}, "argument 1 "),
    ({"max_gen_toks": 0}, "max_gen_toks 0 must be 1 or more"),
    ({"max_gen_toks": -5}, "max_gen_toks -5"),
    ({"max_gen_toks": 2.5}, "max_gen_toks 2.5 is not an integer"),
    ({"max_gen_toks": True}, "max_gen_toks True"),
    ({"max_gen_toks": [5]}, "max_gen_toks"),
    ({"max_gen_toks": "many"}, "max_gen_toks 'many'"),
    ({"max_gen_toks": 10**5000}, "max_gen_toks of 16610 bits"),
    ({"max_gen_toks": float("nan")}, "max_gen_toks nan"),
    ({"temperature": 10**5000}, "temperature"),
    ({"temperature": "hot"}, "temperature 'hot'"),
    ({"temperature": -1}, "temperature -1"),
    ({"temperature": float("inf")}, "temperature inf"),
    ({"top_k": -2}, "top_k -2"),
    ({"top_p": 1.5}, "top_p 1.5"),
    ({"top_p": 0}, "top_p 0"),
    ({"do_sample": "perhaps"}, "do_sample 'perhaps'"),
    ({"do_sample": 2}, "do_sample 2"),
    ({"until": 5}, "until 5"),
    ({"until": ["a", 5]}, "until"),
    ({"until": {"a": 1}}, "until"),
    ({"seed": "x"}, "seed 'x'"),
    ({"eos_token_id": [None]}, "eos_token_id None"),
    ({"x" * 10**6: "y" * 10**6}, "xxx"),
    ([], "names with values"),
    (None, "names with values"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_arguments_that_cannot_be_served_are_named(arguments: Any, said: str) -> None:
    """Fails if an argument that would change the text is ignored, or refused without its name and value."""
    with pytest.raises(InvalidRequest, match=said) as raised:
        Wanted(arguments, 32)
    assert len(str(raised.value)) < 500


LATE: list[tuple[str, Any, str]] = [
    ("generate_until", ("w1 " * 3000, {}), "shorten it"),
    ("generate_until", ("w1 " * 250, {}), "a canvas of"),
    ("generate_until", ("w1", {"max_gen_toks": 10**6}), "a canvas of"),
    ("generate_until", ("w1", {"num_beams": 3}), "num_beams 3"),
    ("generate_until", ("w1", {"do_sample": True, "temperature": 1e-9}), "temperature 1e-09"),
    ("generate_until", ("w1", {"max_gen_toks": 8, "eos_token_id": 10**6}), "eos_token_ids"),
    ("generate_until", ("w1 [MASK]\ud800", {}), "Unicode"),
    ("generate_until", (None, {}), "a context is text, not None"),
    ("generate_until", ("w1", {}, {"visual": []}), "images and audio"),
    ("loglikelihood", ("w1", "w2 " * 3000), "shorten it"),
    ("loglikelihood", ("w1 " * 200, "w2 " * 200), "a canvas of"),
    ("loglikelihood", ("w1", ""), "without tokens"),
    ("loglikelihood", ("w1", 5), "a continuation is text, not 5"),
    ("loglikelihood_rolling", (5,), "a context is text, not 5"),
    ("loglikelihood_rolling", ("\ud800",), "Unicode"),
]


@pytest.mark.parametrize(("kind", "last", "said"), LATE)
def test_a_request_is_refused_before_the_first_is_decoded(
    model: DpadLM, monkeypatch: pytest.MonkeyPatch, kind: str, last: Any, said: str
) -> None:
    """Fails if hours of answers are thrown away for a request that could be seen to be too long."""
    good = {"generate_until": ("w1", {}), "loglikelihood": ("w1", "w2"), "loglikelihood_rolling": ("w1",)}[kind]
    monkeypatch.setattr(model.model.engine, "step", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InvalidRequest, match=rf"^request 3 of 3 \(task own, document 2\): .*{said}"):
        getattr(model, kind)(ask(kind, good, good, last))


def test_long_contexts_are_cut_where_that_is_asked_for(eval_bundle: Path) -> None:
    """Fails if `truncation` refuses, or keeps another part of a context than its end."""
    model = DpadLM(str(eval_bundle), truncation="true", check_greedy=False, **SMALL)
    room = model.contract.max_length - 32
    words = [f"w{number % 90 + 5}" for number in range(room + 300)]
    texts = model.generate_until(ask("generate_until", (" ".join(words), {}), (" ".join(words[-room:]), {})))
    assert texts[0] == texts[1]
    room = model.contract.max_length - 2
    pairs = [(" ".join(part), " w7 w8") for part in (words, words[-room:])]
    likelihoods = model.loglikelihood(ask("loglikelihood", *pairs))
    assert likelihoods[0] == likelihoods[1]


def test_empty_contexts_and_texts_have_likelihoods(model: DpadLM) -> None:
    """Fails if a choice without a context, or a text without words, is an error of Python's."""
    assert model.loglikelihood(ask("loglikelihood", ("", "w5 w6")))[0][0] < 0
    assert model.loglikelihood_rolling(ask("loglikelihood_rolling", ("",))) == [0.0]


def test_the_same_sampled_request_again_is_another_draw(model: DpadLM) -> None:
    """Fails if a task that repeats its questions gets the same sample each time, or another in the next run."""
    requests = ask("generate_until", *[("w5 w6", {"temperature": 2.0, "max_gen_toks": 32})] * 4)
    texts = model.generate_until(requests)
    assert len(set(texts)) == 4 and texts == model.generate_until(requests)
    assert texts[0] == model.generate_until(requests[:1])[0]
    greedy = model.generate_until(ask("generate_until", *[("w5 w6", {})] * 2))
    assert greedy[0] == greedy[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pretrained": "x"}, "pretrained is another model's: give bundle=DIR"),
        ({"dtype": "float16"}, "choose one with engine=NAME"),
        ({"trust_remote_code": True}, "leave it out"),
        ({"tokenizer": "x"}, "a bundle brings its tokenizer"),
        ({"max_length": 5}, "--max-length"),
        ({"mc_sample": 5}, "did you mean mc_samples"),
        ({"mc_samples": 0}, "mc_samples 0"),
        ({"mc_samples": "x"}, "mc_samples 'x'"),
        ({"mc_seed": -1}, "mc_seed -1"),
        ({"check_greedy": "x"}, "check_greedy 'x'"),
        ({"gen_length": "x"}, "gen_length 'x'"),
        ({"threads": "x"}, "threads 'x'"),
        ({"cache": True}, "cache True"),
        ({"schedule": 5}, "schedule"),
        ({"eos_token_ids": "x"}, "eos_token_ids 'x'"),
        ({"batch_size": 0}, "batch_size 0 must be 1 or more"),
        ({"batch_size": -1}, "batch_size -1"),
        ({"batch_size": "all"}, "batch_size 'all'"),
        ({"batch_size": 1.5}, "batch_size 1.5"),
        ({"max_batch_size": "x"}, "max_batch_size 'x'"),
    ],
)
def test_model_arguments_of_a_wrong_kind_are_named(eval_bundle: Path, arguments: dict[str, Any], said: str) -> None:
    """Fails if a model argument by habit, or of a wrong type, gives an error of Python's or none at all."""
    with pytest.raises(InvalidRequest, match=said):
        DpadLM(str(eval_bundle), **arguments)
    with pytest.raises(InvalidRequest, match="give --model_args bundle=DIR"):
        DpadLM()


def test_model_arguments_may_be_text(eval_bundle: Path, model: DpadLM) -> None:
    """Fails if the command line's numbers, truths and `none` are not those of Python."""
    line = f"bundle={eval_bundle},schedule=none,cache=none,gen_length='32',block_length=16,threshold='9e-1',threads='1'"
    read = DpadLM.create_from_arg_string(f"{line},batch_size='auto:4',mc_samples='2',early_termination=true")
    text = {name: str(value) for name, value in SMALL.items()}
    assert DpadLM(str(eval_bundle), **text).options == model.options
    assert (read.options.cache, read.options.gen_length, read.options.threshold) == ("none", 32, 0.9)
    assert read.batch_size == read.contract.max_batch


RUN = """
import json, os, signal, sys
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from dpad.evaluation.harness import DpadLM
bundle, cache, kind, how = sys.argv[1:]
model = DpadLM(bundle, threads=1, mc_samples=2, gen_length=32, block_length=16, window=16, check_greedy=False)
step, engine, steps = model.model.engine.step, model.model.engine, []
def counted(*inputs, **more):
    steps.append(1)
    if len(steps) == {"generate_until": 40, "loglikelihood": 6}[kind] and how != "whole":
        if how == "fails":
            raise RuntimeError("the engine fell over")
        os.kill(os.getpid(), getattr(signal, how))
    return step(*inputs, **more)
engine.step = counted
ends = {"generate_until": {"max_gen_toks": 16}, "loglikelihood": " w9 w8"}
args = [(f"w{number} w7", ends[kind]) for number in range(8, 20)]
asked = [Instance(kind, {}, each, 0, ("own", number, 1)) for number, each in enumerate(args)]
print(json.dumps([getattr(CachingLM(model, cache), kind)(asked), len(steps)]))
"""


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("generate_until", "fails"),
        ("generate_until", "SIGINT"),
        ("generate_until", "SIGKILL"),
        ("loglikelihood", "SIGKILL"),
    ],
)
def test_finished_answers_survive(eval_bundle: Path, tmp_path: Path, kind: str, how: str) -> None:
    """Fails if a failure, Ctrl-C or a kill costs what was finished before it, with the harness's --use_cache."""

    def run(cache: str, how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", RUN, str(eval_bundle), str(tmp_path / cache), kind, how]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    stopped = run("kept", how)
    assert stopped.returncode == {"SIGKILL": -signal.SIGKILL, "SIGINT": -signal.SIGINT, "fails": 1}[how]
    if how != "SIGKILL":
        assert "answers were finished, and are kept" in stopped.stderr
    rest, steps = json.loads(run("kept", "whole").stdout)
    whole, all_steps = json.loads(run("other", "whole").stdout)
    assert rest == whole and 0 < steps < all_steps


def test_a_failure_without_a_cache_says_what_is_lost(model: DpadLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if nobody is told how answers are kept."""

    def fail(*inputs: object, **more: object) -> None:
        raise EngineError("the engine fell over")

    monkeypatch.setattr(model.model.engine, "step", fail)
    with pytest.raises(EngineError) as raised:
        model.generate_until(ask("generate_until", ("w1", {})))
    said = "0 of 1 answers were finished, and are lost: with --use_cache FILE they would be kept"
    assert raised.value.__notes__ == [said]


@pytest.mark.slow
def test_the_command_line_says_it_in_one_line(eval_bundle: Path, tmp_path: Path) -> None:
    """Fails if a slip in the arguments is answered by a stack."""
    command = [sys.executable, "-m", "dpad.evaluation.harness", "--model", "dpad", "--model_args"]
    ran = subprocess.run(
        [*command, f"pretrained={eval_bundle}", "--tasks", "gsm8k"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("dpad: InvalidRequest: model argument pretrained is another model's")
