"""Invalid requests are refused before any work, with the value and the limit."""

import dataclasses
from typing import Any, Unpack, get_type_hints

import numpy as np
import pytest
from checkpoints import MASK, VOCAB
from hypothesis import given
from hypothesis import strategies as st

from dpad.runtime.cache import CACHES
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.options import DECODERS, GenerationOptions, Options
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import decode
from dpad.runtime.decoding.suffix import Explicit, Gaussian, Uniform
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.slots import Slots
from dpad.runtime.engines.step import StepInputs, StepOutputs
from dpad.runtime.errors import EngineError, InvalidRequest, ManifestError
from dpad.runtime.model import DiffusionModel

CONTRACT = StepContract("llada", 2, 2, 1, 32, VOCAB, MASK, 1, 0, 4, 200, 32, 64, False)


class Untouched(Engine):
    """An engine that must not be called."""

    name, contract, dtype = "untouched", CONTRACT, "float32"

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(4 * 200 + 1)

    def _step(self, inputs: StepInputs) -> StepOutputs:
        """Fail the test."""
        raise AssertionError("work was done")


# Option values -> words of the message: the value, and the limit if there is one.
BAD_OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no new tokens": ({"gen_length": 0}, ("gen_length 0", "1")),
    "negative length": ({"gen_length": -32}, ("-32", "1")),
    "no block": ({"block_length": 0}, ("block_length 0", "1")),
    "block does not divide": ({"gen_length": 100, "block_length": 32}, ("32", "100")),
    "block over length": ({"gen_length": 16, "block_length": 32}, ("32", "16")),
    "decoder": ({"decoder": "greedy"}, ("'greedy'", *DECODERS)),
    "cache": ({"cache": "both"}, ("'both'", *CACHES)),
    "threshold over 1": ({"threshold": 1.5}, ("1.5", "1")),
    "threshold negative": ({"threshold": -0.1}, ("-0.1", "0")),
    "threshold nan": ({"threshold": float("nan")}, ("nan",)),
    "factor 0": ({"factor": 0.0}, ("factor 0.0", "0")),
    "factor nan": ({"factor": float("nan")}, ("nan",)),
    "steps 0": ({"steps": 0}, ("steps 0", "1")),
    "steps negative": ({"decoder": "fixed", "steps": -4}, ("steps -4", "1")),
    "steps do not divide": ({"decoder": "fixed", "steps": 6}, ("steps 6", "4 blocks")),
    "steps over tokens": ({"decoder": "fixed", "pace": "noise", "steps": 10**12}, ("steps", "at most gen_length 128")),
    "pace unknown": ({"pace": "linear"}, ("'linear'", "even, noise")),
    "pace no name": ({"pace": 1}, ("pace 1",)),
    "temperature negative": ({"temperature": -1.0}, ("-1.0", "0")),
    "temperature infinite": ({"temperature": float("inf")}, ("inf",)),
    "temperature nan": ({"temperature": float("nan")}, ("nan",)),
    "top_k 0": ({"temperature": 1.0, "top_k": 0}, ("top_k 0", "1")),
    "top_p 0": ({"temperature": 1.0, "top_p": 0.0}, ("top_p 0.0",)),
    "top_p over 1": ({"temperature": 1.0, "top_p": 1.1}, ("top_p 1.1", "1")),
    "filters without temperature": ({"top_k": 5}, ("top_k", "temperature 0")),
    "temperature too small": ({"temperature": 1e-320}, ("temperature", "0.001")),
    "seed negative": ({"seed": -1}, ("seed -1", "0")),
    "eos outside": ({"eos_token_ids": (1, VOCAB)}, (str(VOCAB),)),
    "eos negative": ({"eos_token_ids": (-1,)}, ("-1", str(VOCAB))),
    "eos is the mask": ({"eos_token_ids": (MASK,)}, (str(MASK), "mask")),
    "window": ({"schedule": Gaussian(window=129)}, ("129", "128")),
    "uniform": ({"schedule": Uniform(70, window=64)}, ("70", "64")),
    "length not whole": ({"gen_length": 128.0}, ("gen_length", "128.0")),
    "seed not whole": ({"seed": 1.5}, ("seed", "1.5")),
    "seed a string": ({"seed": "7"}, ("seed", "'7'")),
    "steps not whole": ({"decoder": "fixed", "steps": 64.0}, ("steps", "64.0")),
    "top_k not whole": ({"temperature": 1.0, "top_k": 2.5}, ("top_k", "2.5")),
    "threshold a string": ({"threshold": "high"}, ("threshold", "'high'")),
    "eos not a list": ({"eos_token_ids": 5}, ("eos_token_ids 5",)),
    "eos empty": ({"eos_token_ids": ()}, ("eos_token_ids ()", "None")),
    "a flag not true nor false": ({"early_termination": "no"}, ("early_termination 'no'",)),
    "a flag that is a number": ({"early_termination": 2}, ("early_termination 2",)),
    "schedule a name": ({"schedule": "gaussian"}, ("'gaussian'", "dpad.Gaussian")),
    "schedule a class": ({"schedule": Gaussian}, ("Gaussian", "dpad.Gaussian(k=4)")),
    "no schedule": ({"schedule": None}, ("None", "dpad.Gaussian")),
    "positions of another prompt": ({"schedule": Explicit(((),) * 4, 3, 32)}, ("3 tokens", "has 2", "prompt_ids")),
    "positions of other blocks": ({"schedule": Explicit(((),) * 4, 2, 64)}, ("blocks of 64", "block_length is 32")),
    "positions not whole": ({"schedule": Explicit(((0.5,), (), ()))}, ("block 0", "integers")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str) -> None:
    """Fails if the option is accepted, raises another error, or the message lacks the value or the limit."""
    changes, words = BAD_OPTIONS[case]
    with pytest.raises(InvalidRequest) as caught:
        decode(Untouched(), [Request((5, 6))], GenerationOptions(**changes))
    assert all(word in str(caught.value) for word in words), str(caught.value)


# Requests -> words of the message.
BAD_REQUESTS: dict[str, tuple[list[Request], tuple[str, ...]]] = {
    "mask in the prompt": ([Request((5,)), Request((5, MASK))], (str(MASK), "mask")),
    "mask in the suffix": ([Request((5,), suffix_ids=(MASK,))], (str(MASK), "mask")),
    "token over the vocabulary": ([Request((5, VOCAB))], (str(VOCAB), "vocabulary")),
    "negative token": ([Request((-1,))], ("-1", str(VOCAB))),
    "suffix token": ([Request((5,), suffix_ids=(4000,))], ("4000", str(VOCAB))),
    "canvas too long": ([Request((5,) * 73)], ("201", "200", "73 prompt")),
    "canvas with suffix too long": ([Request((5,) * 70, suffix_ids=(6,) * 3)], ("201", "200", "3 suffix")),
    "window of the row": ([Request((5,), schedule=Gaussian(window=500))], ("500", "128")),
    "seed of the row": ([Request((5,), seed=-3)], ("-3", "0")),
    "token not whole": ([Request((5, 6.5))], ("6.5",)),  # type: ignore[arg-type]
    "seed not whole": ([Request((5,), seed=0.5)], ("seed", "0.5")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests(case: str) -> None:
    """Fails if one invalid request of a batch is accepted or refused late."""
    requests, words = BAD_REQUESTS[case]
    with pytest.raises(InvalidRequest) as caught:
        decode(Untouched(), requests, GenerationOptions())
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_the_limits_themselves_are_served() -> None:
    """Fails if a limit is off by one."""
    full = [
        Request((5,) * 72),
        Request((0, MASK - 1), suffix_ids=(5,) * 70),
        Request(()),
        Request((np.int64(3),)),
    ]
    with pytest.raises(EngineError, match="work was done"):
        next(decode(Untouched(), full, GenerationOptions(schedule=Gaussian(window=128), threshold=1.0, seed=0)))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(GenerationOptions)])
def test_options_are_frozen(name: str) -> None:
    """Fails if an option can change while a request runs."""
    options = GenerationOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options, name, None)


def test_unknown_options_are_an_error() -> None:
    """Fails if a misspelled option is silently ignored."""
    with pytest.raises(TypeError, match="sigma"):
        GenerationOptions(sigma=4)  # type: ignore[call-arg]


def test_defaults_are_the_published_runs() -> None:
    """Fails if a default differs from the papers."""
    options = GenerationOptions()
    assert (options.block_length, options.threshold, options.temperature) == (32, 0.9, 0.0)
    assert options.schedule == Gaussian(k=4, scale=2, window=None)
    assert options.early_termination
    options.check(CONTRACT)


def test_contract_survives_json() -> None:
    """Fails if a field of the contract is lost in JSON."""
    assert StepContract.from_json(CONTRACT.to_json()) == CONTRACT


@pytest.mark.parametrize("prompt", [None, 5, b"text", {5, 6}, [True, False], [5.0], iter([5])])
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    """Fails if bytes, booleans or an exhausted iterator are accepted as token ids, or raise another error."""
    with pytest.raises(InvalidRequest, match="a prompt is text"):
        DiffusionModel(Untouched(), None).generate(prompt)


@pytest.mark.parametrize("method", ["generate_batch", "stream_batch"])
@pytest.mark.parametrize("prompts", ["What", b"What", 5, None, {"role": "user"}, iter([[5]]), Request((5,))])
def test_what_is_no_batch_is_refused(method: str, prompts: Any) -> None:
    """Fails if each letter becomes a prompt, the methods disagree, or another error is raised."""
    with pytest.raises(InvalidRequest, match=f"a list of prompts, not {type(prompts).__name__}; .* generate or stream"):
        getattr(DiffusionModel(Untouched(), None), method)(prompts)


def test_a_batch_of_nothing_is_refused() -> None:
    """Fails if an empty list of prompts is accepted."""
    with pytest.raises(InvalidRequest, match="at least one prompt"):
        DiffusionModel(Untouched(), None).generate_batch([])


OPTION_TAKERS = ("generate", "generate_batch", "stream", "stream_batch", "options")


@pytest.mark.parametrize("method", OPTION_TAKERS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"gen_lenght": 64},
            r"gen_lenght is not a decoding option \(did you mean gen_length\?\); .*preset, .*block_length",
        ),
        ({"contract": None}, "contract is not a decoding option; .*preset, gen_length"),
        ({"suffix": "x"}, r"model\.request\(prompt, suffix=\.\.\.\)"),
        ({"preset": ["a"]}, "preset"),
        ({"preset": "a"}, "preset 'a' is not one of this bundle's: none"),
    ],
)
def test_unknown_names_are_told_the_known_ones(method: str, options: dict[str, Any], said: str) -> None:
    """Fails if a misspelled option raises a TypeError, or the message names another method or no known options."""
    with pytest.raises(InvalidRequest, match=said):
        getattr(DiffusionModel(Untouched(), None), method)(*([[[5]]] if method != "options" else []), **options)


def test_type_checkers_know_the_options() -> None:
    """Fails if an option is missing from the types of the public methods, or has another type there."""
    assert get_type_hints(Options) == {"preset": str | None, **get_type_hints(GenerationOptions)}
    assert not Options.__required_keys__
    for method in OPTION_TAKERS:
        assert get_type_hints(getattr(DiffusionModel, method))["options"] == Unpack[Options]


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(st.dictionaries(st.sampled_from([*CONTRACT.to_json(), "extra"]), values, min_size=1), st.booleans())
def test_a_bad_contract_is_a_manifest_error(changes: dict[str, Any], drop: bool) -> None:
    """Fails if a damaged contract is accepted, or raises anything but `ManifestError`."""
    data = CONTRACT.to_json() | changes
    if drop:
        del data[min(changes)]
    known = CONTRACT.to_json().keys()
    good = data.keys() <= known <= data.keys() | {"block_causal"} and all(  # older manifests lack it
        type(value) is type(CONTRACT.to_json()[name]) and (type(value) is not int or 0 <= value < 2**31)
        for name, value in data.items()
    )
    sizes = ("layers", "heads", "kv_heads", "head_size", "vocab_size", "max_batch", "max_length", "block_length")
    good = good and all(data[name] > 0 for name in sizes) and data["layers"] <= 4096 and data["logit_shift"] <= 1
    good = good and data["heads"] % data["kv_heads"] == 0 and data["mask_token_id"] != data["eos_token_id"]
    if good and max(data["mask_token_id"], data["eos_token_id"]) < data["vocab_size"]:
        assert StepContract.from_json(data) == StepContract(**data)
    else:
        with pytest.raises(ManifestError):
            StepContract.from_json(data)
