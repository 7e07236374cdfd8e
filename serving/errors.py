"""`ApiError`: the answer to a request that cannot be served, in OpenAI's form.

    raise ApiError(404, "model 'x' is not served here", "model_not_found", param="model")
    as_api_error(error).body()        # {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

`as_api_error` decides how much a client learns. Messages about the caller's own values are passed on; of an internal
failure, only the kind is named.
"""

from typing import Any

from pydantic import ValidationError

from dpad.runtime.errors import EngineError, InvalidRequest, ModelClosed, QueueFull
from dpad.runtime.show import kind, shown

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable"}
_OFTEN = 1  # seconds: the shortest Retry-After


class ApiError(Exception):
    """An HTTP status with the fields that OpenAI's clients read."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        allow: str | None = None,
    ) -> None:
        """`param` is the field that is wrong, `retry_after` counts seconds, `allow` lists the methods of a path."""
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after, self.allow = retry_after, allow

    def body(self) -> dict[str, Any]:
        """The body, in OpenAI's form."""
        known = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": known, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """`Retry-After`, which makes OpenAI's clients repeat a request, and `Allow`, where they are known."""
        found = {} if self.allow is None else {"allow": self.allow}
        return found if self.retry_after is None else {**found, "retry-after": str(max(_OFTEN, self.retry_after))}


def as_api_error(error: BaseException) -> ApiError:
    """Convert any failure to the error that the client gets."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return _refused(error)
    if isinstance(error, InvalidRequest):
        return ApiError(400, str(error), "invalid_request")
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), "queue_full", retry_after=_OFTEN)
    if isinstance(error, ModelClosed):
        return ApiError(503, "the model is being closed; try again elsewhere or later", "closed", retry_after=_OFTEN)
    if isinstance(error, EngineError):
        return ApiError(500, "the engine failed in a pass; the server's log says more", "engine_error")
    return ApiError(500, f"the server failed: {kind(error)}; its log says more", "server_error")


def _refused(error: ValidationError) -> ApiError:
    """Name the first field that is wrong; never its value, which may be long or private."""
    # If a value could have been read in several ways, report the one that got furthest.
    several = error.errors(include_url=False, include_context=False, include_input=False)
    first = max(several, key=lambda each: (each["loc"][:1] == several[0]["loc"][:1], len(each["loc"])))
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{shown(field)[1:-1]} is not a known field; leave it out", "unknown_field", param=field)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {first['msg']}", "invalid_json")
    return ApiError(
        400, f"{shown(field)[1:-1]}: {first['msg']}" if field else first["msg"], "invalid_request", param=field or None
    )
