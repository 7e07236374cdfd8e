"""What callers give as a prompt, told apart; and for what is none, what they may have meant.

read_prompt("What is 53 + 34?")             # the text itself
read_prompt(np.array([11, 42, 7]))          # [11, 42, 7]
read_batch(tensor)                          # its rows, each a prompt
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from dpad.runtime.arguments import axes, listed, reading
from dpad.runtime.checks import as_integer, is_integer
from dpad.runtime.decoding.request import Request
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import kind, shown
from dpad.runtime.text.chat_template import Message


class Array(Protocol):
    """An array or a tensor of any library."""

    @property
    def ndim(self) -> int:
        """How many axes it has."""

    def tolist(self) -> Any:
        """Its elements as Python's own."""


Prompt = str | Sequence[int] | Sequence[Message] | Array | Request
Prompts = Sequence[Prompt] | Array
_PROMPT = "a prompt is text, a list of chat messages, a list of token ids, or a Request"
_BATCH = "several prompts go to generate_batch or stream_batch"


@reading("a prompt")
def read_prompt(prompt: object) -> str | list[Any] | Request:
    """A prompt as text, a list of token ids or of chat messages, or the `Request` that it is.

    Raises `InvalidRequest` for all else.
    """
    if isinstance(prompt, Request):
        return prompt
    if isinstance(prompt, str):
        return str.__str__(prompt)
    parts = listed(prompt)
    if parts is None:
        raise InvalidRequest(f"{_PROMPT}, not {kind(prompt)}{_meant(prompt)}")
    if parts and all(isinstance(part, Mapping) for part in parts):
        return [{_text(key): _text(value) for key, value in part.items()} for part in parts]
    if all(map(is_integer, parts)):
        return [as_integer(part, "a token id") for part in parts]
    wrong = next(part for part in parts if not is_integer(part))
    if isinstance(wrong, (str, Request)) or listed(wrong) is not None:
        what = f"an array of {axes(prompt)} axes" if (axes(prompt) or 0) > 1 else f"a list that holds {shown(wrong)}"
        raise InvalidRequest(f"{_PROMPT}, not {what}; {_BATCH}, and one of them alone as prompts[0]")
    raise InvalidRequest(f"{_PROMPT}; this list holds {shown(wrong)}, which is no token id")


@reading("raw")
def read_flag(raw: object) -> bool:
    """Whether a prompt goes in without the chat template; raises `InvalidRequest` for what is no truth value."""
    if not isinstance(raw, (bool, np.bool_)):
        raise InvalidRequest(f"raw {shown(raw)} is neither True nor False")
    return bool(raw)


@reading("a suffix")
def read_suffix(suffix: object) -> str:
    """The text behind the blank, empty if there is none."""
    if suffix is not None and not isinstance(suffix, str):
        raise InvalidRequest(f"suffix {shown(suffix)} is no text; token ids behind the blank go into a Request")
    return str.__str__(suffix or "")


@reading("a batch")
def read_batch(prompts: object) -> list[Any]:
    """The prompts of a batch, not read yet."""
    parts = listed(prompts)
    if parts is None:
        raise InvalidRequest(
            f"a batch is a list of prompts, not {kind(prompts)}; for one prompt use generate or stream"
        )
    if len(parts) > 1 and (is_integer(parts[0]) or isinstance(parts[0], Mapping)):
        held = "token ids" if is_integer(parts[0]) else "chat messages"
        raise InvalidRequest(
            f"a batch is a list of prompts, and this one holds {held}; for one prompt use generate or stream"
        )
    return parts


def _text(value: Any) -> Any:
    """A text as Python's own, which a class of texts may not be; all else as it is."""
    return str.__str__(value) if isinstance(value, str) else value


def _meant(value: object) -> str:
    """What may have been meant by a value that is no prompt."""
    if isinstance(value, Mapping):
        if "input_ids" in value:
            return "; of what a tokenizer returns, pass its input_ids"
        return "; a chat message goes in a list, as [message]" if "role" in value or "content" in value else ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "; decode it first"
    if isinstance(getattr(value, "ids", None), list):
        return "; of what a tokenizer returns, pass its ids"
    return "; make a list of it" if hasattr(value, "__iter__") else ""
