"""Whether answers and counts are right: the same tokens whatever runs beside, nothing lost, every sequence counted.

figures = await same_tokens(run)
"""

import asyncio
import random
from typing import Any

from serving_load.client import Answer, Client, connected
from serving_load.run import Run, finding

_IN_FLIGHT = 10


async def same_tokens(run: Run) -> dict[str, Any]:
    """Prompts with options of their own, each alone; then, on a server that was started anew, among each other."""
    rng = random.Random(4)
    bodies = [_drawn(run, rng) for _ in range(run.size.prompts)]
    with run.own() as target:
        async with connected(target) as client:
            alone = [_said(await client.whole(body)) for body in bodies]
    with run.own() as target:
        async with connected(target) as client:
            order, together = rng.sample(range(len(bodies)), len(bodies)), dict[int, Any]()
            room = asyncio.Semaphore(8)

            async def one(number: int) -> None:
                async with room:
                    await asyncio.sleep(rng.uniform(0, 0.02))
                    together[number] = _said(await client.whole(bodies[number]))

            await asyncio.gather(*map(one, order))
    same = sum(together[number] == wanted for number, wanted in enumerate(alone))
    run.say(f"same_tokens: {same} of {len(bodies)}")
    passes = sum(len(receipt) for _, receipt in alone)
    return finding(
        "the same text, and the same tokens in every pass, for all prompts",
        same == len(bodies),
        prompts=len(bodies),
        same=same,
        passes=passes,
    )


def _drawn(run: Run, rng: random.Random) -> dict[str, Any]:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    return {
        "prompt": rng.choice([f"What is {a} + {b}?", f"Tom has {a} books. Emma has {b} more than Tom.", f"{a}"]),
        "max_tokens": rng.choice([8, 13, run.size.tokens]),
        "decoder": rng.choice(["threshold", "fixed", "entropy"]),
        "cache": rng.choice(["none", "prefix", "dual"]),
        "block_length": 8,
        "schedule": rng.choice(["none", {"gaussian": {"k": 3, "window": 8}}]),
        "temperature": rng.choice([0.0, 0.0, 0.8]),
        "seed": rng.randint(0, 1000),
        "receipt": True,
    }


def _said(answer: Answer) -> tuple[str, list[str]]:
    """The text, and a hash for what each pass decided."""
    return answer.text, answer.choices[0]["receipt"]["passes"]


async def drain(run: Run) -> dict[str, Any]:
    """SIGTERM while ten requests run or wait, every other one streamed."""
    with run.null("--max-running", 4, "--max-waiting", 16, batch=4) as target:
        async with connected(target) as client:
            asked = [client.ask(run.body(stream=bool(number % 2))) for number in range(_IN_FLIGHT)]
            tasks = [asyncio.create_task(each) for each in asked]
            while await client.metric("dpad_sequences_admitted_total") < _IN_FLIGHT:
                await asyncio.sleep(1e-3)
            target.terminate()
            answers = await asyncio.gather(*tasks)
        status = target.stop()
        lost = [record["lost"] for record in target.records() if record["event"] == "ended"]
    whole = sum(answer.whole for answer in answers)
    run.say(f"drain: {whole} of {_IN_FLIGHT} whole, exit status {status}")
    return finding(
        "none lost, exit status 0",
        whole == _IN_FLIGHT and status == 0 and lost == [0],
        in_flight=_IN_FLIGHT,
        whole=whole,
        exit_status=status,
    )


async def counts(run: Run) -> dict[str, Any]:
    """Requests that end in every way, some at once, and the sums of the metrics after them."""
    rng = random.Random(5)
    with run.null("--max-running", 4, "--max-waiting", 4, batch=4) as target:
        async with connected(target) as client:
            ways = [_ended(run, client, rng.choice(_WAYS), rng) for _ in range(4 * run.size.samples)]
            for start in range(0, len(ways), 12):
                await asyncio.gather(*ways[start : start + 12])
            balance = await client.balance()
    run.say(f"counts: {balance}")
    return finding("admitted is the sum of finished by reason, and nothing is held", balance["equal"], **balance)


_WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"stream": True},
    {"n": 3},
    {"deadline_ms": 30},
    {"stop": ["a", "e", "1", "5", "w1", "w5"]},
    {"max_tokens": 10**6},
    {"leave": True},
)


async def _ended(run: Run, client: Client, way: dict[str, Any], rng: random.Random) -> None:
    body = run.body(**{name: value for name, value in way.items() if name != "leave"})
    asked = asyncio.create_task(client.ask(body))
    if "leave" in way:
        await asyncio.sleep(rng.uniform(0, 0.1))
        asked.cancel()
    answers = await asyncio.gather(asked, return_exceptions=True)
    if isinstance(answers[0], Exception):
        raise answers[0]
