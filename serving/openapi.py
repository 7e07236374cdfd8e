"""The API as an OpenAPI document, made of the same models that read the bodies.

document()["components"]["schemas"]["CompletionBody"]
"""

from typing import Any

from pydantic.json_schema import models_json_schema

from dpad.serving.schema import ChatBody, CompletionBody, InfillBody

BODIES = {"/v1/completions": CompletionBody, "/v1/chat/completions": ChatBody, "/v1/infill": InfillBody}
_READS = {
    "/v1/models": "The model that is served.",
    "/health/live": "Whether the event loop runs.",
    "/health/ready": "Whether the engine decodes.",
    "/metrics": "Metrics for Prometheus.",
}
_REFUSED = {
    "description": "An error in OpenAI's form.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def document() -> dict[str, Any]:
    """The document, in OpenAPI 3.1."""
    models = [(body, "validation") for body in BODIES.values()]
    _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: dict[str, Any] = {path: {"get": _operation(told)} for path, told in _READS.items()}
    for path, body in BODIES.items():
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        given = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": {**_operation(str(body.__doc__)), "requestBody": given}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "dpad", "version": "1", "description": "OpenAI's protocol, and what only diffusion can do."},
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _operation(told: str) -> dict[str, Any]:
    return {"summary": told, "responses": {"200": {"description": "An answer."}, "default": _REFUSED}}
