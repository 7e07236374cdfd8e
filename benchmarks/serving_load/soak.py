"""A mixed load for minutes: whether memory grows, and whether every sequence is accounted for at the end.

figures = await soak(run)
"""

import asyncio
import random
import time
from typing import Any

import numpy as np

import measure
from serving_load.client import Client, connected, crowd, milliseconds
from serving_load.run import Run, finding

_CLIENTS, _WARM, _MOST_SLOPE = 6, 0.25, 1.0  # the share that warms up; MiB an hour
_HOUR = 3600.0


async def soak(run: Run) -> dict[str, Any]:
    """Whole, streamed and several answers, deadlines, infills, refusals and clients that leave, of the own engine."""
    rng, seconds = random.Random(6), []
    statuses: dict[int, int] = {}
    with run.own("--max-running", 4, "--max-waiting", 16) as target:
        async with connected(target) as client:

            async def turn(number: int) -> None:
                status, taken = await _turn(run, client, rng)
                statuses[status] = statuses.get(status, 0) + 1
                seconds.append(taken)

            sizes: list[tuple[float, int]] = []
            watching = asyncio.create_task(_watch(target.memory, sizes, run.size.minutes))
            lasted = await crowd(_CLIENTS, 60 * run.size.minutes, turn)
            watching.cancel()
            balance = await client.balance()
        failed = sum(record["event"] == "failed" for record in target.records())
    warm = [(at, size) for at, size in sizes if at >= _WARM * 60 * run.size.minutes] or sizes
    slope = _slope(warm) * _HOUR / 2**20
    run.say(f"soak: {len(seconds)} requests, {slope:.2f} MiB an hour, {statuses}")
    judged = slope < _MOST_SLOPE or not run.size.judges_memory
    return finding(
        "resident memory grows by less than 1 MiB an hour after warming up; no failure; every sequence is counted",
        judged and not failed and balance["equal"] and set(statuses) <= {0, 200, 400},
        minutes=measure.digits(lasted / 60),
        requests=len(seconds),
        request_ms=milliseconds(seconds),
        statuses={str(status): count for status, count in sorted(statuses.items())},
        mib_an_hour=measure.digits(slope),
        resident_mib=[round(size / 2**20, 2) for _, size in sizes[:: max(1, len(sizes) // 40)]],
        sequences=balance,
    )


async def _turn(run: Run, client: Client, rng: random.Random) -> tuple[int, float]:
    """One request of a random kind: its status, 0 if the client left; and its seconds."""
    more: dict[str, Any] = rng.choice(
        [{}, {}, {"stream": True}, {"n": 2}, {"deadline_ms": 20}, {"temperature": 0.8}, {"max_tokens": 10**6}, {"x": 1}]
    )
    body = run.body(**{"prompt": f"What is {rng.randint(1, 99)} + {rng.randint(1, 99)}?", **more})
    began = time.perf_counter()
    if rng.random() < 0.1:
        asked = asyncio.create_task(client.ask(body))
        await asyncio.sleep(rng.uniform(0, 0.05))
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        return 0, time.perf_counter() - began
    refused = bool({"max_tokens", "x"} & more.keys())
    answer = await (client.ask(body) if refused else client.whole(body))
    return answer.status, answer.seconds


async def _watch(memory: Any, sizes: list[tuple[float, int]], minutes: float) -> None:
    began = time.perf_counter()
    while True:
        sizes.append((time.perf_counter() - began, memory()))
        await asyncio.sleep(min(5.0, 60 * minutes / 20))


def _slope(sizes: list[tuple[float, int]]) -> float:
    """Bytes a second, of the line that fits best."""
    if len(sizes) < 2:
        return 0.0
    at, size = np.array(sizes, dtype=float).T
    return float(np.polyfit(at, size, 1)[0])
