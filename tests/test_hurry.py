"""Typical mistakes in calls: accepted if the meaning is clear, else the error names the right call."""

import copy
import pickle
from collections import UserDict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import export, write_source

import dpad
from dpad import DiffusionModel, InvalidRequest, Request
from dpad.runtime.decoding.options import Options
from dpad.runtime.errors import BundleError

IDS = [5, 6, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, `source`, and its bundle, `bundle`."""
    folder = tmp_path_factory.mktemp("hurry")
    export(write_source(folder / "source"), folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[DiffusionModel]:
    with dpad.load(folder / "bundle") as opened:
        yield opened


@pytest.mark.parametrize(
    "kind",
    [
        tuple,
        deque,
        np.array,
        torch.tensor,
        lambda ids: np.array(ids, np.uint8),
        lambda ids: torch.tensor(ids, dtype=torch.int32),
        lambda ids: [torch.tensor(i) for i in ids],
        lambda ids: [np.array(i) for i in ids],
    ],
)
def test_ids_of_any_kind_are_a_prompt(model: DiffusionModel, kind: Any) -> None:
    """Fails if token ids in an array, a tensor or another sequence are refused."""
    assert model.request(kind(IDS)) == Request((5, 6, 7)) == Request(kind(IDS))
    if kind in (np.array, torch.tensor):
        (one, two) = model.generate_batch(kind([IDS, IDS]), gen_length=32)
        assert one.canvas.tolist() == two.canvas.tolist() == model.generate(IDS, gen_length=32).canvas.tolist()


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ([IDS], "generate_batch"),
        (np.array([IDS]), "an array of 2 axes; .*generate_batch"),
        (torch.tensor([IDS]), "an array of 2 axes; .*generate_batch"),
        (["w5"], "generate_batch"),
        ([Request((5,))], "generate_batch"),
        (UserDict(input_ids=[IDS]), "pass the input_ids"),
        ({"role": "user", "content": "w5"}, r"as \[message\]"),
        (b"w5", "not bytes; decode it first"),
        ((i for i in IDS), "make a list of it"),
        (np.array([5.5]), "5.5, which is not a token id"),
        (torch.tensor([True]), "True, which is not a token id"),
        (range(10**12), "longer than any canvas"),
        (Path("w5"), "not PosixPath"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "stream", "request"])
def test_what_is_no_prompt_points_at_what_was_meant(model: DiffusionModel, method: str, prompt: Any, said: str) -> None:
    """Fails if the error for a batch, an encoding or a message as a prompt does not name the right call."""
    with pytest.raises(InvalidRequest, match=said):
        getattr(model, method)(prompt)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [(IDS, "holds token ids"), (np.array(IDS), "holds token ids"), ([{"role": "user"}] * 2, "holds chat messages")],
)
def test_what_is_one_prompt_points_at_generate(model: DiffusionModel, prompts: Any, said: str) -> None:
    """Fails if each token becomes a prompt, or each message a conversation."""
    with pytest.raises(InvalidRequest, match=f"{said}; for one prompt use generate or stream"):
        model.generate_batch(prompts)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("max_new_tokens", "here: gen_length"),
        ("max_tokens", "here: gen_length"),
        ("max_length", "here: gen_length"),
        ("do_sample", "here: temperature"),
        ("stop", "here: eos_token_ids"),
        ("num_steps", "here: steps, .* decoder="),
        ("alg", 'here: decoder; .*topk_margin is "margin"'),
        ("remasking", 'here: decoder; low_confidence .*"fixed"'),
        ("mask_id", "here: nothing: the mask is the bundle's own"),
        ("cfg_scale", "here: nothing"),
        ("use_cache", 'here: cache="none", "prefix" or "dual"'),
        ("dual_cache", 'here: cache="none", "prefix" or "dual"'),
        ("sigma", r"here: schedule=dpad.Gaussian\(k"),
        ("scale", r"here: schedule=dpad.Gaussian\(k"),
        ("window_size", r"here: schedule=dpad.Gaussian\(k"),
        ("preserved_tokens", r"here: schedule=dpad.Uniform\(count"),
        ("positions", "here: schedule=dpad.Explicit.from_positions"),
        ("messages", "here: the prompt"),
        ("generation_config", r"here: its fields as keywords, as \*\*vars\(options\)"),
        ("temprature", "did you mean temperature"),
        ("x" * 5000, "is not a decoding option; these"),
        ("\x1b[2J", r"^\\x1b\[2J is not a decoding option"),
    ],
)
def test_other_tools_options_point_at_ours(model: DiffusionModel, name: str, said: str) -> None:
    """Fails if the error for another tool's option does not name the option here."""
    with pytest.raises(InvalidRequest, match=said) as caught:
        model.generate(IDS, **{name: 1})  # type: ignore[misc]
    assert len(str(caught.value)) < 900


def test_no_option_of_ours_is_said_to_be_anothers() -> None:
    """Fails if an existing option is listed as another tool's."""
    from dpad.runtime.decoding.foreign_options import instead_of

    assert [name for name in Options.__annotations__ if instead_of(name)] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": True}, "cache True is not a name; give one as text: none, prefix, dual, extend"),
        ({"cache": False}, "cache False is not a name; give one as text: none, prefix, dual, extend"),
        ({"cache": None}, "cache None is not a name; give one as text: none, prefix, dual, extend"),
        ({"cache": "DUAL"}, "cache 'DUAL' is not one of none, prefix, dual, extend"),
        ({"cache": "none "}, "cache 'none ' is not one of none, prefix, dual, extend"),
        ({"decoder": 1}, "threshold, factor, fixed, entropy, margin"),
        ({"temperature": 0.7, "top_k": 0}, "top_k 0 .*for no limit leave it out"),
        ({"temperature": 0.7, "top_k": -1}, "top_k -1 .*for no limit leave it out"),
        ({"temperature": 0.7, "top_p": 0}, "top_p 0.0 .*for no limit leave it out"),
        ({"schedule": [[37], [69]]}, r"dpad\.Explicit\.from_positions\(positions"),
        ({"schedule": np.zeros((2, 2), int)}, r"dpad\.Explicit\.from_positions\(positions"),
        ({"schedule": None}, r"dpad\.Full\(\) drops nothing"),
        ({"eos_token_ids": 5}, "must be a list"),
    ],
)
def test_values_of_a_wrong_kind_name_the_choices(model: DiffusionModel, options: dict[str, Any], said: str) -> None:
    """Fails if the error for another tool's value does not list the valid values."""
    with pytest.raises(InvalidRequest, match=said):
        model.generate(IDS, **options)


def test_ends_of_text_may_be_an_array(model: DiffusionModel) -> None:
    """Fails if an array of EOS ids gives an error of numpy's, or other tokens end the text."""
    for ends in (np.array([3, 9]), torch.tensor([3, 9]), [3, 9]):
        given = model.generate(IDS, gen_length=64, eos_token_ids=ends)  # type: ignore[arg-type]
        assert given.token_ids == model.generate(IDS, gen_length=64, eos_token_ids=(3, 9)).token_ids


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda"}, "here: engine="),
        ({"dtype": "float16"}, "here: --dtype, an option of dpad export"),
        ({"torch_dtype": "float16"}, "here: --dtype"),
        ({"load_in_4bit": True}, "here: --weights"),
        ({"trust_remote_code": True}, "no code of a checkpoint"),
        ({"num_threads": 2}, "here: threads"),
        (
            {"anything": 2},
            "anything is not an argument of load; its arguments are: "
            "engine, threads, slots, warm, max_running, max_waiting, verify_hashes, progress",
        ),
        ({"engine": ["torch"]}, "is not a name; use one that dpad inspect"),
        ({"engine": None}, "is not a name; use one that dpad inspect"),
        ({"slots": "all"}, "slots 'all' must be an integer; leave it out"),
        ({"slots": True}, "slots True must be an integer"),
        ({"slots": 1}, "slots 1 must be from 2 to"),
        ({"verify_hashes": "no"}, "'no' is neither True nor False"),
    ],
)
def test_arguments_of_load_are_told(folder: Path, options: Any, said: str) -> None:
    """Fails if another tool's argument gives an error of Python's, or a value that is not a bool is accepted."""
    with pytest.raises(InvalidRequest, match=said):
        dpad.load(folder / "bundle", **options)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("source", r"is a checkpoint and not a bundle; make one with: dpad export .*source --out bundles/source"),
        ("bundle/manifest.json", r"is not the directory of a bundle; the bundle is .*bundle$"),
        ("nowhere", "is not a directory; make one with: dpad export MODEL --out .*nowhere"),
        (".", "bundles lie in it: .*bundle"),
        ("a\0b", r"a\\x00b is not a directory"),
    ],
)
def test_what_is_no_bundle_is_named(folder: Path, path: str, said: str) -> None:
    """Fails if the error of `load` for a checkpoint, a file or a wrong path does not say what it is."""
    with pytest.raises(BundleError, match=said):
        dpad.load(folder / path)


@pytest.mark.parametrize("path", [None, 5, b"bundle", ["bundle"], type("P", (), {"__fspath__": lambda self: 1 / 0})()])
def test_what_is_no_path_is_refused(path: Any) -> None:
    """Fails if a value that is not a path gives an error of Python's."""
    with pytest.raises(BundleError, match="is opened by its path"):
        dpad.load(path)


def test_results_are_shown_short_and_pickled(model: DiffusionModel) -> None:
    """Fails if a result's repr is long, or it cannot be pickled."""
    result = model.generate(IDS, gen_length=128)
    assert "array" not in repr(result) and "nfe=" in repr(result)
    again = pickle.loads(pickle.dumps(result))
    assert (again.token_ids, again.canvas.tolist()) == (result.token_ids, result.canvas.tolist())


def test_a_model_says_that_it_is_of_one_process(model: DiffusionModel) -> None:
    """Fails if the error for pickling a model is about locks or sessions."""
    for send in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InvalidRequest, match="load the bundle in each process"):
            send(model)


def test_a_suffix_is_text(model: DiffusionModel) -> None:
    """Fails if token ids as a suffix give an error of the tokenizer's."""
    with pytest.raises(InvalidRequest, match="go into a Request"):
        model.request("w5", suffix=[5, 6])  # type: ignore[arg-type]
