"""`Guard` refuses requests before their bodies are read: without a key, from other web pages, too large or too slow.

    Starlette(middleware=[Middleware(Guard, settings=settings)])

A web page can send any content type but JSON to a server on the same machine without permission. JSON needs the
server's permission (CORS), which no page has by default. A foreign host name that resolves to this machine (DNS
rebinding) is recognised by its `Host` header.
"""

import asyncio
from time import monotonic

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpad.serving.errors import ApiError
from dpad.serving.page import PATHS
from dpad.serving.settings import Settings

_MOST_HEAD, _EACH = 1 << 15, 32  # most bytes of all headers, and bytes that each counts in addition (RFC 9113, 6.5.2)
OPEN = ("/health/live", "/health/ready")  # to everybody: a load balancer has no key


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or raise `ApiError`."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            self._check_head(scope)
            if scope["path"] not in OPEN:
                self._check_caller(headers, scope["path"])
            self._check_body(scope["method"], headers)
            receive = self._measured(receive)
        await self._app(scope, receive, send)

    def _check_head(self, scope: Scope) -> None:
        """Limit the headers: h11 limits only a head that arrives in parts, not one that arrives at once."""
        if sum(len(name) + len(value) + _EACH for name, value in scope["headers"]) > _MOST_HEAD:
            raise ApiError(431, f"headers may have {_MOST_HEAD} bytes; send fewer", "headers_too_large")

    def _check_caller(self, headers: Headers, path: str) -> None:
        keys = self._settings.keys
        if keys is not None:
            if path not in PATHS and not keys.allow(headers.get("authorization", "")):
                raise ApiError(401, "give a key of this server as Authorization: Bearer KEY", "invalid_api_key")
        elif self._settings.hosts and _name(headers.get("host", "")) not in self._settings.hosts:
            raise ApiError(
                403,
                "without keys this server accepts only a Host that names its own machine, such as 127.0.0.1",
                "wrong_host",
            )

    def _check_body(self, method: str, headers: Headers) -> None:
        if method != "POST":  # other methods have no body here, or are refused with 405
            return
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._settings.most_body:
            raise self._too_large()

    def _measured(self, receive: Receive) -> Receive:
        """Wrap `receive`: it raises `ApiError` when the body becomes too large or takes too long."""
        left, end, whole = self._settings.most_body, monotonic() + self._settings.read_seconds, False

        async def measured() -> Message:
            nonlocal left, whole
            if whole:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - monotonic()))
            except TimeoutError:
                raise ApiError(
                    408, f"the body took over {self._settings.read_seconds:g} s; send it faster", "too_slow"
                ) from None
            whole = not message.get("more_body", False)
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large()
            return message

        return measured

    def _too_large(self) -> ApiError:
        most = self._settings.most_body
        return ApiError(
            413, f"a body may have {most} bytes; shorten it, or start with a larger --max-body", "too_large"
        )


def _name(host: str) -> str:
    """The host without its port."""
    return host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
