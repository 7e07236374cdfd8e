"""`TextCodec`: text and chat messages to token ids and back, with the checkpoint's own files.

    codec = TextCodec.open(bundle_dir / "tokenizer")
    ids = codec.encode_chat([{"role": "user", "content": "Count to five."}])
    codec.decode(ids)

A user's text is text: where it spells a special token, such as `<|eot_id|>` or the mask, it becomes the tokens of
these characters. Only the chat template writes special tokens, and `encode_rendered`, for text that a template has
written elsewhere.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from dpad.runtime.arguments import listed, reading
from dpad.runtime.errors import BundleError, InvalidRequest
from dpad.runtime.show import kind, shown
from dpad.runtime.text.beside import Beside
from dpad.runtime.text.chat_template import ChatTemplate, Message, check_messages
from dpad.runtime.text.disguise import PRIVATE
from dpad.runtime.text.special_tokens import named_tokens
from dpad.runtime.text.tokenizer_file import UNSEEN, WORK, Traits, open_tokenizer


class TextCodec:
    """A tokenizer.json with its optional chat template and special tokens."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, traits: Traits = UNSEEN) -> None:
        tokenizer.encode_special_tokens = True  # as text, that is
        tokenizer.no_truncation()  # files keep what their training cut and padded to
        tokenizer.no_padding()
        self._tokenizer, self._traits = tokenizer, traits
        added = tokenizer.get_added_tokens_decoder().items()
        self._special = {token.content: number for number, token in added if token.special and token.content}
        # A text may hold what is unknown, and no other special token.
        self._reserved = {number for spelled, number in self._special.items() if spelled != traits.unknown}
        self._template = template
        self._signed: Beside | None = None

    @classmethod
    def open(cls, directory: Path) -> "TextCodec":
        """Read tokenizer.json, its special tokens' names and the chat template; raises `BundleError`."""
        with _library(f"{directory / 'tokenizer.json'} cannot be read"):
            tokenizer, traits = open_tokenizer(directory / "tokenizer.json")
            padding = tokenizer.padding
        variables = named_tokens(directory, padding["pad_token"] if padding else None)
        return cls(tokenizer, ChatTemplate.open(directory, variables), traits)

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts are wrapped as chat by default."""
        return self._template is not None

    @property
    def size(self) -> int:
        """How many tokens there are; their ids may go on beyond."""
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens the tokenizer itself adds."""
        encoded = self._encode(text)
        with _library("tokenizer.json cannot add its special tokens to this text"):
            return list(self._tokenizer.post_process(encoded).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of text in the middle of a canvas: nothing is added."""
        return list(self._encode(text).ids)

    def _encode(self, text: str) -> Encoding:
        encoded = self._encode_by(self._tokenizer, text)
        self._refuse(self._reserved.intersection(encoded.ids))  # of a tokenizer that has it as a word, too
        return encoded

    def _encode_by(self, tokenizer: Tokenizer, text: str) -> Encoding:
        if not isinstance(text, str):
            raise InvalidRequest(f"text is encoded, and {shown(text)} is none")
        text = str.__str__(text)  # a class of texts may have its own length
        if (size := len(text) * self._traits.encoding) > WORK:
            raise InvalidRequest(
                f"a text of {len(text)} characters may become {size} bytes on its way to tokens, over the limit of "
                f"{WORK}; encode it in parts"
            )
        # What it is given and cannot take is half of a surrogate pair, as JSON may spell it.
        with _library("tokenizer.json cannot encode this text", "the text is not valid Unicode"):
            return tokenizer.encode(text, add_special_tokens=False)

    def _refuse(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            raise InvalidRequest(f"the text holds the special token {self.token_text(number)}; take it out")

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of text that a chat template has written: special tokens in it count, nothing is added."""
        if not isinstance(text, str):
            raise InvalidRequest(f"a prompt that a chat template has written is text, not {kind(text)}")
        return self._beside.ids(self._encode_by(self._beside.twin, text))

    def encode_chat(self, messages: Sequence[Message], measure: Callable[[str], None] | None = None) -> list[int]:
        """Token ids of a conversation, ready for the assistant's turn; raises `InvalidRequest`.

        Special tokens that a message spells are text. `measure` is given what the template wrote before it is
        encoded, and may raise.
        """
        check_messages(messages)
        rendered, disguise = self._chat.render_disguised(messages, self._special)
        if measure is not None:
            measure(rendered)
        encoded = self._encode_by(self._beside.twin, rendered)
        places = self._places(encoded, rendered)
        if disguise is None and -1 not in places:
            return self._beside.ids(encoded)
        show = disguise.show if disguise else str
        signed = self._beside_without(rendered + show(rendered))
        encoded = self._encode_by(signed.twin, signed.signed(rendered, places, show))
        self._refuse((self._reserved - signed.added).intersection(encoded.ids))
        return signed.ids(encoded)

    def _places(self, encoded: Encoding, text: str) -> dict[int, str]:
        """Where the special tokens of what a template wrote are spelled; -1 for one that is not.

        A normalizer may make one of other text, and a message may say that.
        """
        spelled = {number: spelling for spelling, number in self._special.items()}
        pairs = [(number, span) for number, span in zip(encoded.ids, encoded.offsets) if number in spelled]
        places = {text.find(spelled[number], *span): spelled[number] for number, span in pairs}
        if not any(text.find(spelled[number], *span) < 0 for number, span in pairs if number in self._reserved):
            places.pop(-1, None)  # what is unknown
        return places

    @cached_property
    def _beside(self) -> Beside:
        with _library("tokenizer.json has special tokens that cannot be told from text"):
            return Beside(self._tokenizer)

    def _beside_without(self, text: str) -> Beside:
        """One with a sign that is not in `text`."""
        signed = self._signed
        if signed is None or signed.sign in text:
            taken = text + "".join(token.content for token in self._tokenizer.get_added_tokens_decoder().values())
            sign = next((sign for sign in map(chr, PRIVATE) if sign not in taken), None)
            if sign is None:
                raise InvalidRequest("a text holds all of Unicode's private use area; take some of it out")
            with _library("tokenizer.json has special tokens that cannot be told from text"):
                self._signed = signed = Beside(self._tokenizer, sign)
        return signed

    @property
    def template(self) -> str | None:
        """The source of the chat template, None where there is none."""
        return self._template.source if self._template else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as the checkpoint's chat template writes it, the assistant's turn opened at its end."""
        check_messages(messages)
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt)

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
            if len(given) * self._traits.token * self._traits.decoding > WORK:
                size = sum(len(self._tokenizer.id_to_token(number) or "") for number in given)
                if (size := size * self._traits.decoding) > WORK:
                    raise ValueError(f"they may become {size} bytes, over the limit of {WORK}")
            return str(self._tokenizer.decode(given, skip_special_tokens=skip_special_tokens))

    @property
    def _chat(self) -> ChatTemplate:
        if self._template is None:
            raise InvalidRequest("this checkpoint has no chat template; pass plain text (--raw) or token ids")
        return self._template


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
            said = str(error) or type(error).__name__
            raise BundleError(f"{fault}: {said}; mend it, and export the bundle again") from error
        raise
