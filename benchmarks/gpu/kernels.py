"""The attention kernel on a GPU: right, and how fast against PyTorch's own attention."""

import itertools
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F

from dpad.plugins import tiling
from dpad.plugins.attention import definition
from dpad.plugins.launch import attend_rows
from gpu.timing import DEVICE, Times, data_sets, interleaved

MODELS = {"llada-8b": (32, 32, 128), "dream-7b": (28, 4, 128)}  # query heads, key/value heads, head size
QUERIES = (32, 64, 128)
CACHED = (8192, 2048, 512)
SWEPT = (("llada-8b", 128, 2048), ("llada-8b", 32, 8192), ("dream-7b", 32, 8192))
SECONDS = 25.0  # of random cases
LIMITS = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # relative RMS error

Inputs = list[torch.Tensor]


def make_inputs(
    rows: int, cached: int, heads: int, kv_heads: int, size: int, dtype: torch.dtype, batch: int = 1, pads: bool = False
) -> Inputs:
    """Random rows; slots in ascending order with gaps, as a retained prefix and suffix have."""
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
    """Root mean square of the difference over that of the expected; NaN shows as NaN."""
    return float((out.float() - want.float()).square().mean().sqrt() / want.float().square().mean().sqrt())


def correctness() -> dict[str, Any]:
    """Random shapes against the definition in float32, outputs poisoned; for about `SECONDS`."""
    torch.manual_seed(0)
    worst = {str(dtype): 0.0 for dtype in LIMITS}
    failures, cases, end = [], 0, time.monotonic() + SECONDS
    shapes = itertools.product((1, 32, 50, 128), (0, 1, 300, 2048), ((32, 32), (28, 4), (4, 1)), (64, 96, 128))
    order = list(itertools.product(shapes, LIMITS))
    for place in torch.randperm(len(order)).tolist():
        if time.monotonic() > end:
            break
        (rows, cached, (heads, kv_heads), size), dtype = order[place]
        inputs = make_inputs(rows, cached, heads, kv_heads, size, dtype, batch=1 + place % 2, pads=True)
        out = torch.full_like(inputs[0], float("nan"))
        block = (0, 0, 4, 32)[place % 4]
        attend_rows(*inputs, size**-0.5, block, output=out)
        wide = [tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs]
        error = relative_error(out, definition(*wide, size**-0.5, block))
        cases += 1
        worst[str(dtype)] = max(worst[str(dtype)], error)
        if not error <= LIMITS[dtype]:
            failures.append(
                {"rows": rows, "cached": cached, "heads": heads, "size": size, "block": block, "error": error}
            )
    return {"cases": cases, "worst_relative_rms": worst, "failures": failures, "passed": cases > 0 and not failures}


def gathered(inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values that a kernel without gathering would be given: [B, G, K + Q, D]."""
    _, key, value, key_cache, value_cache, chosen, _ = inputs
    keys = torch.cat([key_cache[chosen], key], 1)
    values = torch.cat([value_cache[chosen], value], 1)
    return keys.transpose(1, 2), values.transpose(1, 2)


def sdpa(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """PyTorch's attention, without a mask so that its fastest backend may run."""
    grouped = query.shape[2] != keys.shape[1]
    return F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, scale=scale, enable_gqa=grouped)


def speed(bandwidth: float, seconds: float) -> list[dict[str, Any]]:
    """Kernel, SDPA on gathered keys, and gather + SDPA, each against `bandwidth` in TB/s; for about `seconds`."""
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
    return {
        "model": model,
        "queries": queries,
        "cached": cached,
        "times": {name: asdict(value) for name, value in times.items()},
        "over_sdpa": times["sdpa"].median_us / kernel,
        "over_gather_sdpa": times["gather+sdpa"].median_us / kernel,
        "bandwidth_tb_s": moved / kernel / 1e6,
        "share_of_bandwidth": moved / kernel / 1e6 / bandwidth,
        "tflop_s": 4 * queries * heads * size * (cached + queries) / kernel / 1e6,
    }


def sweep(capability: str, seconds: float) -> list[dict[str, Any]]:
    """Every tile and number of splits at a few shapes: is the table's choice the fastest?"""
    rows, end = [], time.monotonic() + seconds
    for model, queries, cached in SWEPT:
        heads, kv_heads, size = MODELS[model]
        moved = 4 * size * (cached + queries) * kv_heads
        sets = [make_inputs(queries, cached, heads, kv_heads, size, torch.bfloat16) for _ in range(data_sets(moved))]
        chosen = interleaved({"chosen": [_bind(attend_rows, *inputs, size**-0.5) for inputs in sets]}, rounds=7)
        found: dict[str, Times] = dict(chosen)
        for tile, splits in itertools.product(tiling.tiles(capability), (1, 2, 4, 8, 16)):
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
            }
        )
    return rows


def _gather_sdpa(inputs: Inputs, scale: float) -> torch.Tensor:
    return sdpa(inputs[0], *gathered(inputs), scale)


def _bind(function: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
    return lambda: function(*arguments, **options)
