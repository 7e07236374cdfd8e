"""Requests of lm-evaluation-harness: refusals before any decoding, and keeping of finished answers."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from dpad.evaluation.harness import DpadLM
from dpad.runtime.engines.step import StepInputs, StepOutputs
from dpad.runtime.errors import EngineError, InvalidRequest

SMALL: dict[str, Any] = {"threads": 1, "mc_samples": 2, "gen_length": 32, "block_length": 16, "window": 16}


@pytest.fixture(scope="module")
def model(eval_bundle: Path) -> Iterator[DpadLM]:
    yield DpadLM(str(eval_bundle), **SMALL)


def ask(kind: str, *arguments: Any) -> list[Instance]:
    metadata = [("own", number, 1) for number in range(len(arguments))]
    return [Instance(kind, {}, each, 0, facts) for each, facts in zip(arguments, metadata)]  # type: ignore[arg-type]


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
    """Fails if an invalid request is refused only after others were decoded."""
    good = {"generate_until": ("w1", {}), "loglikelihood": ("w1", "w2"), "loglikelihood_rolling": ("w1",)}[kind]
    monkeypatch.setattr(model.model.engine, "step", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InvalidRequest, match=rf"^request 3 of 3 \(task own, document 2\): .*{said}") as raised:
        getattr(model, kind)(ask(kind, good, good, last))
    assert not hasattr(raised.value, "__notes__"), "nothing ran, so nothing is lost"


def test_long_contexts_are_cut_where_that_is_asked_for(eval_bundle: Path) -> None:
    """Fails if `truncation` does not keep the end of a long context."""
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
    """Fails if an empty context or an empty text raises an error."""
    assert model.loglikelihood(ask("loglikelihood", ("", "w5 w6")))[0][0] < 0
    assert model.loglikelihood_rolling(ask("loglikelihood_rolling", ("",))) == [0.0]


def test_the_same_sampled_request_again_is_another_draw(model: DpadLM) -> None:
    """Fails if repeated questions get the same sample, or another run gets other samples."""
    requests = ask("generate_until", *[("w5 w6", {"temperature": 2.0, "max_gen_toks": 32})] * 4)
    texts = model.generate_until(requests)
    assert len(set(texts)) == 4 and texts == model.generate_until(requests)
    assert texts[0] == model.generate_until(requests[:1])[0]
    greedy = model.generate_until(ask("generate_until", *[("w5 w6", {})] * 2))
    assert greedy[0] == greedy[1]


RUN = """
import json, os, signal, sys, threading, time
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from dpad.evaluation.harness import DpadLM
bundle, cache, kind, how = sys.argv[1:]
model = DpadLM(bundle, threads=1, mc_samples=2, gen_length=32, block_length=16, window=16, check_greedy=False,
               batch_size="auto")
step, engine, steps = model.model.engine.step, model.model.engine, []
class Interrupting(threading.Condition):  # of the cache, which enters it three times for an answer
    left = 7
    def __enter__(self):
        super().__enter__()
        self.left -= 1
        if self.left == 0:  # after two answers
            queue.not_full = usual
            signal.raise_signal(signal.SIGINT)
def counted(*inputs, **more):
    steps.append(1)
    if how == "SIGINT" and len(steps) == 1:
        queue.not_full = Interrupting(queue.mutex)
    if how in ("fails", "SIGKILL") and len(steps) == {"generate_until": 40, "loglikelihood": 6}[kind]:
        while len(caching.dbdict) < 2:  # the first of them is on disk
            time.sleep(0.01)
        if how == "fails":
            raise RuntimeError("the engine fell over")
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*inputs, **more)
engine.step = counted
ends = {"generate_until": {"max_gen_toks": 16}, "loglikelihood": " w9 w8"}
args = [(f"w{number} w7", ends[kind]) for number in range(8, 20)]
asked = [Instance(kind, {}, each, 0, ("own", number, 1)) for number, each in enumerate(args)]
caching = CachingLM(model, cache)
queue, usual = caching.dbdict.conn.reqs, caching.dbdict.conn.reqs.not_full
print(json.dumps([getattr(caching, kind)(asked), len(steps)]))
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
    """Fails if, with the harness's --use_cache, finished answers are lost after a failure, Ctrl-C or a kill.

    The model gets all requests at once, and each answer is kept when it is finished. Ctrl-C comes just after a lock of
    the cache was taken, and the process must still end.
    """

    def run(cache: str, how: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", RUN, str(eval_bundle), str(tmp_path / cache), kind, how]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    stopped = run("kept", how)
    assert stopped.returncode == {"SIGKILL": -signal.SIGKILL, "SIGINT": -signal.SIGINT, "fails": 1}[how]
    if how != "SIGKILL":
        assert "answers were finished, and are kept" in stopped.stderr
    rest, steps = json.loads(run("kept", "whole").stdout)
    whole, all_steps = json.loads(run("other", "whole").stdout)
    if kind == "loglikelihood":  # sums of floats differ with the passes
        rest, whole = ([bound for bound, _ in answers] for answers in (rest, whole))
        whole = pytest.approx(whole, rel=1e-5)
    assert rest == whole and 0 < steps < all_steps


def test_a_failure_without_a_cache_says_what_is_lost(model: DpadLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the error does not say how many answers are lost and how to keep them."""

    def fail(*inputs: object, **more: object) -> None:
        raise EngineError("the engine fell over")

    monkeypatch.setattr(model.model.engine, "step", fail)
    with pytest.raises(EngineError) as raised:
        model.generate_until(ask("generate_until", ("w1", {})))
    said = "0 of 1 answers were finished, and are lost: with --use_cache FILE they would be kept"
    assert raised.value.__notes__ == [said]


@pytest.mark.parametrize(("kind", "behind"), [("generate_until", {}), ("loglikelihood", "w7 w8")])
def test_the_request_that_failed_is_named(
    model: DpadLM, monkeypatch: pytest.MonkeyPatch, kind: str, behind: Any
) -> None:
    """Fails if the error does not name the failed request, or the model cannot be used afterwards."""
    step = model.model.engine.step

    def fail(inputs: StepInputs) -> StepOutputs:
        if (inputs.canvas == 66).any():
            raise EngineError("the engine fell over")
        return step(inputs)

    asked = ask(kind, ("w10", behind), ("w66", behind), ("w12", behind))
    with monkeypatch.context() as patch:
        patch.setattr(model.model.engine, "step", fail)
        with pytest.raises(EngineError, match="^request 2 of 3: the engine fell over") as raised:
            getattr(model, kind)(asked)
    assert raised.value.__notes__[0].startswith("1 of 3 answers were finished")
    assert len(getattr(model, kind)(asked)) == 3


@pytest.mark.slow
def test_the_command_line_says_it_in_one_line(eval_bundle: Path, tmp_path: Path) -> None:
    """Fails if a mistake in the arguments gives a traceback."""
    command = [sys.executable, "-m", "dpad.evaluation.harness", "--model", "dpad", "--model_args"]
    ran = subprocess.run(
        [*command, f"pretrained={eval_bundle}", "--tasks", "gsm8k"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("dpad: InvalidRequest: model argument pretrained is another model's")
