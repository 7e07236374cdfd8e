"""One denoising step of an 8B-shaped LLaDA with random bfloat16 weights, against its floor.

The floor of a step is the larger of reading every weight once at the measured bandwidth and
its multiply-adds at the measured peak; no implementation can be faster without smaller
weights.
"""

import time
from dataclasses import asdict
from typing import Any

import torch

from dpad.models import llada
from dpad.models.step import Step
from gpu.timing import DEVICE, interleaved

CANVAS, PROMPT, BLOCK = 1024, 512, 32
KEPT = 96  # suffix rows that survived: 128 query rows in prefix mode

CONFIG = llada.Config(
    layers=32,
    width=4096,
    heads=32,
    kv_heads=32,
    mlp_width=12288,
    vocab_size=126464,
    rope_theta=500000.0,
    norm_eps=1e-5,
    qkv_bias=False,
    tied=False,
    mask_token_id=126336,
    eos_token_id=126081,
    max_length=4096,
)


def modes() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """(gather_indices, cache_indices) of a step in the middle of the canvas, batch 1."""
    block = torch.arange(PROMPT, PROMPT + BLOCK)
    kept = torch.arange(PROMPT + BLOCK, CANVAS)[:: (CANVAS - PROMPT - BLOCK) // KEPT][:KEPT]
    prefix, nothing = torch.arange(PROMPT), torch.arange(0)
    everything = torch.arange(CANVAS)
    chosen = {
        "vanilla": (everything, nothing),
        "none": (torch.cat([prefix, block, kept]), nothing),
        "prefix": (torch.cat([block, kept]), prefix),
        "dual": (block, torch.cat([prefix, kept])),
    }
    return {name: (queries[None].to(DEVICE), cached[None].to(DEVICE)) for name, (queries, cached) in chosen.items()}


def floor_us(queries: int, cached: int, bandwidth: float, peak: float) -> float:
    """Microseconds that no step can beat; `bandwidth` in TB/s, `peak` in TFLOP/s."""
    layer = 4 * CONFIG.width**2 + 3 * CONFIG.width * CONFIG.mlp_width
    head = CONFIG.vocab_size * CONFIG.width
    moved = 2 * (CONFIG.layers * layer + head) + CONFIG.layers * 4 * CONFIG.width * cached
    attention = 4 * CONFIG.layers * CONFIG.width * queries * (queries + cached)
    work = 2 * (CONFIG.layers * layer * queries + head * BLOCK) + attention
    return max(moved / bandwidth / 1e6, work / peak / 1e6)


def random_step(layers: int | None = None) -> Step:
    """The module with random weights on the GPU."""
    config = llada.Config(**{**asdict(CONFIG), "layers": layers or CONFIG.layers})
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            model = llada.Model(config)
    finally:
        torch.set_default_dtype(before)
    model = model.to_empty(device=DEVICE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_(1)
    return Step(model)


def measure(bandwidth: float, peak: float, seconds: float) -> dict[str, Any]:
    """Milliseconds of a step in each mode: from Python, as a CUDA graph, and compiled by Inductor."""
    end = time.monotonic() + seconds
    step = random_step()
    with torch.inference_mode():
        results = {name: _mode(step, *indices, bandwidth, peak) for name, indices in modes().items()}
        compiled: dict[str, Any] = {}
        if time.monotonic() < end:
            try:
                step.compile(dynamic=False)
                for name in ("prefix", "dual"):
                    if time.monotonic() < end:
                        compiled[name] = _mode(step, *modes()[name], bandwidth, peak)
            except Exception as error:  # recorded: the plain figures count
                compiled["error"] = f"{type(error).__name__}: {str(error)[:400]}"
        else:
            compiled["skipped"] = "out of time"
    return {"eager": results, "inductor": compiled}


def _mode(step: Step, queries: torch.Tensor, cached: torch.Tensor, bandwidth: float, peak: float) -> dict[str, Any]:
    shape = (CANVAS, CONFIG.kv_heads, CONFIG.head_size)
    caches = [torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2 * CONFIG.layers)]
    canvas = torch.randint(0, CONFIG.vocab_size, (1, CANVAS), device=DEVICE)
    rows = torch.arange(BLOCK, device=DEVICE)[None] + (0 if cached.shape[1] else PROMPT)

    def run() -> object:
        return step(canvas, queries, cached, rows, caches)

    python = interleaved({"it": [run]}, rounds=7, graphs=False)["it"]
    graph = interleaved({"it": [run]}, rounds=7)["it"]
    floor = floor_us(queries.shape[1], cached.shape[1], bandwidth, peak)
    return {
        "queries": queries.shape[1],
        "cached": cached.shape[1],
        "python_ms": python.median_us / 1e3,
        "graph_ms": graph.median_us / 1e3,
        "floor_ms": floor / 1e3,
        "graph_over_floor": graph.median_us / floor,
    }
