"""`application`: the routes of a service, as an ASGI application.

app = application(Service(model, settings), settings)
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dpad.serving.chat import ChatForm
from dpad.serving.completions import CompletionForm
from dpad.serving.errors import ApiError
from dpad.serving.exchange import Exchange, Gone
from dpad.serving.front import Front
from dpad.serving.guard import Guard
from dpad.serving.infill import InfillForm
from dpad.serving.openapi import document
from dpad.serving.page import ROUTES
from dpad.serving.schema import Body, ChatBody, CompletionBody, InfillBody
from dpad.serving.service import Service
from dpad.serving.settings import Settings

B = TypeVar("B", bound=Body)
Endpoint = Callable[[Request], Awaitable[Response]]


def application(service: Service, settings: Settings) -> Starlette:
    """Make the routes: OpenAI's endpoints over `service`, and those for its operators."""

    async def completions(request: Request) -> Exchange:
        return Exchange(service, CompletionForm(await _read(request, CompletionBody)))

    async def chat(request: Request) -> Exchange:
        return Exchange(service, ChatForm(await _read(request, ChatBody)))

    async def infill(request: Request) -> Exchange:
        return Exchange(service, InfillForm(await _read(request, InfillBody)))

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service)]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != service.name:
            raise ApiError(404, f"the model served here is {service.name!r}", "model_not_found", param="model")
        return JSONResponse(_model(service))

    async def live(request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> Response:
        obstacle = await service.health.obstacle()
        return JSONResponse({"status": obstacle or "ready"}, 503 if obstacle else 200)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def openapi(request: Request) -> Response:
        return JSONResponse(document())

    routes = [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/infill", infill, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
        Route("/health/live", live),
        Route("/health/ready", ready),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        *ROUTES,
    ]
    middleware = [Middleware(Front, metrics=service.metrics)]
    if settings.origins:
        headers = ["authorization", "content-type", "x-request-id"]
        middleware.append(Middleware(CORSMiddleware, allow_origins=settings.origins, allow_headers=headers))
    middleware.append(Middleware(Guard, settings=settings))
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _no_route})


async def _read(request: Request, kind: type[B]) -> B:
    """Read the body of a request; raises errors that `as_api_error` converts, or `Gone`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "give the body as content-type: application/json", "wrong_content_type")
    try:
        return kind.model_validate_json(await request.body())
    except ClientDisconnect:
        raise Gone from None


def _model(service: Service) -> dict[str, object]:
    return {"id": service.name, "object": "model", "created": service.created, "owned_by": "dpad"}


async def _no_route(request: Request, error: Exception) -> Response:
    """Convert Starlette's refusals of unknown paths and methods."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    allow = (error.headers or {}).get("Allow")
    raise ApiError(error.status_code, f"{request.method} at this path: {error.detail}", code, allow=allow)
