"""Whole decodes of the embedded model with the eager engine and every other engine that runs here.

The prompts are word problems that the model solves, so that it is confident of its tokens. Rounding can change a near
tie in random text but not these tokens, so an engine that writes another token is wrong.
"""

import traceback
from statistics import median
from time import monotonic
from typing import Any

import numpy as np
import torch

from dpad.export.hub import resolve
from dpad.runtime.bundle.variant import FULL
from dpad.runtime.cache import CACHES
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.scheduler import run
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.engines.base import Engine
from dpad.runtime.text.codec import TextCodec
from gpu.engines import Entry, eager_engine, entries, reference, tiny_bundle
from gpu.session import Failures, Session, begins
from gpu.timing import DEVICE
from gpu.worker import told

PROMPTS = (
    "What is 53 + 34?",
    "Tom has 6 books. Emma has 4 fewer books than Tom. How many books do they have together?",
)
# The cache modes, and a decoder that needs the program `decide`.
MODES: dict[str, dict[str, Any]] = {name: {"cache": name} for name in CACHES}
MODES["dual, by entropy"] = {"cache": "dual", "decoder": "entropy"}
_KEPT = 40.0  # seconds that are left for the parts after the engines
LEAST = {FULL: 0.99, "int8": 0.99, "int4": 0.99, "fp8": 0.9}  # share of equal tokens; fp8 rounds rows too


def canvases(engine: Engine, prompts: list[list[int]], new: int, mode: str) -> tuple[np.ndarray[Any, Any], float]:
    """Decode unequal prompts together; returns all tokens, and milliseconds per step inside the engine."""
    options = GenerationOptions(gen_length=new, early_termination=False, **MODES[mode])
    options.check(engine.contract)
    sequences = [Sequence(Request(tuple(prompt)), options, engine.contract) for prompt in prompts]
    seconds = [event.engine_seconds for _, event in run(engine, sequences)]
    return np.concatenate([sequence.canvas for sequence in sequences]), 1e3 * median(seconds)


def prompts(session: Session) -> list[list[int]]:
    """The prompts as token ids."""
    codec = TextCodec.open(resolve("tiny").directory)
    return [codec.encode_chat([{"role": "user", "content": text}]) for text in PROMPTS]


def eager(session: Session) -> dict[str, Any]:
    """Decode with the eager engine on the GPU in float32 and 16 bit; counts the tokens equal to float32 on the CPU."""
    failures = Failures()
    expected = _decodes(session, eager_engine("cpu", torch.float32))
    engines: dict[str, Any] = {}
    for name in dict.fromkeys(("float32", *session.setup.sizes.dtypes)):
        engines[name] = _compared(session, eager_engine(DEVICE, getattr(torch, name)), expected)
        _judge(failures, f"eager in {name}", engines[name], LEAST[FULL])
    return {"engines": engines, "failures": failures.told}


def compiled(session: Session) -> dict[str, Any]:
    """Decode with every engine of a bundle of the embedded model, or say why it cannot run here."""
    failures, expected = Failures(), {}
    engines: dict[str, Any] = {}
    for entry in entries(session):
        if entry.obstacle is not None:
            engines[entry.name] = {"skipped": entry.obstacle}
            failures.unless(not entry.expected, f"{entry.name} should run here and does not: {entry.obstacle}")
        elif session.left() < _KEPT:
            engines[entry.name] = {"skipped": "out of time"}
        else:
            if entry.weights not in expected:
                expected[entry.weights] = _decodes(session, reference(session.once(tiny_bundle), entry.weights))
            engines[entry.name] = _tried(session, entry, expected[entry.weights])
            _judge(failures, entry.name, engines[entry.name], LEAST[entry.weights])
    for name in session.setup.engines:
        failures.unless(any(begins(name, entry) for entry in engines), f"there is no engine {name} here")
    return {"engines": engines, "failures": failures.told}


def placement(session: Session) -> dict[str, Any]:
    """Check on which device ONNX Runtime runs the nodes of the step."""
    from gpu.placement import check

    return check(session, session.once(tiny_bundle))


def _decodes(session: Session, engine: Engine) -> dict[str, Any]:
    ids, new = session.once(prompts), session.setup.sizes.tiny_new
    return {mode: canvases(engine, ids, new, mode)[0] for mode in MODES}


def _tried(session: Session, entry: Entry, expected: dict[str, Any]) -> dict[str, Any]:
    began = monotonic()
    try:
        with entry.open() as engine:
            seconds = monotonic() - began
            return {**_compared(session, engine, expected), "open_s": seconds, "whole_s": monotonic() - began}
    except Exception as error:
        traceback.print_exc()
        return {"error": told(error)}


def _compared(session: Session, engine: Engine, expected: dict[str, Any]) -> dict[str, Any]:
    """For each mode the share of tokens that are as expected, and milliseconds per step."""
    modes = {}
    for mode in MODES:
        tokens, step_ms = canvases(engine, session.once(prompts), session.setup.sizes.tiny_new, mode)
        modes[mode] = {"equal": float((tokens == expected[mode]).mean()), "step_ms": step_ms}
    return {"modes": modes}


def _judge(failures: Failures, name: str, found: dict[str, Any], least: float) -> None:
    """Add a failure if the engine crashed or writes other tokens."""
    failures.unless("error" not in found, f"{name} failed: {found.get('error')}")
    for mode, result in found.get("modes", {}).items():
        failures.unless(
            result["equal"] >= least, f"{name} writes other tokens with cache {mode}: {result['equal']:.1%}"
        )
