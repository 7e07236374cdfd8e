"""The page at `/`: its files, which are the same for everybody, and its content security policy.

Starlette(routes=[*ROUTES])

The page shows text of users and of a model. So only the page's own scripts run, nothing is loaded from or sent to other
servers, and no string becomes markup (`require-trusted-types-for`).
"""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dpad.serving.errors import ApiError

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FILES = {path.name: path for path in sorted(Path(__file__).with_name("web").iterdir()) if path.suffix in _TYPES}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
PATHS = frozenset({"/", *(f"/page/{name}" for name in _FILES)})  # open to everybody: the page asks for the key itself


def _answer(name: str) -> Response:
    return Response(_FILES[name].read_bytes(), media_type=_TYPES[_FILES[name].suffix], headers=_HEADERS)


async def _page(request: Request) -> Response:
    return _answer("index.html")


async def _file(request: Request) -> Response:
    if (name := request.path_params["name"]) not in _FILES:
        raise ApiError(404, "the page has no such file", "not_found")
    return _answer(name)


ROUTES = (Route("/", _page), Route("/page/{name}", _file))
