"""Arguments from lm-evaluation-harness, for requests and for the model, in the forms that users write."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dpad.evaluation.arguments import Wanted
from dpad.evaluation.harness import DpadLM
from dpad.runtime.errors import InvalidRequest

GREEDY = {"temperature": 0.0, "top_k": None, "top_p": None}
SMALL: dict[str, Any] = {"threads": 1, "mc_samples": 2, "gen_length": 32, "block_length": 16, "window": 16}


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
        "top_p: 0.0\ntop_k: -5\ndo_sample: false",
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
    """Fails if an argument that asks for the default behaviour is refused."""
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
    """Fails if a number that YAML reads as text, or another name of an argument, is ignored."""
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
    ({"max_gen_toks": "1_0"}, "max_gen_toks '1_0' is not a number"),
    ({"temperature": "0_1"}, "temperature '0_1'"),
    ({"block_length": 8}, r"block_length \(8\) .*give it in --model_args, as block_length=VALUE"),
    ({"steps": 8}, "give it in --model_args"),
    ({"threshold": None}, "give it in --model_args"),
    ({"cache": "dual"}, "give it in --model_args"),
    ({"schedule": "none"}, "give it in --model_args"),
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
    """Fails if an unsupported argument is ignored, or the error lacks its name and value."""
    with pytest.raises(InvalidRequest, match=said) as raised:
        Wanted(arguments, 32)
    assert len(str(raised.value)) < 500


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
    """Fails if another tool's model argument, or one of a wrong type, gives an error of Python's or none."""
    with pytest.raises(InvalidRequest, match=said):
        DpadLM(str(eval_bundle), **arguments)
    with pytest.raises(InvalidRequest, match="give --model_args bundle=DIR"):
        DpadLM()


def test_model_arguments_may_be_text(eval_bundle: Path) -> None:
    """Fails if numbers, booleans or `none` as text, from the command line, are not converted."""
    line = f"bundle={eval_bundle},schedule=none,cache=none,gen_length='32',block_length=16,threshold='9e-1',threads='1'"
    read = DpadLM.create_from_arg_string(f"{line},batch_size='auto:4',mc_samples='2',early_termination=true")
    text = {name: str(value) for name, value in SMALL.items()}
    assert DpadLM(str(eval_bundle), **text).options == DpadLM(str(eval_bundle), **SMALL).options
    assert (read.options.cache, read.options.gen_length, read.options.threshold) == ("none", 32, 0.9)
    assert read.batch_size > read.contract.max_batch


@pytest.mark.parametrize("nothing", [None, "None", ""])
def test_a_model_argument_that_is_none_is_the_default(eval_bundle: Path, nothing: Any) -> None:
    """Fails if an empty model argument is not replaced by its default."""
    plain = DpadLM(str(eval_bundle), preset=None)
    names = ("engine", "threads", "mc_samples", "mc_seed", "check_greedy", "truncation", "batch_size", "seed")
    more = ("temperature", "threshold", "factor", "gen_length", "block_length", "decoder", "pace", "early_termination")
    limits = ("steps", "top_k", "top_p", "window", "eos_token_ids", "k", "scale", "count")
    given: dict[str, Any] = dict.fromkeys((*names, *more, *limits), nothing)
    read = DpadLM(str(eval_bundle), **given)
    assert (read.options, read.draws, read.seed) == (plain.options, plain.draws, plain.seed)
    assert (read.model.engine.name, read.batch_size) == (plain.model.engine.name, plain.batch_size)
