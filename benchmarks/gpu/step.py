"""Compares a step of the large model, in each cache mode, with its matrix products alone.

The products are those of the step (q/k/v and gate/up merged), in one CUDA graph with weights of its own; the difference
to the step's time is the most that could still be gained. The floor is the longer of two times: reading every weight
and every cached key and value once at the measured bandwidth, and computing every product at the measured peak rate.
"""

from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import dpad
from dpad.models.torch_engine import TorchEngine
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.step import StepInputs, StepOutputs
from gpu import start
from gpu.full import bundle_of
from gpu.session import Session
from gpu.sizes import Sizes
from gpu.timing import DEVICE, Call, interleaved

BLOCK = 32
CACHED = ("prefix", "dual")  # modes whose steps attend a cache
OFF = 0.2  # relative RMS error of the logits; larger than for a trained model, since the weights are random


@dataclass(frozen=True)
class Widths:
    """The sizes of a model that determine its products."""

    layers: int
    width: int
    heads_width: int
    kv_width: int
    mlp_width: int
    vocabulary: int

    def products(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of the merged products of a layer."""
        return [
            (self.heads_width + 2 * self.kv_width, self.width),
            (self.width, self.heads_width),
            (2 * self.mlp_width, self.width),
            (self.width, self.mlp_width),
        ]


def widths(config: Any) -> Widths:
    """The widths in a model's config."""
    kv_width = config.kv_heads * config.head_size
    return Widths(
        config.layers, config.width, config.heads * config.head_size, kv_width, config.mlp_width, config.vocab_size
    )


def modes(sizes: Sizes) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Query positions [Q] and attended canvas positions [K] of a step in the middle of the canvas."""
    first, last = sizes.prompt, sizes.canvas
    block = np.arange(first, first + BLOCK)
    after = np.arange(first + BLOCK, last)
    kept = after[:: max(1, len(after) // sizes.kept)][: sizes.kept]
    prefix, nothing = np.arange(first), np.arange(0)
    return {
        "vanilla": (np.arange(last), nothing),
        "none": (np.concatenate([prefix, block, kept]), nothing),
        "prefix": (np.concatenate([block, kept]), prefix),
        "dual": (block, np.concatenate([prefix, kept])),
    }


class Steps:
    """The steps of `modes` with one engine; the canvas has slots of its own in the engine's pool."""

    def __init__(self, engine: Engine, sizes: Sizes) -> None:
        self.engine, self._sizes = engine, sizes
        slots = engine.slots.take(sizes.canvas)
        if slots is None:
            raise RuntimeError(f"{engine.name} has no {sizes.canvas} free slots")
        self._slots = slots
        random = np.random.default_rng(0)
        self._canvas = random.integers(10, engine.contract.vocab_size // 2, size=(1, sizes.canvas))
        self._canvas[0, sizes.prompt :] = engine.contract.mask_token_id
        everything = np.arange(sizes.canvas)[None]
        nothing = np.zeros((1, 0), dtype=np.int64)
        engine.step(StepInputs(self._canvas, everything, nothing, everything[:, :BLOCK], slots[None]))

    def run(self, mode: str, *, logits: bool = False) -> StepOutputs:
        """Run one step, padded as by the scheduler."""
        queries, cached = modes(self._sizes)[mode]
        rows = int(np.flatnonzero(queries == self._sizes.prompt)[0]) + np.arange(BLOCK)
        inputs = StepInputs(
            self._canvas,
            self._padded("Q", queries),
            self._padded("K", self._slots[cached]),
            self._padded("R", rows),
            want_logits=logits,
        )
        return self.engine.step(inputs)

    def _padded(self, axis: str, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        size = self.engine.padded(axis, len(values))
        return np.concatenate([values, np.full(size - len(values), -1)]).astype(np.int64)[None]

    def milliseconds(self, mode: str) -> float:
        """Median time of a step as the scheduler sees it, from inputs on the host to decisions on the host."""
        seconds = []
        for _ in range(self._sizes.rounds + 5):
            began = perf_counter()
            self.run(mode)
            seconds.append(perf_counter() - began)
        return 1e3 * median(seconds[5:])

    def close(self) -> None:
        """Release the slots."""
        self.engine.slots.give(self._slots)


def eager_of(session: Session) -> TorchEngine:
    """The eager engine on the device with the bundle's weights, for the comparison and for the baseline."""
    name = "eager" if DEVICE == "cpu" else "eager-cuda"
    slots = session.setup.sizes.canvas + 2
    opened = dpad.load(session.once(bundle_of).directory, engine=name, slots=slots, verify_hashes=False, warm=False)
    session.opened.callback(opened.close)
    assert isinstance(opened.engine, TorchEngine)
    return opened.engine


def measure(session: Session) -> dict[str, Any]:
    """Milliseconds of a step for each mode, and of its products alone."""
    model, eager = start.model_of(session), session.once(eager_of)
    sizes, shape = session.setup.sizes, widths(eager.program.model.config)
    own, other = Steps(model.engine, sizes), Steps(eager, sizes)
    rows = {mode: len(queries) for mode, (queries, _) in modes(sizes).items()}
    alone = products(shape, sorted(set(rows.values())))
    found = {}
    for mode, (queries, cached) in modes(sizes).items():
        step_ms = own.milliseconds(mode)
        floor = floor_ms(shape, len(queries), len(cached), session)
        found[mode] = {
            "queries": len(queries),
            "cached": len(cached),
            "step_ms": step_ms,
            "floor_ms": floor,
            "over_floor": step_ms / floor,
            "eager_ms": _one(other, mode),
            "relative_rms": _relative(own.run(mode, logits=True), other.run(mode, logits=True)),
            **{f"products_{kind}_ms": value for kind, value in alone[rows[mode]].items()},
            "over_products": step_ms / alone[rows[mode]]["merged"],
        }
    own.close()
    other.close()
    failures = [
        f"the logits of a step with cache {mode} are off by {row['relative_rms']:.1%} from the eager engine's"
        for mode, row in found.items()
        if not row["relative_rms"] <= OFF
    ]
    return {"engine": model.engine.name, "modes": found, "failures": failures}


def _one(steps: Steps, mode: str) -> float:
    steps.run(mode)
    began = perf_counter()
    steps.run(mode)
    return 1e3 * (perf_counter() - began)


def _relative(found: StepOutputs, expected: StepOutputs) -> float:
    assert found.logits is not None and expected.logits is not None
    one, other = found.logits[:, :BLOCK], expected.logits[:, :BLOCK]
    return float(np.sqrt(np.square(one - other).mean() / np.square(other).mean()))


def floor_ms(shape: Widths, queries: int, cached: int, session: Session) -> float:
    """The least milliseconds of a 16-bit step, by the measured ceilings."""
    layer = sum(outputs * inputs for outputs, inputs in shape.products())
    head = shape.vocabulary * shape.width
    moved = 2 * (shape.layers * (layer + 2 * shape.kv_width * cached) + head)
    attention = 4 * shape.layers * shape.heads_width * queries * (queries + cached)
    work = 2 * (shape.layers * layer * queries + head * BLOCK) + attention
    read, peak = session.ceiling("read_tb_s"), session.ceiling("bfloat16_tflop_s")
    return 1e3 * max(moved / read / 1e12, work / peak / 1e12)


def products(
    shape: Widths, rows: list[int], kinds: tuple[str, ...] = ("merged", "apart")
) -> dict[int, dict[str, float]]:
    """Milliseconds of all products of a step, by number of rows and by kind: merged, apart (one per matrix), or fp8."""
    found: dict[int, dict[str, float]] = {count: {} for count in rows}
    with torch.inference_mode():
        for kind in kinds:
            weights = _weights(shape, kind)
            for count in rows:
                calls = {kind: [_step_of_products(shape, weights, count, kind)]}
                found[count][kind] = interleaved(calls, rounds=5)[kind].median_us / 1e3
            del weights
            if DEVICE == "cuda":
                torch.cuda.empty_cache()
    return found


def _weights(shape: Widths, kind: str) -> list[torch.Tensor]:
    """Random weights for every product of a step; the head's are last."""
    sizes = shape.products()
    if kind == "apart":
        (_, width), out, (gate, _), down = sizes
        qkv = [(shape.heads_width, width), (shape.kv_width, width), (shape.kv_width, width)]
        sizes = [*qkv, out, (gate // 2, width), (gate // 2, width), down]
    dtype = torch.float8_e4m3fn if kind == "fp8" else torch.bfloat16
    made = [torch.randn(size, dtype=torch.bfloat16, device=DEVICE).to(dtype) for size in sizes * shape.layers]
    return [*made, torch.randn(shape.vocabulary, shape.width, dtype=torch.bfloat16, device=DEVICE)]


def _step_of_products(shape: Widths, weights: list[torch.Tensor], count: int, kind: str) -> Call:
    inputs = {size: _rows(count, size, kind) for size in {weight.shape[1] for weight in weights}}
    ones = {size: torch.ones(size, 1, device=DEVICE) for size in {count, *(weight.shape[0] for weight in weights)}}
    decoded = torch.randn(BLOCK, shape.width, dtype=torch.bfloat16, device=DEVICE)

    def run() -> None:
        for weight in weights[:-1]:
            if kind == "fp8":
                scales = {"scale_a": ones[count], "scale_b": ones[len(weight)].T}
                torch._scaled_mm(inputs[weight.shape[1]], weight.T, **scales, out_dtype=torch.bfloat16)
            else:
                F.linear(inputs[weight.shape[1]], weight)
        F.linear(decoded, weights[-1])

    return run


def _rows(count: int, width: int, kind: str) -> torch.Tensor:
    rows = torch.randn(count, width, dtype=torch.bfloat16, device=DEVICE)
    return rows.to(torch.float8_e4m3fn) if kind == "fp8" else rows
