"""Concurrent requests to the large model: tokens per second in total and per request, compared with one request."""

from statistics import median
from time import perf_counter
from typing import Any

from gpu import start
from gpu.end_to_end import prompt_of, schedule
from gpu.session import Session
from gpu.sizes import PER_PASS


def measure(session: Session) -> dict[str, Any]:
    """Results by number of concurrent requests, each of which has its own prompt."""
    sizes, model = session.setup.sizes, start.model_of(session)
    options: dict[str, Any] = {
        "gen_length": sizes.at_once_new,
        "decoder": "fixed",
        "steps": sizes.at_once_new // PER_PASS,
        "cache": "dual",
        "schedule": schedule(sizes.at_once_new),
        "early_termination": False,
    }
    rows: dict[str, Any] = {}
    for count in sizes.at_once:
        if rows and session.left() < 10:
            rows[str(count)] = {"skipped": "out of time"}
            continue
        prompts = [prompt_of(sizes, seed) for seed in range(count)]
        for _ in range(2):  # the first run records the shapes
            began = perf_counter()
            generations = model.generate_batch(prompts, **options)
            seconds = perf_counter() - began
        rows[str(count)] = {
            "seconds": seconds,
            "tokens_per_s": count * sizes.at_once_new / seconds,
            "tokens_per_s_of_each": sizes.at_once_new / median(one.timings.total for one in generations),
        }
    for row in rows.values():
        if "tokens_per_s" in row:
            row["times_one"] = row["tokens_per_s"] / rows["1"]["tokens_per_s"]
    return {"engine": model.engine.name, "cache": "dual", "new_tokens": sizes.at_once_new, "requests": rows}
