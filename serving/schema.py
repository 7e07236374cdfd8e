"""The fields of request bodies; any other field is refused by its name.

    CompletionBody.model_validate_json(b'{"prompt": "What is 53 + 34?", "max_tokens": 64}')

OpenAI's fields that this server does not support are accepted with values that change nothing, so a client that sends
defaults is served, and refused with others, such as a list of tools.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from dpad.runtime.checks import is_integer

MOST_CHOICES = 32  # sequences of one request: prompts times n
_STOPS, _STOP_LENGTH = 16, 256


def _neutral(*values: object) -> Callable[[Any], Any]:
    """Make a check that accepts only None and `values`, which change nothing."""

    def check(value: Any) -> Any:
        if value is None or any(value == neutral and type(value) is type(neutral) for neutral in values):
            return value
        raise PydanticCustomError("unsupported", "is not supported here; leave it out")

    return check


def _listed(value: object) -> object:
    """Put a single text into a list."""
    return [value] if isinstance(value, str) else value


def _prompts(value: object) -> list[Any]:
    """Read one or several prompts as a list; each is a text or a list of token ids."""
    if isinstance(value, str) or (isinstance(value, list) and value and all(map(is_integer, value))):
        return [value]
    texts = isinstance(value, list) and all(isinstance(part, str) for part in value)
    ids = isinstance(value, list) and all(isinstance(part, list) and all(map(is_integer, part)) for part in value)
    if not value or not (texts or ids):
        raise PydanticCustomError("prompt", "must be text, a list of token ids, or a list of either")
    assert isinstance(value, list)
    return value


def _content(value: object) -> object:
    """Join the text parts of a message."""
    if not isinstance(value, list):
        return value
    parts = [part for part in value if isinstance(part, dict) and part.keys() == {"type", "text"}]
    if len(parts) < len(value) or any(part["type"] != "text" or not isinstance(part["text"], str) for part in parts):
        raise PydanticCustomError("content", "must be text, or parts of the type text")
    return "".join(part["text"] for part in parts)


_READ_PROMPTS = BeforeValidator(_prompts, json_schema_input_type=str | list[int] | list[str] | list[list[int]])

Nothing = Annotated[Any, AfterValidator(_neutral())]
Zero = Annotated[Any, AfterValidator(_neutral(0, 0.0))]
Name = Annotated[str, Field(max_length=256)]
Ignored = Annotated[Any, Field(description="Taken and ignored.")]


class Body(BaseModel):
    """A strict model: True is not a number, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: Ignored = None


class Decoding(Body):
    """This project's own fields: decoding options, as in `dpad generate`."""

    preset: Name | None = None
    decoder: Name | None = None
    threshold: float | None = None
    factor: float | None = None
    steps: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    pace: Name | None = None
    cache: Name | None = None
    schedule: Name | dict[Name, dict[Name, int | float]] | None = None
    block_length: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    top_k: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    deadline_ms: Annotated[int, Field(ge=1, le=3_600_000)] | None = None
    revisions: bool | None = None
    receipt: bool | None = None
    _arrived: float = PrivateAttr(default_factory=perf_counter)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, which counts from the arrival of the body; None without one."""
        if self.deadline_ms is None:
            return None
        return max(1e-3, self.deadline_ms / 1000 - (perf_counter() - self._arrived))


class Sampling(Decoding):
    """The fields that all endpoints share."""

    model: Name | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=_STOP_LENGTH)]],
            Field(max_length=_STOPS),
            BeforeValidator(_listed, json_schema_input_type=str | list[str]),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Annotated[Any, AfterValidator(_neutral({}))] = None
    user: Ignored = None

    @property
    def most_tokens(self) -> int | None:
        """Tokens that an answer may have; None if the request does not say."""
        return self.max_tokens

    @property
    def usage_at_end(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionBody(Sampling):
    """A request to `/v1/completions`."""

    prompt: Annotated[
        list[str | list[int]],
        Field(max_length=MOST_CHOICES),
        _READ_PROMPTS,
    ]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None
    best_of: Annotated[Any, AfterValidator(_neutral(1))] = None


class Blank(Body):
    """A blank in a template, to be filled with at most `tokens` tokens."""

    tokens: Annotated[int, Field(ge=1, le=1 << 20)]


_BLANK = {"type": "array", "contains": {"type": "object"}}
_NONE = {"type": "null"}
_TEMPLATE = {"template": _BLANK, "prefix": _NONE, "suffix": _NONE, "max_tokens": _NONE}
_FORMS = [  # of an infill, for clients that read the OpenAPI document; `InfillBody` checks them itself
    {"required": ["template"], "properties": _TEMPLATE},
    {"required": ["prefix"], "properties": {"prefix": {"type": "string"}, "template": _NONE}},
    {"required": ["suffix"], "properties": {"suffix": {"type": "string"}, "template": _NONE}},
]


class InfillBody(Sampling):
    """A request to `/v1/infill`: text around one blank of `max_tokens`, or a template with several blanks."""

    model_config = ConfigDict(json_schema_extra={"anyOf": _FORMS})  # type: ignore[dict-item]

    prefix: str | None = None
    suffix: str | None = None
    template: Annotated[list[str | Blank], Field(min_length=1, max_length=1024)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.template is None and self.prefix is None and self.suffix is None:
            raise PydanticCustomError("form", "give prefix and suffix, or a template")
        if self.template is not None and (self.prefix, self.suffix, self.max_tokens) != (None, None, None):
            raise PydanticCustomError(
                "form", "a template has its own texts and blanks; leave prefix, suffix, max_tokens out"
            )
        if self.template is not None and not any(isinstance(part, Blank) for part in self.template):
            raise PydanticCustomError("form", 'a template needs a blank, such as {"tokens": 16}')
        return self


class ChatMessage(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content, json_schema_input_type=str | list[dict[str, str]])]
    refusal: Nothing = None


class ChatBody(Sampling):
    """A request to `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1024)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    logprobs: bool | None = None
    top_logprobs: Zero = None
    response_format: Annotated[Any, AfterValidator(_neutral({"type": "text"}))] = None
    modalities: Annotated[Any, AfterValidator(_neutral(["text"]))] = None
    tools: Annotated[Any, AfterValidator(_neutral([]))] = None
    tool_choice: Annotated[Any, AfterValidator(_neutral("none", "auto"))] = None
    functions: Annotated[Any, AfterValidator(_neutral([]))] = None
    function_call: Annotated[Any, AfterValidator(_neutral("none", "auto"))] = None
    audio: Nothing = None
    prediction: Nothing = None
    moderation: Nothing = None
    reasoning_effort: Annotated[Any, AfterValidator(_neutral("none"))] = None
    verbosity: Annotated[Any, AfterValidator(_neutral("medium"))] = None
    web_search_options: Nothing = None
    store: Annotated[Any, AfterValidator(_neutral(False))] = None
    metadata: Ignored = None
    parallel_tool_calls: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None

    @property
    def most_tokens(self) -> int | None:
        """Tokens that an answer may have; OpenAI's newer field overrides the older one."""
        return self.max_completion_tokens or self.max_tokens
