"""The attention kernel on a GPU: its correctness, and its speed compared with PyTorch's own attention."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

from dpad.plugins import tiling
from dpad.plugins.attention import definition
from dpad.plugins.launch import attend_rows, combine_rows, gpu
from gpu.timing import DEVICE, Times, data_sets, interleaved
from gpu.variants import Case, Variant, ready, shipped

MODELS = {"llada-8b": (32, 32, 128), "dream-7b": (28, 4, 128)}  # query heads, key/value heads, head size
QUERIES = (32, 64, 128)
CACHED = (8192, 2048, 512)
SWEPT = (
    ("llada-8b", 128, 512),
    ("dream-7b", 32, 512),
    ("llada-8b", 128, 2048),
    ("llada-8b", 256, 1024),
    ("dream-7b", 128, 2048),
    ("llada-8b", 32, 8192),
    ("dream-7b", 32, 8192),
)
SPLITS = (1, 2, 3, 4, 6, 8, 16)
SECONDS = 30.0  # time for random cases, compiling included
CASES = 500  # least number of random cases
LIMITS = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # relative RMS error
GOALS = {"over_sdpa": 1.0, "over_gather_sdpa": 1.6}  # for every shape of `speed`, on an H100

Inputs = list[torch.Tensor]


def make_inputs(
    rows: int, cached: int, heads: int, kv_heads: int, size: int, dtype: torch.dtype, batch: int = 1, pads: bool = False
) -> Inputs:
    """Random inputs of the op; slots ascend with gaps, like those of a kept prefix and suffix."""
    slots = cached + cached // 4 + 1
    shapes = [(batch, rows, heads, size)] + [(batch, rows, kv_heads, size)] * 2 + [(slots, kv_heads, size)] * 2
    floats = [torch.randn(shape, dtype=dtype, device=DEVICE) for shape in shapes]
    chosen = torch.stack([torch.randperm(slots)[:cached].sort().values for _ in range(batch)])
    positions = torch.arange(rows).repeat(batch, 1) + slots
    if pads:
        chosen[torch.rand(chosen.shape) < 0.2] = -1
        positions[:, rows - rows // 5 :] = -1
    return [*floats, chosen.to(DEVICE), positions.to(DEVICE)]


def relative_error(out: torch.Tensor, want: torch.Tensor) -> float:
    """Root mean square of the difference divided by that of `want`; a NaN in either gives NaN."""
    return float((out.float() - want.float()).square().mean().sqrt() / want.float().square().mean().sqrt())


def correctness() -> dict[str, Any]:
    """Compare every variant at random shapes with the float32 definition, for at most `SECONDS`.

    Outputs, and pool slots that no index names, are NaN before the call. `wanted` is the intended number of cases: the
    same number for each variant, at least `CASES` in total.
    """
    torch.manual_seed(0)
    variants = shipped(gpu(torch.device(DEVICE))[0])
    if DEVICE == "cpu":  # Triton's interpreter multiplies bfloat16 as integers
        variants = [variant for variant in variants if variant.dtype == torch.float16]
    each = -(-CASES // len(variants))
    worst, failures, cases = {str(dtype): 0.0 for dtype in LIMITS}, list[dict[str, Any]](), 0
    for variant, case in _cases(variants, each, time.monotonic() + SECONDS):
        error = _error(variant, case)
        cases += 1
        name = str(variant.dtype)
        worst[name] = max(worst[name], error)
        if not error <= LIMITS[variant.dtype]:
            failures.append({"variant": str(variant), **asdict(case), "error": error})
    return {"cases": cases, "wanted": each * len(variants), "worst_relative_rms": worst, "failures": failures}


def _cases(variants: list[Variant], each: int, end: float) -> Iterator[tuple[Variant, Case]]:
    """`each` random cases of every variant, in the order in which their code is ready, until the time `end`."""
    rng, rows, cached = Random(0), max(QUERIES) * 5 // 4, max(CACHED) // 4
    heads = (*((heads, kv_heads) for heads, kv_heads, _ in MODELS.values()), (8, 2))
    with closing(ready(variants)) as compiled:
        for variant in compiled:
            for _ in range(each):
                if time.monotonic() > end:
                    return
                yield variant, variant.draw(rng, rows, cached, heads)


def _error(variant: Variant, case: Case) -> float:
    heads, scale = case.kv_heads * case.group, variant.size**-0.5
    sizes = (case.rows, case.cached, heads, case.kv_heads, variant.size)
    inputs = make_inputs(*sizes, variant.dtype, case.batch, case.pads)
    wide = [tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs]
    named = torch.zeros(len(inputs[3]), dtype=torch.bool, device=DEVICE).index_fill_(
        0, inputs[5].clamp(0).view(-1), True
    )
    for pool in inputs[3:5]:
        pool[~named] = float("nan")
    out = torch.full_like(inputs[0], float("nan"))
    attend_rows(*inputs, scale, case.block, tile=variant.tile, splits=case.splits, output=out)
    return relative_error(out, definition(*wide, scale, case.block))


def gathered(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Gathered keys and values, as an attention without gathering needs them: [B, G, K + Q, D] each."""
    _, key, value, key_cache, value_cache, chosen, _ = inputs
    keys = torch.cat([key_cache[chosen], key], 1)
    values = torch.cat([value_cache[chosen], value], 1)
    return keys.transpose(1, 2), values.transpose(1, 2)


def sdpa(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """PyTorch's attention without a mask, so that its fastest backend can run."""
    grouped = query.shape[2] != keys.shape[1]
    return F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, scale=scale, enable_gqa=grouped)


def speed(bandwidth: float, seconds: float) -> list[dict[str, Any]]:
    """Time the kernel, SDPA on gathered keys, and gather + SDPA, for about `seconds`; `bandwidth` is in TB/s."""
    rows, end = [], time.monotonic() + seconds
    for model, queries, cached in itertools.product(MODELS, QUERIES, CACHED):
        if time.monotonic() > end:
            rows.append({"model": model, "queries": queries, "cached": cached, "skipped": "out of time"})
            continue
        rows.append(_speed(model, queries, cached, bandwidth))
        torch.cuda.empty_cache()
    return rows


def _speed(model: str, queries: int, cached: int, bandwidth: float) -> dict[str, Any]:
    heads, kv_heads, size = MODELS[model]
    moved = 2 * size * (2 * (cached + queries) * kv_heads + 2 * queries * heads)
    sets = [make_inputs(queries, cached, heads, kv_heads, size, torch.bfloat16) for _ in range(data_sets(moved))]
    ready = [tuple(part.contiguous() for part in gathered(inputs)) for inputs in sets]
    scale = size**-0.5
    times = interleaved(
        {
            "kernel": [_bind(attend_rows, *inputs, scale) for inputs in sets],
            "sdpa": [_bind(sdpa, inputs[0], *parts, scale) for inputs, parts in zip(sets, ready)],
            "gather+sdpa": [_bind(_gather_sdpa, inputs, scale) for inputs in sets],
        }
    )
    kernel = times["kernel"].median_us
    ratios = {
        "over_sdpa": times["sdpa"].median_us / kernel,
        "over_gather_sdpa": times["gather+sdpa"].median_us / kernel,
    }
    return {
        "model": model,
        "queries": queries,
        "cached": cached,
        "times": {name: asdict(value) for name, value in times.items()},
        **ratios,
        "meets_goal": all(ratios[name] >= goal for name, goal in GOALS.items()),
        "bandwidth_tb_s": moved / kernel / 1e6,
        "share_of_bandwidth": moved / kernel / 1e6 / bandwidth,
        "tflop_s": 4 * queries * heads * size * (cached + queries) / kernel / 1e6,
    }


def sweep(capability: str, seconds: float) -> list[dict[str, Any]]:
    """Time every tile and number of splits at a few shapes, to compare with the chosen ones, and time `combine`."""
    rows, end = [], time.monotonic() + seconds
    for model, queries, cached in SWEPT:
        heads, kv_heads, size = MODELS[model]
        moved = 4 * size * (cached + queries) * kv_heads
        sets = [make_inputs(queries, cached, heads, kv_heads, size, torch.bfloat16) for _ in range(data_sets(moved))]
        chosen = interleaved({"chosen": [_bind(attend_rows, *inputs, size**-0.5) for inputs in sets]}, rounds=7)
        found: dict[str, Times] = dict(chosen)
        for tile, splits in itertools.product(tiling.tiles(capability), SPLITS):
            if time.monotonic() > end:
                break
            calls = [_bind(attend_rows, *inputs, size**-0.5, tile=tile, splits=splits) for inputs in sets]
            found[f"m{tile.block_m} n{tile.block_n} splits {splits}"] = interleaved({"it": calls}, rounds=5)["it"]
        best = min(found, key=lambda name: found[name].median_us)
        rows.append(
            {
                "model": model,
                "queries": queries,
                "cached": cached,
                "times_us": {name: value.median_us for name, value in found.items()},
                "best": best,
                "chosen_over_best": found["chosen"].median_us / found[best].median_us,
                "combine_us": _combine(queries, heads, size),
            }
        )
    return rows


def _combine(queries: int, heads: int, size: int) -> dict[int, float]:
    """Microseconds of combining partial results, by their number."""
    found = {}
    for splits in (2, 4, 8):
        partial = torch.randn((splits, 1, queries, heads, size), device=DEVICE)
        out = torch.empty(partial.shape[1:], dtype=torch.bfloat16, device=DEVICE)
        calls = [_bind(combine_rows, partial, partial[..., 0].contiguous(), out)] * 8
        found[splits] = interleaved({"it": calls}, rounds=5)["it"].median_us
    return found


def _gather_sdpa(inputs: Inputs, scale: float) -> torch.Tensor:
    return sdpa(inputs[0], *gathered(inputs), scale)


def _bind(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
    return lambda: function(*arguments, **options)
