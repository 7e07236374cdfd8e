"""More clients than there is room for, and clients that leave, dawdle or never end their request.

figures = await overload(run)
"""

import asyncio
import json
import random
import socket
import time
from contextlib import AsyncExitStack
from math import inf
from typing import Any

import measure
from serving_load.client import COMPLETIONS, Client, connected, crowd, milliseconds
from serving_load.run import PASS_MS, Run, finding
from serving_load.target import Target

_RUNNING, _WAITING = 4, 8
_REFUSED_S, _GOODPUT, _HEALTH_S, _BACK_S, _NEIGHBOURS = 0.05, 0.95, 0.1, 0.05, 1.2


async def overload(run: Run) -> dict[str, Any]:
    """A server with room for 12 sequences, and many more clients, who come again when Retry-After says so.

    They add up to as much again, by chance: else all would come at the same moment.
    """
    limits = ("--max-running", _RUNNING, "--max-waiting", _WAITING)
    with run.null(*limits, batch=_RUNNING) as target:
        async with connected(target) as client:
            saturated, _, _ = await _asked(run, client, _RUNNING + _WAITING)
            health: list[float] = []
            watching = asyncio.create_task(_watch(client, health))
            rate, refused, others = await _asked(run, client, run.size.clients)
            watching.cancel()
            balance = await client.balance()
    told, well = milliseconds(refused), milliseconds(health)
    goodput = rate / saturated
    run.say(f"overload: {len(refused)} refused in {told.get('p99')} ms (p99), goodput {goodput:.1%}, health {well}")
    met = bool(refused) and not others and told["p99"] < 1e3 * _REFUSED_S and goodput >= _GOODPUT
    return finding(
        "refused with p99 under 50 ms; goodput at least 95 % of the saturated; health p99 under 100 ms",
        met and well["p99"] < 1e3 * _HEALTH_S and balance["equal"],
        clients=run.size.clients,
        refused_ms=told,
        health_ms=well,
        answers_per_s={"saturated": measure.digits(saturated), "overloaded": measure.digits(rate)},
        goodput=measure.digits(goodput),
        other_answers=others,
        sequences=balance,
    )


async def _asked(run: Run, client: Client, clients: int) -> tuple[float, list[float], int]:
    """Answers a second, seconds of refusals, and how many answers were neither."""
    rng, refused, done, others = random.Random(2), [], 0, 0
    end = time.perf_counter() + run.size.seconds

    async def turn(number: int) -> None:
        nonlocal done, others
        answer = await client.ask(run.body())
        if answer.status == 429:
            refused.append(answer.seconds)
            left = max(0.0, end - time.perf_counter())
            await asyncio.sleep(min(left, int(answer.headers["retry-after"]) * rng.uniform(1, 2)))
        elif answer.whole:
            done += 1
        else:
            others += 1

    seconds = await crowd(clients, run.size.seconds, turn)
    return done / seconds, refused, others


async def _watch(client: Client, seconds: list[float]) -> None:
    """Ask for its health ten times a second, live and ready in turn."""
    while True:
        for path in ("/health/live", "/health/ready"):
            answer = await client.get(path)
            seconds.append(answer.seconds if answer.status == 200 else inf)
            await asyncio.sleep(0.1)


async def disconnects(run: Run) -> dict[str, Any]:
    """Clients that hang up in their request, in the queue and in the text, one to four at once."""
    rng, back, left = random.Random(3), [], 0
    with run.null("--max-running", 2, "--max-waiting", 2) as target:
        async with connected(target) as client:
            while left < run.size.disconnects:
                several = rng.randint(1, 4)
                sockets = [_sent(target, run, rng) for _ in range(several)]
                await asyncio.sleep(rng.uniform(0, 20) * PASS_MS / 1e3)
                for one in sockets:
                    one.close()
                back.append(await client.idle())
                left += several
                if len(back) % 50 == 0:
                    run.say(f"disconnects: {left}, {milliseconds(back)}")
            balance = await client.balance()
    told = milliseconds(back)
    most = PASS_MS / 1e3 + _BACK_S
    return finding(
        f"slots back and gauges at 0 within a pass and 50 ms ({1e3 * most:g} ms) in the 99th percentile",
        told["p99"] <= 1e3 * most and balance["equal"],
        disconnects=left,
        back_ms=told,
        sequences=balance,
    )


def _sent(target: Target, run: Run, rng: random.Random) -> socket.socket:
    """A connection with a request, or a part of one."""
    one = socket.create_connection((target.host, target.port), 30)
    whole = _request(run.body(min(240, 8 * run.size.tokens), stream=rng.random() < 0.5))
    one.sendall(whole if rng.random() < 0.8 else whole[: rng.randrange(len(whole))])
    return one


def _request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


async def slow(run: Run) -> dict[str, Any]:
    """Neighbours of clients that read a few bytes a second, and of heads that come a byte at a time.

    Compared with as many clients that read at once: what they have decoded costs the same.
    """
    readers = run.size.readers
    with run.null("--max-running", readers + 8, "--max-waiting", readers, batch=readers + 8) as target:
        async with connected(target) as client:
            fast = await _neighbours(run, client, target, slowly=False)
            beside = await _neighbours(run, client, target, slowly=True)
            balance = await client.balance()
    ratio = beside["p99"] / fast["p99"]
    run.say(f"slow: neighbours' p99 {beside['p99']} ms, {ratio:.3f} times that beside clients that read")
    return finding(
        f"neighbours' p99 at most {_NEIGHBOURS:g} times",
        ratio <= _NEIGHBOURS and balance["equal"],
        slow_readers=readers,
        slow_heads=run.size.heads,
        beside_readers_ms=fast,
        beside_slow_ms=beside,
        times=measure.digits(ratio),
        sequences=balance,
    )


async def _neighbours(run: Run, client: Client, target: Target, *, slowly: bool) -> dict[str, float]:
    """Milliseconds of requests of four clients beside the others."""
    async with AsyncExitStack() as stack:
        tasks = [asyncio.create_task(_reads(run, target, slowly)) for _ in range(run.size.readers)]
        if slowly:
            tasks += [asyncio.create_task(_dawdles(target)) for _ in range(run.size.heads)]
        stack.push_async_callback(_ended, tasks)
        await asyncio.sleep(min(2.0, run.size.seconds))
        seconds: list[float] = []

        async def turn(number: int) -> None:
            answer = await client.whole(run.body())
            seconds.append(answer.seconds)

        await crowd(4, run.size.seconds, turn)
        return milliseconds(seconds)


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for failed in [
        each for each in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(each, Exception)
    ]:
        raise failed


async def _reads(run: Run, target: Target, slowly: bool) -> None:
    """One streamed answer with every pass after the other, read to its end, or 16 bytes in each tenth of a second."""
    body = run.body(min(240, 8 * run.size.tokens), stream=True, revisions=True)
    while True:
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, (target.host, target.port))
        reader, writer = await asyncio.open_connection(sock=one, limit=2048)
        try:
            writer.write(_request(body).replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            while await reader.read(16 if slowly else 1 << 16):
                await asyncio.sleep(0.1 if slowly else 0)
        except ConnectionError:
            if not slowly:
                raise
        finally:
            writer.close()


async def _dawdles(target: Target) -> None:
    """A head that comes a byte in each half second; when the server hangs up, another one."""
    while True:
        _, writer = await asyncio.open_connection(target.host, target.port)
        try:
            for byte in b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-padding: " + b"a" * 200:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.5)
        except ConnectionError:
            continue
        finally:
            writer.close()
