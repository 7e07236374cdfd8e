"""`Front` is the outermost middleware. It gives each request an id, one line in the log, and errors in one form.

Starlette(middleware=[Middleware(Front, metrics=metrics)])
"""

import re
from time import perf_counter
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpad.serving.errors import as_api_error
from dpad.serving.exchange import Gone
from dpad.serving.log import logger, where
from dpad.serving.metrics import Metrics

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GONE = 499  # the status in logs if the client hung up


class Front:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer its errors."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if _ID.fullmatch(given) else uuid4().hex
        facts: dict[str, Any] = {"request_id": name, "method": scope["method"], "status": 0}
        scope.setdefault("state", {})["facts"] = facts
        began = perf_counter()

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except Gone:
            facts["status"] = _GONE
        except Exception as error:
            told = as_api_error(error)
            facts["code"] = told.code
            if told.status == 500:
                logger.error("failed", extra={"facts": {"request_id": name, **where(error)}})
            if not facts["status"]:
                await JSONResponse(told.body(), told.status, told.headers())(scope, receive, tagged)
        finally:
            route, seconds = scope.get("route"), perf_counter() - began
            facts["endpoint"] = route.path if route is not None else "none"
            facts["seconds"] = round(seconds, 4)
            self._metrics.request(facts["endpoint"], facts["status"], seconds)
            logger.info("served", extra={"facts": facts})
