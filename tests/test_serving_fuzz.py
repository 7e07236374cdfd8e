"""Bodies drawn at random: whatever the fields hold, a server refuses or answers, and nothing in it breaks."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import Served

from dpad.runtime.cache import CACHES
from dpad.runtime.decoding.options import DECODERS, PACES
from dpad.serving.schema import ChatBody, CompletionBody, InfillBody

ENDPOINTS: dict[str, tuple[type, dict[str, Any]]] = {
    "/v1/completions": (CompletionBody, {"prompt": "w5"}),
    "/v1/chat/completions": (ChatBody, {"messages": [{"role": "user", "content": "w5"}]}),
    "/v1/infill": (InfillBody, {}),
}
NAMES = ["w5 w6", "<mask>", "<eos>", "none", "prefix", "dual", "extend", "fixed", "entropy", "margin", "factor"]
KEYS = ["gaussian", "uniform", "k", "window", "count", "tokens"]

words = st.one_of(st.text(max_size=8), st.sampled_from(NAMES))
numbers = st.one_of(st.integers(-3, 40), st.integers(-(10**20), 10**20), st.floats(), st.sampled_from([1e-300, 1e300]))
scalars = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(words, st.sampled_from(KEYS)), inner, max_size=3),
    ),
    max_leaves=8,
)

# What a user means to ask, in combinations that nobody tried.
shares = st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0])
meant: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from([0.0, 1e-4, 0.5, 2.0]),
    "top_p": shares,
    "top_k": st.integers(1, 200),
    "cache": st.sampled_from(CACHES),
    "decoder": st.sampled_from(DECODERS),
    "pace": st.sampled_from(PACES),
    "steps": st.integers(1, 12),
    "threshold": shares,
    "factor": shares,
    "block_length": st.sampled_from([1, 3, 4, 8, 32]),
    "schedule": st.one_of(
        st.just("none"),
        st.fixed_dictionaries({"gaussian": st.fixed_dictionaries({"k": shares, "window": st.integers(1, 16)})}),
        st.fixed_dictionaries(
            {"uniform": st.fixed_dictionaries({"count": st.integers(0, 8), "window": st.integers(1, 16)})}
        ),
    ),
    "max_tokens": st.integers(1, 16),
    "n": st.integers(1, 3),
    "seed": st.integers(0, 2**63 - 1),
    "stop": st.one_of(st.just("w5"), st.lists(st.sampled_from(["w1", " ", "w99", "5"]), max_size=3)),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}),
    "deadline_ms": st.integers(1, 50),
    "revisions": st.booleans(),
    "receipt": st.booleans(),
    "echo": st.booleans(),
    "logprobs": st.sampled_from([0, 1, True]),
    "suffix": st.sampled_from(["", "w7", " w7 w8 "]),
    "template": st.lists(st.one_of(st.sampled_from(["w5 ", "", "w6"]), st.just({"tokens": 3})), max_size=5),
}


@st.composite
def bodies(draw: Any, model: Any) -> dict[str, Any]:
    """Some fields of a model, most of them as meant."""
    fields = draw(st.lists(st.sampled_from([*model.model_fields, "unknown"]), max_size=7, unique=True))
    return {name: draw(meant.get(name, values) if draw(st.integers(0, 9)) else values) for name in fields}


@pytest.fixture(scope="module")
def served(whole: Path) -> Iterator[Served]:
    with Served(whole) as server:
        yield server


@pytest.mark.parametrize("path", ENDPOINTS)
def test_drawn_bodies(served: Served, path: str) -> None:
    """Fails if a body gets 500, an answer that is no JSON, or an error without its message."""
    model, base = ENDPOINTS[path]
    statuses: set[int] = set()

    @settings(max_examples=300, suppress_health_check=list(HealthCheck))
    @given(bodies(model))
    def ask(drawn: dict[str, Any]) -> None:
        body = {**base, **({} if "template" in drawn else {"max_tokens": 8}), **drawn}
        try:
            data = json.dumps(body).encode()
        except (UnicodeEncodeError, ValueError):
            return
        status, headers, told = served.post(path, data)
        statuses.add(status)
        assert status < 500, (body, told)
        if status != 200:
            assert told["error"]["message"] and told["error"]["code"], body
        elif headers["content-type"] == "application/json":
            assert told["choices"] and all(choice["finish_reason"] for choice in told["choices"]), body
        else:
            assert told.endswith("data: [DONE]\n\n") and '"error"' not in told, (body, told)

    ask()
    assert statuses >= {200, 400}
    assert not [record for record in served.records() if record["event"] == "failed"]


def test_the_description_names_every_field(served: Served) -> None:
    """Fails if a field or an endpoint is not described, or a reference leads nowhere."""
    _, _, told = served.ask("GET", "/openapi.json")
    schemas = told["components"]["schemas"]
    for path, (model, _) in ENDPOINTS.items():
        body = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        described = schemas[body.removeprefix("#/components/schemas/")]
        assert described["properties"].keys() == model.model_fields.keys()  # type: ignore[attr-defined]
        assert described["additionalProperties"] is False
    for reference in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(told)):
        assert reference in schemas
    assert {"/v1/models", "/metrics", "/health/ready"} <= told["paths"].keys()
    assert schemas["CompletionBody"]["properties"]["prompt"]["anyOf"][0] == {"type": "string"}
