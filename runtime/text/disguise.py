"""`Disguise`: special tokens that messages spell, as other text while a chat template is rendered.

    disguise = Disguise.of(spellings, messages, taken=source)
    rendered = render([disguise.hide(message) for message in messages])
    disguise.show(rendered)                    # what the messages said

The first character of each is another one, from Unicode's private use area, that occurs nowhere else: so text keeps
its length, and the template's own special tokens are told from a user's. A template may look at what a message
says, such as `'<|eot|>' in content` or `content.split('<|eot|>')`: `method` and `show` answer as for the text that
stands there, and pieces of it stay disguised.
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
    """Characters that stand for the first ones of special tokens: `marks` has the one for each of these."""

    def __init__(self, spellings: Iterable[str], marks: Mapping[str, str]) -> None:
        tokens = "|".join(map(re.escape, sorted(spellings, key=len, reverse=True)))
        self._begins = re.compile(f"(?={tokens})(.)", re.DOTALL)
        self.marks = dict(marks)
        self._shown = str.maketrans({mark: character for character, mark in marks.items()})

    @classmethod
    def of(cls, spellings: Collection[str], messages: Sequence[Mapping[str, str]], taken: str) -> "Disguise | None":
        """For what `messages` say, beside a template `taken`; None where they spell no special token.

        Raises `InvalidRequest` where every character is taken.
        """
        if any(spelling in key for message in messages for key in message for spelling in spellings):
            raise InvalidRequest("the name of a field of a chat message spells a special token; take it out")
        told = "".join(value for message in messages for value in message.values())
        spelled = [spelling for spelling in spellings if spelling in told]
        if not spelled:
            return None
        unused = (chr(code) for code in PRIVATE if chr(code) not in told + taken)
        hidden = sorted({spelling[0] for spelling in spelled})
        marks = dict(zip(hidden, unused))
        if len(marks) < len(hidden):
            raise InvalidRequest("a special token is spelled beside all of Unicode's private use area; take some out")
        return cls(spelled, marks)

    def hide(self, text: str) -> str:
        """`text` without a special token in it."""
        return self._begins.sub(lambda match: self.marks[match[1]], text)

    def show(self, text: str) -> str:
        """What stands behind a disguise."""
        return text.translate(self._shown)

    def unescape(self, text: str) -> str:
        """`text` with the characters back that JSON, or Python for what is in a list, wrote as their numbers."""
        for mark in self.marks.values():
            text = re.sub(rf"(?<!\\)((?:\\\\)*)\\u{ord(mark):04x}", rf"\g<1>{mark}", text)
        return text

    def method(self, name: str, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """`text.name(*args, **kwargs)`, found on what stands there, and the pieces still disguised."""
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
        """What is left of `text` when one or both of its ends go."""
        if name == "strip":
            left = self._rest(text, plain, "lstrip", looked)
            return self._rest(left, self.show(left), "rstrip", looked)
        kept = len(getattr(plain, name)(*looked))
        return text[len(text) - kept :] if name in ("lstrip", "removeprefix") else text[:kept]

    def _plain(self, value: Any) -> Any:
        if isinstance(value, tuple):  # startswith takes several
            return tuple(map(self._plain, value))
        return self.show(value) if isinstance(value, str) else value


def _cut(text: str, sizes: Sequence[int], gap: int) -> Iterable[str]:
    """Pieces of `text` of these sizes, each `gap` behind the one before."""
    at = 0
    for size in sizes:
        yield text[at : at + size]
        at += size + gap
