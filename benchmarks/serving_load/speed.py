"""How fast a server is: what it adds to `generate`, clients at a time, and how late a deadline is kept.

figures = await overhead(run)
"""

import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

import dpad
import measure
from serving_load import null_server
from serving_load.client import Client, connected, crowd, milliseconds
from serving_load.run import PASS_MS, PROMPT, Run, finding
from serving_load.target import SERVER, Target, pinned

_BATCH = 8
CLIENTS = (1, 2, 4, 8)
NEAR_LINEAR = 0.9
_OPTIONS: dict[str, Any] = {
    "decoder": "fixed",
    "block_length": 8,
    "cache": "prefix",
    "schedule": dpad.Full(),
    "temperature": 0.0,
}


def alone(bundle: Path, null: bool, tokens: int, count: int) -> tuple[list[float], int]:
    """Seconds of `count` calls of `generate` in this process, after one more, and its resident memory in bytes."""
    opened = null_server.load(PASS_MS, _BATCH, bundle) if null else dpad.load(bundle, threads=1)
    seconds = []
    with pinned(SERVER), opened as model:
        for _ in range(count + 1):
            began = time.perf_counter()
            model.generate(PROMPT, raw=True, gen_length=tokens, **_OPTIONS)
            seconds.append(time.perf_counter() - began)
    return seconds[1:], measure.memory_of(os.getpid())


async def overhead(run: Run) -> dict[str, Any]:
    """What HTTP adds to a call, whole and streamed; requests a second; memory."""
    found: dict[str, Any] = {}
    for name in ("null", "own"):
        tokens, count = run.size.tokens, run.size.samples
        direct, memory = measure.in_child(alone, run.bundle, name == "null", tokens, count)
        with run.null(batch=_BATCH) if name == "null" else run.own() as target:
            found[name] = await _added(run, target, direct)
            found[name]["resident_mib"] = {"server": _mib(target.memory()), "generate": _mib(memory)}
        added = found[name]["added_ms"]
        run.say(f"overhead, {name} engine: {added['whole']['p50']} ms more than generate in the median")
    with run.null(batch=_BATCH, pass_ms=0) as target:
        async with connected(target) as client:
            found["most_requests_per_s"] = await _rate(run, client, 1)
    return finding("none", None, **found)


async def _added(run: Run, target: Target, direct: list[float]) -> dict[str, Any]:
    async with connected(target) as client:
        seconds: dict[str, list[float]] = {}
        for kind in ("whole", "streamed"):
            body = run.body(stream=kind == "streamed")
            answers = [await client.whole(body) for _ in range(run.size.samples + 1)][1:]
            seconds[kind] = [answer.seconds for answer in answers]
        rate = await _rate(run, client, run.size.tokens)
    told = milliseconds(direct)
    asked = {kind: milliseconds(each) for kind, each in seconds.items()}
    added = {
        kind: {part: measure.digits(each[part] - told[part]) for part in ("p50", "p99")} for kind, each in asked.items()
    }
    return {"generate_ms": told, "http_ms": asked, "added_ms": added, "requests_per_s": rate}


async def _rate(run: Run, client: Client, tokens: int) -> float:
    """Answers a second to as many clients as share a pass."""
    done = 0

    async def turn(number: int) -> None:
        nonlocal done
        await client.whole(run.body(tokens))
        done += 1

    seconds = await crowd(_BATCH, run.size.seconds / 2, turn)
    return measure.digits(done / seconds)


def _mib(size: int) -> float:
    return round(size / 2**20, 1)


async def throughput(run: Run) -> dict[str, Any]:
    """Answers a second at 1, 2, 4 and 8 clients, whose sequences share passes."""
    found: dict[str, Any] = {}
    for name in ("null", "own"):
        with run.null(batch=_BATCH) if name == "null" else run.own() as target:
            async with connected(target) as client:
                found[name] = await _at_clients(run, client)
        run.say(f"throughput, {name} engine: {found[name]}")
    times = found["null"]["times_one"]
    met = all(times[str(count)] >= NEAR_LINEAR * count for count in CLIENTS)
    goal = f"null engine: {NEAR_LINEAR:g} times as many answers a second as clients, up to the batch limit of {_BATCH}"
    return finding(goal, met, **found)


async def _at_clients(run: Run, client: Client) -> dict[str, Any]:
    rates: dict[str, float] = {}
    for count in CLIENTS:
        done = 0

        async def turn(number: int) -> None:
            nonlocal done
            await client.whole(run.body())
            done += 1

        await client.whole(run.body())
        seconds = await crowd(count, run.size.seconds / 2, turn)
        rates[str(count)] = measure.digits(done / seconds)
    return {
        "answers_per_s": rates,
        "times_one": {count: measure.digits(rate / rates["1"]) for count, rate in rates.items()},
    }


async def deadline(run: Run) -> dict[str, Any]:
    """How late answers with a deadline are, by the server's own log and by the client's clock."""
    rng, late, seen, reasons = random.Random(1), [], [], set()
    long = run.body(min(240, 8 * run.size.tokens))
    with run.null(batch=_BATCH) as target:
        async with connected(target) as client:
            before = await client.metric("dpad_passes_total")
            answer = await client.whole(long)
            pass_seconds = answer.seconds / (await client.metric("dpad_passes_total") - before)
            for number in range(run.size.samples):
                within = rng.randint(20, int(500 * min(answer.seconds, 1)))
                body = {**long, "deadline_ms": within, "stream": bool(number % 2)}
                answered = await client.whole(body, x_request_id=f"deadline-{number}-{within}")
                reasons.add(answered.reason)
                seen.append(answered.seconds - within / 1e3)
        for record in target.records():
            if record.get("request_id", "").startswith("deadline-"):
                late.append(record["seconds"] - int(record["request_id"].rpartition("-")[2]) / 1e3)
    over = float(np.percentile(late, 99))
    run.say(f"deadline: {1e3 * over:.2f} ms late in the 99th percentile, a pass takes {1e3 * pass_seconds:.2f} ms")
    return finding(
        "at most one pass late, in the 99th percentile of the server's log; every answer says so",
        over <= pass_seconds and reasons == {"deadline"},
        pass_ms=measure.digits(1e3 * pass_seconds),
        late_ms=milliseconds(late),
        late_ms_at_the_client=milliseconds(seen),
        reasons=sorted(map(str, reasons)),
    )
