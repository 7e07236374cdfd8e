"""What must be refused at no cost: canvases beyond every limit, hostile bodies and heads; and what must stay secret.

figures = await bad_input(run)
"""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from serving_load.client import CHAT, COMPLETIONS, INFILL, Client, connected, milliseconds
from serving_load.run import Run, finding
from serving_load.target import Target

_MOST_GROWTH = 1 << 20  # bytes
_TYPE = b"content-type: application/json\r\n"

BODIES: dict[str, tuple[str, Any]] = {
    "ten million characters": (COMPLETIONS, {"prompt": "a" * 10**7}),
    "a prompt that no canvas holds": (COMPLETIONS, {"prompt": "w5 " * 300_000}),
    "a million items": (COMPLETIONS, b'{"prompt": [' + b"1," * 10**6 + b"1]}"),
    "three hundred thousand ids": (COMPLETIONS, {"prompt": [1] * 300_000}),
    "n = 10^9": (COMPLETIONS, {"prompt": "a", "n": 10**9}),
    "depth 10^5": (COMPLETIONS, b'{"prompt": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
    "depth 10^5 of objects": (CHAT, b'{"messages": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5 + b"}"),
    "NaN": (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}'),
    "1e309": (COMPLETIONS, b'{"prompt": "a", "temperature": 1e309}'),
    "bool as int": (COMPLETIONS, {"prompt": "a", "max_tokens": True}),
    "int as text": (COMPLETIONS, {"prompt": "a", "max_tokens": "5"}),
    "a number of many digits": (COMPLETIONS, b'{"prompt": "a", "seed": ' + b"9" * 10**5 + b"}"),
    "invalid UTF-8": (COMPLETIONS, b'{"prompt": "\xff\xfe"}'),
    "an overlong NUL": (COMPLETIONS, b'{"prompt": "\xc0\x80"}'),
    "a lone surrogate": (COMPLETIONS, b'{"prompt": "\\ud83d"}'),
    "a lone surrogate in a name": (COMPLETIONS, b'{"prompt": "a", "\\udc00": 1}'),
    "nothing": (COMPLETIONS, b""),
    "a list": (COMPLETIONS, b"[]"),
    "negative tokens": (COMPLETIONS, {"prompt": [-1]}),
    "a token of 2^63": (COMPLETIONS, {"prompt": [2**63]}),
    "an unknown field": (COMPLETIONS, {"prompt": "a", "x" * 10_000: 1}),
    "a role that is none": (CHAT, {"messages": [{"role": "root", "content": "a"}]}),
    "too many messages": (CHAT, {"messages": [{"role": "user", "content": ""}] * 5000}),
    "an image": (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}),
    "blanks of 10^9": (INFILL, {"template": [{"tokens": 10**9}]}),
    "a template of nothing": (INFILL, {"template": []}),
    "a schedule of rubbish": (COMPLETIONS, {"prompt": "a", "schedule": {"gaussian": {"k": -1e300}}}),
}

HEADS: dict[str, bytes] = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    + _TYPE
    + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a length below 0": b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + _TYPE + b"content-length: -1\r\n\r\n",
    "a length that is no number": b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    + _TYPE
    + b"content-length: 1e3\r\n\r\n",
    "a length of 10^30": b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    + _TYPE
    + b"content-length: 1"
    + b"0" * 30
    + b"\r\n\r\n",
    "an unknown transfer coding": b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    + _TYPE
    + b"transfer-encoding: gzip\r\n\r\n",
    "chunks of rubbish": b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
    + _TYPE
    + b"transfer-encoding: chunked\r\n\r\nxyz\r\n{}\r\n",
    "a head of 100 KB": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-a: " + b"a" * 100_000 + b"\r\n\r\n",
    "ten thousand headers": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n" + b"x-a: b\r\n" * 10_000 + b"\r\n",
    "a folded NUL": b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-a: a\x00b\r\n\r\n",
    "a space before the colon": b"GET /v1/models HTTP/1.1\r\nhost : localhost\r\n\r\n",
    "another host": b"GET /v1/models HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    "a path of 10,000 letters": b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "climbing": b"GET /../../etc/passwd HTTP/1.1\r\nhost: localhost\r\n\r\n",
}
_ODD = {"prompt": "\U0001f468\u200d\U0001f469\u200d\U0001f467 <|mask|> <mask> <eos>", "stream": True}  # may be served
CLOSED = 0  # the status of who hung up before it answered


async def raw(target: Target, sent: bytes) -> int:
    """The status of what is answered to some bytes, `CLOSED` if nothing is."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        writer.write(sent)
        await writer.drain()
        line = await asyncio.wait_for(reader.readline(), 30)
        return int(line.split()[1]) if line else CLOSED
    except ConnectionError:
        return CLOSED
    finally:
        writer.close()


def _posted(path: str, body: Any) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(data)}\r\n"
    return head.encode() + _TYPE + b"\r\n" + data


async def bad_input(run: Run) -> dict[str, Any]:
    """Every hostile body and head, many times over; a server may also hang up on what it will not read."""
    sent = {name: _posted(path, body) for name, (path, body) in BODIES.items()} | HEADS
    statuses: dict[str, set[int]] = {name: set() for name in sent}
    odd: set[int] = set()
    with run.own() as target:
        async with connected(target) as client:
            sizes = []
            for _ in range(run.size.warm_up + run.size.rounds):
                for name, bytes_of in sent.items():
                    statuses[name].add(await raw(target, bytes_of))
                odd.add((await client.ask({**run.body(), **_ODD})).status)
                sizes.append(target.memory())
            assert (await client.get("/v1/models")).status == 200
            balance = await client.balance()
        failed = [record for record in target.records() if record["event"] == "failed"]
    wrong = {name: sorted(found) for name, found in statuses.items() if any(not _refused(one) for one in found)}
    growth = sizes[-1] - sizes[max(0, run.size.warm_up - 1)]
    run.say(f"bad_input: {len(sent)} cases, wrong {wrong}, {growth} bytes more")
    judged = growth <= _MOST_GROWTH or not run.size.judges_memory
    return finding(
        "all 4xx or hung up on; at most 1 MiB more of resident memory",
        not wrong and odd <= {200, 400} and not failed and judged and balance["equal"],
        cases=len(sent),
        rounds=run.size.rounds,
        wrong=wrong,
        odd_prompt=sorted(odd),
        hung_up_on=sorted(name for name, found in statuses.items() if found == {CLOSED}),
        growth_bytes=growth,
        resident_mib=[round(size / 2**20, 2) for size in sizes[:: max(1, len(sizes) // 40)]],
    )


def _refused(status: int) -> bool:
    return status == CLOSED or 400 <= status < 500


async def oversize(run: Run) -> dict[str, Any]:
    """Canvases over the bundle's limit, and over the pool's: refused before a pass, a slot or memory is taken."""
    # each canvas would be within the bundle's limit, and none has room in a pool of 64 slots
    wanted = {"limit": run.body(10**6), "prompt": run.body(8, prompt=[5] * 100_000), "pool": run.body(120)}
    seconds, statuses = [], set()
    with run.null("--slots", 64) as target:
        async with connected(target) as client:
            for body in (run.body(8), *(max(1, run.size.warm_up) * [*wanted.values()])):
                await client.ask(body)
            before = await client.metrics()
            sizes = [target.memory()]
            for _ in range(run.size.samples):
                for body in wanted.values():
                    answer = await client.ask(body)
                    statuses.add(answer.status)
                    seconds.append(answer.seconds)
            sizes.append(target.memory())
            after = await client.metrics()
    same = ("dpad_passes_total", "dpad_sequences_admitted_total", "dpad_pool_slots_used")
    spent = {name: after[name] - before[name] for name in same}
    growth = sizes[1] - sizes[0]
    run.say(f"oversize: {statuses}, {spent}, {growth} bytes more")
    judged = growth <= _MOST_GROWTH or not run.size.judges_memory
    return finding(
        "all 400; no pass, no slot, no sequence; at most 1 MiB more of resident memory",
        statuses == {400} and not any(spent.values()) and judged,
        requests=len(seconds),
        statuses=sorted(statuses),
        spent=spent,
        growth_bytes=growth,
        refused_ms=milliseconds(seconds),
    )


CANARY = "canary7f3a91"
KEY, WRONG_KEY = "key-5c1d8e2b9a7f4460", "wrong-77d0e4c2b1a95f38"


async def privacy(run: Run) -> dict[str, Any]:
    """Canaries in prompts, given texts, stops, ids, paths and keys, looked for in logs, metrics and errors."""
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write(f"{KEY}\n")
        keys.flush()
        with run.null("--api-key-file", Path(keys.name), "--max-waiting", 1, "--max-running", 1) as target:
            async with connected(target) as client:
                errors = await _with_canaries(run, client)
                metrics = (await client.get("/metrics", authorization=f"Bearer {KEY}")).raw
            target.stop()
            places = {"log": target.log(), "metrics": metrics, "errors": "\n".join(errors)}
    found = {
        place: {secret: text.count(secret) for secret in (CANARY, KEY, WRONG_KEY)} for place, text in places.items()
    }
    run.say(f"privacy: {len(errors)} errors, {found}")
    none = not any(count for each in found.values() for count in each.values())
    return finding("no canary anywhere", none and bool(errors), errors=len(errors), found=found)


async def _with_canaries(run: Run, client: Client) -> list[str]:
    """The bodies of errors, of each kind that a client can bring about with a text of its own."""
    given = {"authorization": f"Bearer {KEY}"}
    text = f"my secret is {CANARY}"
    body = run.body(prompt=text)
    asked: list[tuple[dict[str, Any], str]] = [
        (body, COMPLETIONS),
        ({**body, "stream": True, "suffix": text, "stop": [CANARY]}, COMPLETIONS),
        ({"messages": [{"role": "user", "content": text}], "max_tokens": 8}, CHAT),
        ({"template": [text, {"tokens": 8}, text]}, INFILL),
        ({**body, "max_tokens": 10**6}, COMPLETIONS),
        ({**body, "prompt": [text, 5]}, COMPLETIONS),
        ({**body, "prompt": {"text": text}}, COMPLETIONS),
        ({**body, "prompt": text * 20_000}, COMPLETIONS),
        ({**body, "stop": [text * 100]}, COMPLETIONS),
        ({**body, "deadline_ms": -1}, COMPLETIONS),
        ({**body, "n": 100}, COMPLETIONS),
        ({"messages": [{"role": "root", "content": text}]}, CHAT),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": text, "more": 1}]}]}, CHAT),
        ({"template": [text, {"tokens": 10**6}]}, INFILL),
    ]
    answers = [await client.ask(one, path, **given) for one, path in asked]
    answers.append(await client.ask(f'{{"prompt": "{text}'.encode(), **given))
    answers.append(await client.ask(body, authorization=f"Bearer {WRONG_KEY}"))
    answers.append(await client.get(f"/v1/{CANARY}?key={KEY}", **given))
    answers.append(await client.get("/v1/models", authorization=f"Bearer {WRONG_KEY}"))
    answers.append(await client.ask(body, x_request_id=f"{CANARY} ?", **given))
    full = await asyncio.gather(*(client.ask(body, **given) for _ in range(6)))
    return [answer.raw for answer in [*answers, *full] if answer.status != 200]
