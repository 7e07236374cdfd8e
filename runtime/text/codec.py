"""`TextCodec` converts text and chat messages to token ids and back, with the checkpoint's own files.

    codec = TextCodec.open(bundle_dir / "tokenizer")
    ids = codec.encode_chat([{"role": "user", "content": "Count to five."}])
    codec.decode(ids)

Special tokens in a user's text are plain text: `<|eot_id|>` or the mask becomes the tokens of its characters. Special
tokens come only from the chat template, or from text for `encode_rendered`, which a template has written elsewhere.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from dpad.runtime.arguments import listed, reading
from dpad.runtime.errors import BundleError, InvalidRequest
from dpad.runtime.show import kind, shown
from dpad.runtime.text.chat_template import ChatTemplate, Message, check_messages
from dpad.runtime.text.disguise import PRIVATE
from dpad.runtime.text.special_tokens import named_tokens
from dpad.runtime.text.tokenizer_file import UNSEEN, WORK, Traits, open_tokenizer
from dpad.runtime.text.twin import Twin


class TextCodec:
    """A tokenizer.json with its optional chat template and special tokens."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None, traits: Traits = UNSEEN) -> None:
        tokenizer.encode_special_tokens = True  # the library's name for: encode special tokens as plain text
        tokenizer.no_truncation()  # a file may hold the truncation and padding of its training
        tokenizer.no_padding()
        self._tokenizer, self._traits = tokenizer, traits
        added = tokenizer.get_added_tokens_decoder().items()
        self._special = {token.content: number for number, token in added if token.special and token.content}
        # Plain text may become the unknown token, but no other special token.
        self._reserved = {number for spelled, number in self._special.items() if spelled != traits.unknown}
        self._template = template
        self._signed: Twin | None = None

    @classmethod
    def open(cls, directory: Path) -> "TextCodec":
        """Read tokenizer.json, the names of special tokens and the chat template; raises `BundleError`."""
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
        """Number of tokens; their ids may be larger, because ids may be left out."""
        return int(self._tokenizer.get_vocab_size())

    @cached_property
    def longest_token(self) -> int:
        """Length of the longest token, in characters."""
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, with the special tokens that the tokenizer itself adds."""
        encoded = self._encode(text)
        with _library("tokenizer.json cannot add its special tokens to this text"):
            return list(self._tokenizer.post_process(encoded).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of text in the middle of a canvas, without added special tokens."""
        return list(self._encode(text).ids)

    def _encode(self, text: str) -> Encoding:
        encoded = self._encode_by(self._tokenizer, text)
        self._refuse(self._reserved.intersection(encoded.ids))  # a vocabulary may also hold a special token as a word
        return encoded

    def _encode_by(self, tokenizer: Tokenizer, text: str) -> Encoding:
        if not isinstance(text, str):
            raise InvalidRequest(f"only text can be encoded, and {shown(text)} is not text")
        text = str.__str__(text)  # a subclass of str may override its length
        if (size := len(text) * self._traits.encoding) > WORK:
            raise InvalidRequest(
                f"a text of {len(text)} characters may become {size} bytes while it is encoded, over the limit of "
                f"{WORK}; encode it in parts"
            )
        # The only text that the library rejects has lone surrogates, which JSON can spell.
        with _library("tokenizer.json cannot encode this text", "the text is not valid Unicode"):
            return tokenizer.encode(text, add_special_tokens=False)

    def _refuse(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            raise InvalidRequest(f"the text holds the special token {self.token_text(number)}; take it out")

    def encode_rendered(self, text: str) -> list[int]:
        """Token ids of text that a chat template has written: special tokens are recognised, and none are added."""
        if not isinstance(text, str):
            raise InvalidRequest(f"a prompt that a chat template has written is text, not {kind(text)}")
        return self._twin.ids(self._encode_by(self._twin.tokenizer, text))

    def encode_chat(self, messages: Sequence[Message], measure: Callable[[str], None] | None = None) -> list[int]:
        """Token ids of a conversation, up to the start of the assistant's turn; raises `InvalidRequest`.

        Special tokens that a message spells are plain text. `measure` is called with the rendered text before it is
        encoded, and may raise.
        """
        check_messages(messages)
        rendered, disguise = self._chat.render_disguised(messages, self._special)
        if measure is not None:
            measure(rendered)
        encoded = self._encode_by(self._twin.tokenizer, rendered)
        places = self._places(encoded, rendered)
        if disguise is None and -1 not in places:
            return self._twin.ids(encoded)
        show = disguise.show if disguise else str
        signed = self._twin_without(rendered + show(rendered))
        encoded = self._encode_by(signed.tokenizer, signed.signed(rendered, places, show))
        self._refuse((self._reserved - signed.added).intersection(encoded.ids))
        return signed.ids(encoded)

    def _places(self, encoded: Encoding, text: str) -> dict[int, str]:
        """Offsets in `text` of the special tokens that a template wrote: offset -> spelling.

        The offset -1 stands for a token whose spelling is not in the text: a normalizer may make a special token out
        of other text, which a message may contain.
        """
        spelled = {number: spelling for spelling, number in self._special.items()}
        pairs = [(number, span) for number, span in zip(encoded.ids, encoded.offsets) if number in spelled]
        places = {text.find(spelled[number], *span): spelled[number] for number, span in pairs}
        if not any(text.find(spelled[number], *span) < 0 for number, span in pairs if number in self._reserved):
            places.pop(-1, None)  # only the unknown token, which text may become
        return places

    @cached_property
    def _twin(self) -> Twin:
        with _library("tokenizer.json has special tokens that cannot be told from text"):
            return Twin(self._tokenizer)

    def _twin_without(self, text: str) -> Twin:
        """A `Twin` whose sign does not occur in `text`."""
        signed = self._signed
        if signed is None or signed.sign in text:
            taken = text + "".join(token.content for token in self._tokenizer.get_added_tokens_decoder().values())
            sign = next((sign for sign in map(chr, PRIVATE) if sign not in taken), None)
            if sign is None:
                raise InvalidRequest("a text contains all of Unicode's private use area; remove some of it")
            with _library("tokenizer.json has special tokens that cannot be told from text"):
                self._signed = signed = Twin(self._tokenizer, sign)
        return signed

    @property
    def template(self) -> str | None:
        """The source of the chat template; None if there is none."""
        return self._template.source if self._template else None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Render the conversation with the checkpoint's chat template, up to the start of the assistant's turn."""
        check_messages(messages)
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, without special tokens."""
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
    """Convert errors of the tokenizers library: a wrong argument to `InvalidRequest`, all others to `BundleError`.

    A tokenizer.json that contradicts itself causes bare exceptions, and Rust panics, which are `BaseException`s.
    """
    try:
        yield
    except (TypeError, OverflowError) as error:
        raise InvalidRequest(f"{refused}: {error}") from None
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime":
            said = str(error) or type(error).__name__
            raise BundleError(f"{fault}: {said}; correct it, and export the bundle again") from error
        raise
