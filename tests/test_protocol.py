"""uvicorn with this project's protocol disconnects a client that never reads."""

import asyncio
import socket
from typing import Any

import uvicorn
from passes import SECONDS

from dpad.serving.protocol import protocol


def test_who_never_reads_is_hung_up_on() -> None:
    """Fails if a client that reads nothing of a long answer keeps its request forever."""
    ended = asyncio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()

        async def write() -> None:
            while True:
                await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})

        writing = asyncio.ensure_future(write())
        assert (await receive())["type"] == "http.disconnect"
        writing.cancel()
        ended.set()

    async def serve() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            config = uvicorn.Config(endless, http=protocol(0.2), lifespan="off", log_config=None, ws="none")
            server = uvicorn.Server(config)
            serving = asyncio.ensure_future(server._serve([listening]))
            while not server.started:
                await asyncio.sleep(0.01)
            with socket.create_connection(listening.getsockname()[:2], SECONDS) as client:
                client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                async with asyncio.timeout(SECONDS):
                    await ended.wait()
            server.should_exit = True
            await serving

    asyncio.run(serve())
