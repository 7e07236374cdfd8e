"""Values of any type in a request: numpy's numbers are accepted, and invalid values raise a typed error."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_tokenizer
from test_requests import CONTRACT, Untouched

from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.presets import read_presets
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import decode
from dpad.runtime.decoding.suffix import Explicit, Gaussian, SuffixSchedule, Uniform
from dpad.runtime.engines.select import open_engine
from dpad.runtime.errors import InvalidRequest, ManifestError
from dpad.runtime.model import DiffusionModel
from dpad.runtime.text.codec import TextCodec

WHOLE = {"gen_length": 64, "block_length": 32, "seed": 7, "steps": 64, "top_k": 5}
NUMBERS = {"threshold": 0.5, "factor": 2.0, "temperature": 3.0, "top_p": 0.5}


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.uint16, np.int64, np.uint64])
def test_whole_numbers_of_numpy_are_pythons(kind: Any) -> None:
    """Fails if a narrow numpy integer is not converted, since its sums and its negative would wrap around."""
    options = GenerationOptions(**{name: kind(value) for name, value in WHOLE.items()})
    schedules = Gaussian(window=kind(60)), Uniform(kind(9), kind(60))
    request = Request((kind(5),), np.array([6, 7], kind), kind(8))  # type: ignore[arg-type]
    given = [*(getattr(options, name) for name in WHOLE), schedules[0].window, *vars(schedules[1]).values()]
    given += [*request.prompt_ids, *request.suffix_ids, request.seed]
    assert given == [*WHOLE.values(), 60, 9, 60, 5, 6, 7, 8]
    assert {type(value) for value in given} == {int}
    made = Explicit.from_positions([[kind(104)], []], kind(40), kind(32))
    assert made.distances == ((32,), ())


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, int])
def test_numbers_are_floats(kind: Any) -> None:
    """Fails if numpy floats are not converted to Python's, so that arithmetic has another precision."""
    options = GenerationOptions(**{name: kind(value) for name, value in NUMBERS.items()})
    schedule = Gaussian(kind(4), kind(2))
    given = [*(getattr(options, name) for name in NUMBERS), schedule.k, schedule.scale]
    assert given == [*(float(kind(value)) for value in NUMBERS.values()), 4.0, 2.0]
    assert {type(value) for value in given} == {float}


@pytest.mark.parametrize("size", [400, 5000])
@pytest.mark.parametrize("name", [*WHOLE, "temperature", "k", "scale", "window", "count", "token", "seed of the row"])
def test_numbers_beyond_all_use_are_refused(name: str, size: int) -> None:
    """Fails if a huge number raises another error, such as Python's for float overflow or for too many digits."""
    value = 10**size
    with pytest.raises(InvalidRequest):
        if name in ("token", "seed of the row"):
            Request((value,)) if name == "token" else Request((5,), seed=value)
        elif name in ("k", "scale", "window", "count"):
            schedule = Uniform(**{name: value}) if name == "count" else Gaussian(**{name: value})
            schedule.check(128, 32)
        else:
            GenerationOptions(**{name: value}).check(CONTRACT)


def test_a_factor_beyond_floats_accepts_all() -> None:
    """Fails if a factor beyond the range of floats gives an error of Python's."""
    GenerationOptions(decoder="factor", factor=10**400).check(CONTRACT)


def test_a_seed_may_have_128_bits() -> None:
    """Fails if a seed of 128 bits, which numpy recommends, is refused."""
    GenerationOptions(seed=2**128 - 1).check(CONTRACT)


@pytest.mark.parametrize("nothing", [np.ma.masked, np.datetime64("NaT"), np.array(None)], ids=["masked", "nat", "none"])
@pytest.mark.parametrize("name", ["steps", "top_k", "top_p", "window", "count", "seed of the row", "prompt_length"])
def test_what_is_no_number_is_not_none(nothing: Any, name: str) -> None:
    """Fails if a masked number or NaT is accepted as "no limit"."""
    with pytest.raises(InvalidRequest):
        if name == "seed of the row":
            Request((5,), seed=nothing).check(GenerationOptions(), CONTRACT)
        elif name == "prompt_length":
            Explicit(((), (), (), ()), nothing).check_prompt(5)
        elif name in ("window", "count"):
            (Uniform(**{name: nothing})).check(128, 32)
        else:
            GenerationOptions(**{name: nothing}).check(CONTRACT)


class Fails:
    """An object whose attribute access raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_what_fails_at_its_attributes_is_refused() -> None:
    """Fails if an object's own error is raised by a schedule, a request or a canvas instead of a typed one."""
    model = DiffusionModel(Untouched(), None)
    takers = (
        lambda: Gaussian(k=Fails()),  # type: ignore[arg-type]
        lambda: Uniform(count=Fails()),  # type: ignore[arg-type]
        lambda: Request((5,), schedule=Fails()).check(GenerationOptions(), CONTRACT),
        lambda: model.generate([5], schedule=Fails()),
    )
    for taker in takers:
        with pytest.raises(InvalidRequest):
            taker()
    with pytest.raises(TypeError, match="block_length") as raised:
        Explicit.from_positions([[]], 5)  # type: ignore[call-arg]
    assert not isinstance(raised.value, InvalidRequest)


def test_a_preset_beyond_all_use_is_refused_with_its_bundle() -> None:
    """Fails if the error for a preset's number blames the caller."""
    with pytest.raises(ManifestError, match="preset 'a'"):
        read_presets(json.loads('{"a": {"schedule": {"gaussian": {"window": 1%s}}}}' % ("0" * 400)))


WRONG: dict[str, dict[str, Any]] = {
    "decoder an array": {"decoder": np.array(["threshold", "fixed"])},
    "decoder none": {"decoder": None},
    "cache an array": {"cache": np.array(["dual", "none"])},
    "preset an array": {"preset": np.array(["a", "b"])},
    "preset a list": {"preset": ["a"]},
    "distances a number": {"schedule": Explicit(5)},  # type: ignore[arg-type]
    "distances none": {"schedule": Explicit(None)},  # type: ignore[arg-type]
    "distances flat": {"schedule": Explicit((1, 2, 3, 4))},  # type: ignore[arg-type]
    "distances text": {"schedule": Explicit(("a", "b", "c"))},  # type: ignore[arg-type]
    "a schedule that cannot be checked": {"schedule": type("Keeps", (), {"keep": lambda *_: []})()},
    "on_step a number": {"on_step": 5},
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused_before_any_work(case: str) -> None:
    """Fails if a wrong value of an option is refused late, or by an error of Python's."""
    model = DiffusionModel(Untouched(), None, {"a": {}, "b": {}})
    with pytest.raises(InvalidRequest):
        model.generate([5, 6], **WRONG[case])


@pytest.mark.parametrize(
    "values",
    [(5,), (None,), ({5, 6},), (np.array(5),), ((11,), None), ((11,), 5), ((11,), (), True), ((11,), (), 0.5)],
)
def test_what_is_no_request_is_refused(values: tuple[Any, ...]) -> None:
    """Fails if a wrong value in a field of `Request` gives an error of Python's."""
    with pytest.raises(InvalidRequest):
        decode(Untouched(), [Request(*values)], GenerationOptions())


@pytest.mark.parametrize("schedule", ["full", object(), Gaussian, 5])
def test_a_row_has_a_schedule_or_none(schedule: SuffixSchedule) -> None:
    """Fails if a request's own schedule is checked less than that of the options."""
    with pytest.raises(InvalidRequest, match="is not a suffix schedule"):
        decode(Untouched(), [Request((11,), schedule=schedule)], GenerationOptions())


@pytest.mark.parametrize("values", [(5, 1, 1), ([[1]], None, 32), ([[1]], 5, "32"), (["a"], 5, 32), ([5], 5, 32)])
def test_positions_that_are_none_are_refused(values: Any) -> None:
    """Fails if wrong positions or lengths give an error of Python's."""
    with pytest.raises(InvalidRequest, match="suffix positions must be lists of integers"):
        Explicit.from_positions(*values)


@pytest.mark.parametrize("threads", [-1, 1.5, True, "2", 4 * (os.cpu_count() or 1) + 1, 2**31])
def test_threads_are_a_few_for_each_processor(threads: Any) -> None:
    """Fails if a number of threads far above the processors', or beyond ONNX Runtime's range, is accepted."""
    with pytest.raises(InvalidRequest, match=f"0 to {4 * (os.cpu_count() or 1)}"):
        open_engine(None, threads=threads)  # type: ignore[arg-type]


class Unread(TextCodec):
    """A tokenizer that must not be called."""

    def _encode_by(self, tokenizer: Any, text: str) -> Any:
        raise AssertionError("the text was tokenized")


LONG = "w5 " * 1000  # too long for canvases of 200 tokens of at most 9 characters


@pytest.mark.parametrize(
    ("prompt", "suffix"),
    [
        (LONG * 2, None),
        ("w5", LONG * 2),
        (LONG, LONG),
        ([{"role": "user", "content": LONG}, {"role": "user", "content": LONG}], None),
    ],
)
def test_text_that_no_canvas_holds_is_not_tokenized(tmp_path: Path, prompt: Any, suffix: str | None) -> None:
    """Fails if a text that is too long for the canvas is tokenized before its length is checked."""
    write_tokenizer(tmp_path)
    model = DiffusionModel(Untouched(), Unread.open(tmp_path))
    with pytest.raises(InvalidRequest, match=r"a text of 60\d\d characters is over the 3600 that .* 200 tokens"):
        model.request(prompt, suffix=suffix)
    with pytest.raises(AssertionError, match="tokenized"):
        model.request(LONG)


@pytest.mark.parametrize("prompt", ["w5 w6 ", [{"role": "user", "content": "w5 w6 "}]])
def test_what_a_template_writes_is_measured_before_it_is_tokenized(tmp_path: Path, prompt: Any) -> None:
    """Fails if the text that a template writes is tokenized before its length is checked."""
    write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content * 500000 }}")
    model = DiffusionModel(Untouched(), Unread.open(tmp_path))
    with pytest.raises(InvalidRequest, match="a text of 3000000 characters is over the 3600"):
        model.request(prompt)
