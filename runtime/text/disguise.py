"""`Disguise` replaces special tokens that messages spell by other text while a chat template is rendered.

    disguise = Disguise.of(spellings, messages, taken=source)
    rendered = render([disguise.hide(message) for message in messages])
    disguise.show(rendered)                    # the text with the messages' own characters

The first character of each spelled token becomes a character of Unicode's private use area that occurs nowhere else.
So text keeps its length, and the template's own special tokens differ from a user's. A template may inspect a message,
as in `'<|eot|>' in content` or `content.split('<|eot|>')`: `method` and `show` give the results for the original text,
and pieces of the text stay disguised.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from dpad.runtime.errors import InvalidRequest

PRIVATE = range(0xE000, 0xF900)  # Unicode's private use area
_PIECES = frozenset({"split", "rsplit", "partition", "rpartition"})
_ENDS = {"strip": "", "lstrip": "", "rstrip": "", "removeprefix": "", "removesuffix": ""}
_ANSWERS = frozenset({"count", "endswith", "find", "index", "rfind", "rindex", "startswith"})


class Disguise:
    """`marks` maps the first character of each spelled special token to the character that replaces it."""

    def __init__(self, spellings: Iterable[str], marks: Mapping[str, str]) -> None:
        tokens = "|".join(map(re.escape, sorted(spellings, key=len, reverse=True)))
        self._begins = re.compile(f"(?={tokens})(.)", re.DOTALL)
        self.marks = dict(marks)
        self._shown = str.maketrans({mark: character for character, mark in marks.items()})

    @classmethod
    def of(cls, spellings: Collection[str], messages: Sequence[Mapping[str, str]], taken: str) -> "Disguise | None":
        """A disguise for `messages`, which avoids the characters in `taken`; None if they spell no special token.

        Raises `InvalidRequest` if no character of the private use area is free.
        """
        if any(spelling in key for message in messages for key in message for spelling in spellings):
            raise InvalidRequest("the name of a field of a chat message spells a special token; remove it")
        told = "".join(value for message in messages for value in message.values())
        spelled = [spelling for spelling in spellings if spelling in told]
        if not spelled:
            return None
        unused = (chr(code) for code in PRIVATE if chr(code) not in told + taken)
        hidden = sorted({spelling[0] for spelling in spelled})
        marks = dict(zip(hidden, unused))
        if len(marks) < len(hidden):
            raise InvalidRequest(
                "a message spells a special token and contains all of Unicode's private use area; remove some of it"
            )
        return cls(spelled, marks)

    def hide(self, text: str) -> str:
        """`text` with its special tokens disguised."""
        return self._begins.sub(lambda match: self.marks[match[1]], text)

    def show(self, text: str) -> str:
        """`text` with the original characters."""
        return text.translate(self._shown)

    def unescape(self, text: str) -> str:
        """`text` with marks instead of their escapes, which JSON writes, and Python does for text in a list."""
        for mark in self.marks.values():
            text = re.sub(rf"(?<!\\)((?:\\\\)*)\\u{ord(mark):04x}", rf"\g<1>{mark}", text)
        return text

    def method(self, name: str, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call `text.name(*args, **kwargs)` on the original text; pieces of the text are returned disguised."""
        plain, looked = self.show(text), [self._plain(value) for value in args]
        named = {key: self._plain(value) for key, value in kwargs.items()}
        if name in _ANSWERS:
            return getattr(plain, name)(*looked, **named)
        if name in _ENDS:
            return self._rest(text, plain, name, looked)
        if name in _PIECES and (named.get("sep") or looked[:1] not in ([], [None])):
            pieces = getattr(plain, name)(*looked, **named)
            gap = 0 if "partition" in name else len(named.get("sep") or looked[0])
            return type(pieces)(_cut(text, [len(piece) for piece in pieces], gap))
        if name == "replace" and len(looked) > 1 and looked[0]:
            pieces = plain.split(looked[0], *looked[2:])
            return args[1].join(_cut(text, [len(piece) for piece in pieces], len(looked[0])))
        return getattr(text, name)(*args, **kwargs)

    def _rest(self, text: str, plain: str, name: str, looked: Sequence[Any]) -> str:
        """The rest of `text` after a method that removes one or both of its ends."""
        if name == "strip":
            left = self._rest(text, plain, "lstrip", looked)
            return self._rest(left, self.show(left), "rstrip", looked)
        kept = len(getattr(plain, name)(*looked))
        return text[len(text) - kept :] if name in ("lstrip", "removeprefix") else text[:kept]

    def _plain(self, value: Any) -> Any:
        if isinstance(value, tuple):  # startswith takes a tuple of prefixes
            return tuple(map(self._plain, value))
        return self.show(value) if isinstance(value, str) else value


def _cut(text: str, sizes: Sequence[int], gap: int) -> Iterable[str]:
    """Cut `text` into pieces of these sizes, with `gap` characters left out between them."""
    at = 0
    for size in sizes:
        yield text[at : at + size]
        at += size + gap
