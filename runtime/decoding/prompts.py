"""Reads the kinds of prompts that callers may pass. For other values, the error says what may have been meant.

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
        """Number of axes."""

    def tolist(self) -> Any:
        """The elements as nested lists of Python's own numbers."""


Prompt = str | Sequence[int] | Sequence[Message] | Array | Request
Prompts = Sequence[Prompt] | Array
_PROMPT = "a prompt is text, a list of chat messages, a list of token ids, or a Request"
_BATCH = "several prompts go to generate_batch or stream_batch"


@reading("a prompt")
def read_prompt(prompt: object) -> str | list[Any] | Request:
    """Read a prompt as text, a list of token ids, a list of chat messages, or a `Request`.

    Raises `InvalidRequest` for any other value.
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
        raise InvalidRequest(f"{_PROMPT}, not {what}; {_BATCH}; for one of them pass prompts[0]")
    raise InvalidRequest(f"{_PROMPT}; this list holds {shown(wrong)}, which is not a token id")


@reading("raw")
def read_flag(raw: object) -> bool:
    """Read `raw`: whether the prompt skips the chat template; raises `InvalidRequest` unless it is True or False."""
    if not isinstance(raw, (bool, np.bool_)):
        raise InvalidRequest(f"raw {shown(raw)} is neither True nor False")
    return bool(raw)


@reading("a suffix")
def read_suffix(suffix: object) -> str:
    """Read the text behind the blank; empty if there is none."""
    if suffix is not None and not isinstance(suffix, str):
        raise InvalidRequest(f"suffix {shown(suffix)} is not text; token ids behind the blank go into a Request")
    return str.__str__(suffix or "")


@reading("a batch")
def read_batch(prompts: object) -> list[Any]:
    """Split a batch into its prompts, which are still to be read."""
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
    """Convert an instance of a `str` subclass to `str`; other values are returned unchanged."""
    return str.__str__(value) if isinstance(value, str) else value


def _meant(value: object) -> str:
    """Guess what was meant by a value that is not a prompt, as the end of a message."""
    if isinstance(value, Mapping):
        if "input_ids" in value:
            return "; pass the input_ids of what a tokenizer returns"
        return "; a chat message goes in a list, as [message]" if "role" in value or "content" in value else ""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return "; decode it first"
    if isinstance(getattr(value, "ids", None), list):
        return "; pass the ids of what a tokenizer returns"
    return "; make a list of it" if hasattr(value, "__iter__") else ""
