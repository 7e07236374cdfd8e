"""`TextCodec`: text and chat messages to token ids and back, with the checkpoint's own files.

    codec = TextCodec.open(bundle_dir / "tokenizer")
    ids = codec.encode_chat([{"role": "user", "content": "Count to five."}])
    codec.decode(ids)

The chat template is rendered in a sandboxed, immutable Jinja environment. A user's text is text: where it
spells a special token, such as `<|eot_id|>` or the mask, it becomes the tokens of these characters. Only the
template writes special tokens, and `encode_rendered`, for text that a template has written elsewhere.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Encoding, Tokenizer

from dpad.runtime.arguments import listed, reading
from dpad.runtime.errors import BundleError, InvalidRequest
from dpad.runtime.files import read_json, read_text
from dpad.runtime.show import kind, shown

Message = Mapping[str, str]

_PRIVATE = range(0xE000, 0xF900)  # Unicode's private use area


class TextCodec:
    """A tokenizer.json with its optional chat template and special tokens."""

    def __init__(self, tokenizer: Tokenizer, special_tokens: dict[str, str], template: str | None) -> None:
        tokenizer.encode_special_tokens = True  # as text, that is
        tokenizer.no_truncation()  # files keep what their training cut and padded to
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().items()
        self._special = {token.content: (number, token) for number, token in added if token.special and token.content}
        self._reserved = {number for number, _ in self._special.values()}
        spellings = "|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) or "(?!)"
        self._spelled, self._begins = re.compile(f"({spellings})"), re.compile(f"(?={spellings})(.)", re.DOTALL)
        self._variables = special_tokens
        self._source = template

    @classmethod
    def open(cls, directory: Path) -> "TextCodec":
        """Read tokenizer.json, tokenizer_config.json and chat_template.jinja; raises `BundleError`."""
        with _library(f"{directory / 'tokenizer.json'} cannot be read"):
            tokenizer = Tokenizer.from_str(read_text(directory / "tokenizer.json"))
        config = _read_config(directory / "tokenizer_config.json")
        template = _read_template(directory / "chat_template.jinja", config)
        special = {key: _token_text(value) for key, value in config.items() if key.endswith("_token")}
        return cls(tokenizer, {k: v for k, v in special.items() if v}, template)

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts are wrapped as chat by default."""
        return self._source is not None

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token that is not special."""
        return max((len(token) for token in self._tokenizer.get_vocab() if token not in self._special), default=1)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens the tokenizer itself adds."""
        encoded = self._encode(text)
        with _library("tokenizer.json cannot add its special tokens to this text"):
            return list(self._tokenizer.post_process(encoded).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of text in the middle of a canvas: nothing is added."""
        return list(self._encode(text).ids)

    def _encode(self, text: str) -> Encoding:
        # What it is given and cannot take is half of a surrogate pair, as JSON may spell it.
        with _library("tokenizer.json cannot encode this text", "the text is not valid Unicode"):
            encoded = self._tokenizer.encode(text, add_special_tokens=False)
        for number in self._reserved.intersection(encoded.ids):  # of a tokenizer that has it as a word, too
            raise InvalidRequest(f"the text holds the special token {self.token_text(number)}; take it out")
        return encoded

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of text that a chat template has written: special tokens in it count, nothing is added."""
        if not isinstance(text, str):
            raise InvalidRequest(f"a prompt that a chat template has written is text, not {kind(text)}")
        return self._encode_parts(self._spelled.split(text))

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn; raises `InvalidRequest`.

        Special tokens that a message spells are text: while the template is rendered, their first
        characters are others, from Unicode's private use area, that occur nowhere else.
        """
        _check_messages(messages)
        told = "".join(value for message in messages for value in message.values())
        if not any(spelled in told for spelled in self._special):
            return self.encode_rendered(self.render(messages))
        unused = (chr(code) for code in _PRIVATE if chr(code) not in told + (self._source or ""))
        hidden = sorted({spelled[0] for spelled in self._special})
        marks = dict(zip(hidden, unused))
        if len(marks) < len(hidden):
            raise InvalidRequest("a special token is spelled beside all of Unicode's private use area; take some out")

        def hide(value: str) -> str:
            return self._begins.sub(lambda match: marks[match[1]], value)

        rendered = self.render([{key: hide(value) for key, value in message.items()} for message in messages])
        shown = str.maketrans({mark: character for character, mark in marks.items()})
        return self._encode_parts([part.translate(shown) for part in self._spelled.split(rendered)])

    def _encode_parts(self, parts: Sequence[str]) -> list[int]:
        """Ids of parts that are text and a special token's spelling in turn, text first and last."""
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self._special[part][0])
                continue
            if index and self._special[parts[index - 1]][1].rstrip:
                part = part.lstrip()
            if index + 1 < len(parts) and self._special[parts[index + 1]][1].lstrip:
                part = part.rstrip()
            ids += self.encode_plain(part)
        return ids

    @property
    def template(self) -> str | None:
        """The source of the chat template, None where there is none."""
        return self._source

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the checkpoint's chat template writes it, the assistant's turn opened at its end."""
        _check_messages(messages)
        template = self._template
        try:
            prompt = template.render(messages=messages, add_generation_prompt=add_generation_prompt, **self._variables)
        except Exception as error:  # a template is a program: what it adds or divides may raise anything
            raise InvalidRequest(
                f"the chat template refused these messages: {type(error).__name__}: {error}"
            ) from error
        return str(prompt)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._decode(ids, skip_special_tokens=True)

    def token_text(self, token: int) -> str:
        """One token as text, special or not."""
        return self._decode([token], skip_special_tokens=False)

    def _decode(self, ids: Iterable[int], *, skip_special_tokens: bool) -> str:
        with reading("token ids are whole numbers from 0 to 2**32 - 1, and these"):
            given = listed(ids)
            given = list(ids) if given is None else given
        with _library("tokenizer.json cannot decode these tokens", "token ids are whole numbers from 0 to 2**32 - 1"):
            return str(self._tokenizer.decode(given, skip_special_tokens=skip_special_tokens))

    @cached_property
    def _template(self) -> Any:
        if self._source is None:
            raise InvalidRequest("this checkpoint has no chat template; pass plain text (--raw) or token ids")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals["raise_exception"] = _raise_exception
        try:
            return environment.from_string(self._source)
        except Exception as error:  # Jinja's own, and those of the Python that it writes: RecursionError, SyntaxError
            raise BundleError(f"the chat template is not valid Jinja: {error}") from error


@contextmanager
def _library(fault: str, refused: str = "") -> Iterator[None]:
    """What tokenizers raises: `InvalidRequest` for arguments of a wrong kind, `BundleError` for all else.

    A tokenizer.json that contradicts itself gives bare exceptions, and panics of Rust, which are no `Exception`.
    """
    try:
        yield
    except (TypeError, OverflowError) as error:
        raise InvalidRequest(f"{refused}: {error}") from None
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime":
            raise BundleError(f"{fault}: {error}; mend it, and export the bundle again") from error
        raise


@reading("a conversation")
def _check_messages(messages: Sequence[Message]) -> None:
    if listed(messages) is None:
        raise InvalidRequest(f"a conversation is a list of chat messages, not {kind(messages)}")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise InvalidRequest(f"a chat message needs 'role' and 'content', got {shown(message)}")
        for key, value in message.items():  # what is nested could spell a special token unseen
            if not isinstance(value, str):
                raise InvalidRequest(f"a chat message holds text, and its {shown(key)} is {kind(value)}")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from error
    return data if isinstance(data, dict) else {}


def _read_template(path: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template in its own file, or that of tokenizer_config.json, which may be a list of them by name."""
    if path.exists():
        try:
            return read_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} cannot be read as text: {error}") from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(value: Any) -> str | None:
    """tokenizer_config.json writes a token as text or as {"content": text}."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
