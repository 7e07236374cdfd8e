"""Whole decodes of the large model: compares every engine with the published loop, with equal passes.

The published loop runs the eager model on the same device (benchmarks/published.py). All decoders commit four tokens
per pass and keep the same suffix positions, so that they have the same number of passes with about the same shapes. The
baseline in the last row commits one token per pass, drops nothing, and is stopped after `VANILLA` passes.
"""

import traceback
from time import perf_counter
from typing import Any

import numpy as np
import torch

import dpad
from dpad.runtime.decoding.suffix import Gaussian, SuffixSchedule
from dpad.runtime.engines.candidates import candidates
from dpad.runtime.engines.machine import Machine
from gpu import start
from gpu.full import bundle_of
from gpu.session import Session
from gpu.sizes import Sizes
from gpu.step import eager_of
from gpu.timing import DEVICE
from gpu.worker import told
from published import Settings, decode

BLOCK = 32
VANILLA = 64  # passes
OWN = ("dual", "prefix", "none")
_OPENS = 60.0  # seconds that opening another engine may take


def measure(session: Session) -> dict[str, Any]:
    """Milliseconds per pass and tokens per second by decoder; the compiled engine and the published loop run first."""
    sizes, model = session.setup.sizes, start.model_of(session)
    eager = session.once(eager_of)
    found: dict[str, Any] = {}
    for cache in OWN:
        found[f"{model.engine.name} {cache}"] = own(model, sizes, cache)
    for cache in ("prefix", "dual"):
        found[f"published {cache}"] = published(eager.program.model, sizes, cache)
    found["published vanilla"] = vanilla(eager.program.model, sizes)
    through = dpad.DiffusionModel(eager, None)
    for cache in OWN[:2]:
        found[f"{eager.name} {cache}"] = own(through, sizes, cache, again=False)
    found |= _others(session, model.engine.name)
    best = min(row["ms_per_pass"] for name, row in found.items() if name in ("published prefix", "published dual"))
    for row in found.values():
        if "ms_per_pass" in row:
            row["times_published"] = best / row["ms_per_pass"]
    failures = [f"{name} failed: {row['error']}" for name, row in found.items() if "error" in row]
    return {"decoders": found, "published_best_ms": best, "failures": failures}


def schedule(new: int) -> SuffixSchedule:
    """DPad's schedule with a window that fits `new` tokens."""
    return Gaussian(3, 1.6, min(256, new))


def prompt_of(sizes: Sizes, seed: int = 0) -> list[int]:
    """A prompt of random tokens, none of them special."""
    ids = np.random.default_rng(seed).integers(10, 120, size=sizes.prompt)
    return [int(token) for token in ids]


def own(model: dpad.DiffusionModel, sizes: Sizes, cache: str, *, again: bool = True) -> dict[str, Any]:
    """Time one decode with `model`, after a first one that records its shapes."""
    options: dict[str, Any] = {
        "gen_length": sizes.new,
        "decoder": "fixed",
        "steps": sizes.passes,
        "cache": cache,
        "schedule": schedule(sizes.new),
        "early_termination": False,
    }
    for _ in range(2 if again else 1):
        began, inside, passes = perf_counter(), 0.0, 0
        for event in model.stream(prompt_of(sizes), **options):
            inside += event.engine_seconds
            passes = event.nfe
        seconds = perf_counter() - began
    return {**_rates(seconds, passes, sizes.new), "outside_engine_ms": 1e3 * (seconds - inside) / passes}


def published(net: Any, sizes: Sizes, cache: str) -> dict[str, Any]:
    """Time the published loop with DPad and equal passes."""
    settings = Settings(
        sizes.new,
        net.config.mask_token_id,
        net.config.eos_token_id,
        steps=sizes.passes,
        cache=cache,
        kept=_kept(sizes),
        early_stop=False,
    )
    return _published(net, prompt_of(sizes), settings)


def vanilla(net: Any, sizes: Sizes) -> dict[str, Any]:
    """Time the published loop without cache and dropout, at one token per pass, over the first `VANILLA` passes."""
    new = min(VANILLA, sizes.new)
    prompt = [*prompt_of(sizes), *prompt_of(sizes, seed=1)][: sizes.canvas - new]
    settings = Settings(new, net.config.mask_token_id, net.config.eos_token_id, early_stop=False)
    return _published(net, prompt, settings)


def _published(net: Any, prompt: list[int], settings: Settings) -> dict[str, Any]:
    torch.set_default_device(DEVICE)
    try:
        _synchronise()
        began = perf_counter()
        decoded = decode(net, prompt, settings)
        _synchronise()
        return _rates(perf_counter() - began, decoded.nfe, settings.gen_length)
    finally:
        torch.set_default_device("cpu")


def _kept(sizes: Sizes) -> list[list[int]]:
    """The canvas positions after each block that the schedule keeps."""
    ends = [sizes.prompt + (block + 1) * BLOCK for block in range(sizes.new // BLOCK)]
    chosen = schedule(sizes.new)
    return [
        (end + chosen.keep(block, sizes.canvas - end, sizes.new, np.random.default_rng((0, block, 0)))).tolist()
        for block, end in enumerate(ends)
    ]


def _others(session: Session, tried: str) -> dict[str, Any]:
    """Results of the bundle's other engines while there is time; for those that do not run here, the obstacle."""
    found: dict[str, Any] = {}
    for candidate in candidates(session.once(bundle_of), Machine.current()):
        if candidate.name == tried or "cpu" in candidate.name or not session.wants(candidate.name):
            continue
        if candidate.obstacle is not None or session.left() < _OPENS:
            found[candidate.name] = {"skipped": candidate.obstacle or "out of time"}
            continue
        try:
            found |= _other(session, candidate.name)
        except Exception as error:
            traceback.print_exc()
            found[candidate.name] = {"error": told(error)}
    return found


def _other(session: Session, name: str) -> dict[str, Any]:
    sizes, directory = session.setup.sizes, session.once(bundle_of).directory
    with dpad.load(directory, engine=name, slots=sizes.canvas + 2, verify_hashes=False, warm=False) as model:
        return {f"{name} {cache}": own(model, sizes, cache) for cache in OWN}


def _rates(seconds: float, passes: int, tokens: int) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "passes": passes,
        "ms_per_pass": 1e3 * seconds / passes,
        "tokens_per_s": tokens / seconds,
    }


def _synchronise() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
