"""What clients see of an engine that is killed.

figures = await engine_killed(run)
"""

import asyncio
import os
import signal
import time
from typing import Any

from serving_load.client import Answer, Client, connected, milliseconds
from serving_load.run import Run, finding
from serving_load.target import Target

_STREAMED, _WHOLE = 6, 2
_HEARD_MS, _HUNG = 1000.0, 20.0


async def engine_killed(run: Run) -> dict[str, Any]:
    """SIGKILL for the engine's process while eight answers are written, of a new server each time."""
    heard: list[float] = []
    ready: list[float] = []
    refused = wrong = hung = 0
    for number in range(run.size.kills):
        with run.null() as target:
            async with connected(target) as client:
                before = (await client.whole(run.body())).text
                answers, at = await _killed(run, client, target)
                refused += await _until_ready(run, client)
                ready.append(time.perf_counter() - at)
                after = (await client.whole(run.body())).text
                equal = (await client.balance())["equal"]
        hung += sum(answer is None for answer in answers)
        wrong += sum(answer is not None and not _told(answer[0]) for answer in answers)
        wrong += (after != before) + (not equal)
        heard += [answer[1] - at for answer in answers if answer is not None]
        if number % 5 == 4:
            run.say(f"engine_killed: {number + 1} times, heard after {milliseconds(heard)}")
    told, again = milliseconds(heard), milliseconds(ready)
    return finding(
        f"every request in flight ends with an error within {_HEARD_MS:g} ms; none hangs; the same answers afterwards",
        told["most"] <= _HEARD_MS and not hung and not wrong,
        kills=run.size.kills,
        error_ms=told,
        ready_again_ms=again,
        refused_meanwhile=refused,
        hung=hung,
        wrong=wrong,
    )


async def _killed(run: Run, client: Client, target: Target) -> tuple[list[tuple[Answer, float] | None], float]:
    """What becomes of answers that are written when the engine is killed, each with its time; and that of the kill."""
    long = run.body(min(240, 8 * run.size.tokens))

    async def one(stream: bool) -> tuple[Answer, float] | None:
        try:
            answer = await asyncio.wait_for(client.ask({**long, "stream": stream}), _HUNG)
        except TimeoutError:
            return None
        return answer, time.perf_counter()

    asked = [one(stream=number < _STREAMED) for number in range(_STREAMED + _WHOLE)]
    tasks = [asyncio.create_task(each) for each in asked]
    while await client.metric("dpad_sequences_running") < len(tasks):
        await asyncio.sleep(1e-3)
    await asyncio.sleep(0.05)  # every stream has brought an event
    assert target.engine is not None
    at = time.perf_counter()
    os.kill(target.engine, signal.SIGKILL)
    return await asyncio.gather(*tasks), at


def _told(answer: Answer) -> bool:
    """Whether it ended with an error in OpenAI's form: of a stream the last event, else the body."""
    last = answer.documents[-1] if answer.documents else {}
    return "error" in last and not answer.complete and answer.status in (200, 503)


async def _until_ready(run: Run, client: Client) -> int:
    """Wait for the next engine; how many requests were refused meanwhile, all with 503 and Retry-After."""
    refused = 0
    while (await client.get("/health/ready")).status != 200:
        answer = await client.ask(run.body(8))
        if answer.status != 200:
            assert answer.status == 503 and answer.headers["retry-after"], answer
            refused += 1
        await asyncio.sleep(0.01)
    return refused
