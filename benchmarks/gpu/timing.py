"""Times GPU work: each contender is a CUDA graph on fresh data, and contenders take turns.

    times = interleaved({"kernel": [call, ...], "sdpa": [call, ...]}, rounds=15)
    times["kernel"].median_us

A graph has one call for each data set. Together the sets are larger than the L2 cache, so that every call reads its
data from memory, like a layer of a model. The times do not include launch overhead.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

Call = Callable[[], object]

DEVICE = os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")  # a CPU is for rehearsals


@dataclass(frozen=True)
class Times:
    """Microseconds of one call: median, least and most over the rounds."""

    median_us: float
    low_us: float
    high_us: float


def capture(calls: Sequence[Call]) -> Call:
    """A call that replays one graph of all `calls`, after a warm-up; without CUDA graphs it launches them."""
    if DEVICE == "cpu":
        return _one_by_one(calls)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in (*calls, *calls[:1]):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def interleaved(contenders: Mapping[str, Sequence[Call]], rounds: int = 15, *, graphs: bool = True) -> dict[str, Times]:
    """Time a call of every contender; without `graphs` the calls are launched one by one from Python."""
    runs: dict[str, Call] = {}
    for name, calls in contenders.items():
        runs[name] = capture(calls) if graphs else _one_by_one(calls)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 2):
        for name, run in runs.items():
            elapsed = timed(run) / len(contenders[name])
            if index >= 2:  # the first rounds warm up clocks and caches
                seconds[name].append(elapsed * 1e6)
    return {name: Times(median(values), min(values), max(values)) for name, values in seconds.items()}


def timed(run: Call) -> float:
    """Seconds of `run` on the device."""
    if DEVICE == "cpu":
        began = perf_counter()
        run()
        return perf_counter() - began
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def data_sets(size: int) -> int:
    """The number of sets of `size` bytes, 2 to 64, that together are four times as large as the L2 cache."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size if DEVICE == "cuda" else 1
    return max(2, min(64, -(-4 * cache // max(size, 1))))


def _one_by_one(calls: Sequence[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    run()
    return run
