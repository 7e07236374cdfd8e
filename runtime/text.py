"""`TextCodec`: text and chat messages to token ids and back, with the checkpoint's own files.

    codec = TextCodec.open(bundle_dir / "tokenizer")
    ids = codec.encode_chat([{"role": "user", "content": "Count to five."}])
    codec.decode(ids)

The chat template is rendered in a sandboxed, immutable Jinja environment.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from dpad.runtime.errors import BundleError, InvalidRequest

Message = Mapping[str, str]


class TextCodec:
    """A tokenizer.json with its optional chat template and special tokens."""

    def __init__(self, tokenizer: Tokenizer, special_tokens: dict[str, str], template: str | None) -> None:
        self._tokenizer = tokenizer
        self._special_tokens = special_tokens
        self._source = template

    @classmethod
    def open(cls, directory: Path) -> "TextCodec":
        """Read tokenizer.json, tokenizer_config.json and chat_template.jinja; raises `BundleError`."""
        try:
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{directory / 'tokenizer.json'} cannot be read: {error}") from error
        config = _read_config(directory / "tokenizer_config.json")
        template_file = directory / "chat_template.jinja"
        template = template_file.read_text(encoding="utf-8") if template_file.exists() else config.get("chat_template")
        special = {key: _token_text(value) for key, value in config.items() if key.endswith("_token")}
        return cls(tokenizer, {k: v for k, v in special.items() if v}, template if isinstance(template, str) else None)

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts are wrapped as chat by default."""
        return self._source is not None

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens the tokenizer itself adds."""
        return list(self._tokenizer.encode(text).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of text in the middle of a canvas: nothing is added."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn; raises `InvalidRequest`."""
        return list(self._tokenizer.encode(self.render(messages), add_special_tokens=False).ids)

    @property
    def template(self) -> str | None:
        """The source of the chat template, None where there is none."""
        return self._source

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the checkpoint's chat template writes it, the assistant's turn opened at its end."""
        for message in messages:
            if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
                raise InvalidRequest(f"a chat message needs 'role' and 'content', got {message!r}")
        try:
            prompt = self._template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._special_tokens
            )
        except TemplateError as error:
            raise InvalidRequest(f"the chat template refused these messages: {error}") from error
        return str(prompt)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """One token as text, special or not."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    @cached_property
    def _template(self) -> Any:
        if self._source is None:
            raise InvalidRequest("this checkpoint has no chat template; pass plain text (--raw) or token ids")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise_exception
        try:
            return environment.from_string(self._source)
        except TemplateError as error:
            raise BundleError(f"the chat template is not valid Jinja: {error}") from error


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    return data if isinstance(data, dict) else {}


def _token_text(value: Any) -> str | None:
    """tokenizer_config.json writes a token as text or as {"content": text}."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
