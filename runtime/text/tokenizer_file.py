"""Checks a tokenizer.json before the tokenizers library reads it, which aborts or exhausts memory on some files.

    tokenizer, traits = open_tokenizer(directory / "tokenizer.json")     # OSError or ValueError

The library is native code. Unexpected input usually ends in a Rust panic, which can be caught, but sometimes in an
abort, which cannot: merges without their model's prefix, a token so long that freeing it overflows the stack, or
a failed allocation. So a file is read within size limits, and the known causes of aborts are found in the JSON and
refused. An export tries more, in a process of its own (export/rehearsal/trial.py); docs/security.md lists what remains.
"""

import base64
import binascii
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models

from dpad.runtime.bundle import files

# Upper limits.
SIZE = 64 << 20  # bytes of the file; the largest published files have 35 million
_VALUES = 4_000_000  # values in the JSON; 260,000 tokens and 520,000 merges have 2 million
_TOKEN = 4096  # characters of a token; published ones have some hundreds
_SETTING = 1 << 16  # characters of a pattern or another setting
_AFFIX = 256  # characters of a prefix or suffix that a model adds to every part of a word
_WORD = 1000  # characters of a word for WordPiece, whose time grows with their cube; published files have 100
_NODES = 256  # objects, such as normalizers, in one section
_GROWTH = 4096  # growth of a text, as a factor; published files have under 1000
_ADDED = 1024  # tokens that a post_processor adds to a text
_CONTENTS = 1 << 20  # characters of all added tokens, normalized on opening; 28,000 audio tokens have 500,000
WORK = 16 << 20  # bytes that normalizers may make of a text, or decoders of tokens

# Factors by which each part may lengthen a text in UTF-8. A character put before every word is counted with words of
# one character.
_GROWS = {"NFC": 2, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 2, "ByteLevel": 2, "Metaspace": 6}
_GROWS |= {"BertNormalizer": 12, "Bert": 12, "WordPiece": 2}


@dataclass(frozen=True)
class Traits:
    """Properties of a tokenizer.json.

    Attributes:
        encoding: factor by which normalizer and pre_tokenizer may lengthen a text.
        decoding: factor by which the decoder may lengthen the tokens' text.
        token: characters of the longest token.
        unknown: the token for text that the vocabulary lacks; None if there is none.
    """

    encoding: int = 1
    decoding: int = 1
    token: int = _TOKEN
    unknown: str | None = None


UNSEEN = Traits()


def open_tokenizer(path: Path) -> tuple[Tokenizer, Traits]:
    """Open the tokenizer in a tokenizer.json; returns it with its `Traits`.

    Raises `OSError` or `ValueError` for a file that cannot be read or is not safe for the library, and whatever the
    library itself raises. BPE dropout, which is for training, is turned off.
    """
    text, data = read_tokenizer(path)
    traits = check(data)
    tokenizer = Tokenizer.from_str(text)
    for token in data.get("added_tokens") or ():
        given, wanted = tokenizer.token_to_id(token["content"]), token["id"]
        if given != wanted and token["content"]:
            raise ValueError(
                f"it gives the added token {token['content']!r} the id {wanted}, but after its vocabulary and the "
                f"added tokens before it the id is {given}"
            )
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    return tokenizer, traits


def read_tokenizer(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a tokenizer.json and its parsed JSON; raises `OSError` or `ValueError`."""
    text = files.read_text(path, SIZE)
    data = files.parse_json(text, _VALUES, unique=True)
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    return text, data


def check(data: dict[str, Any]) -> Traits:
    """Raise `ValueError`, with the cause, for contents on which the library aborts.

    Values of another type than the library's are not checked here: the library refuses them with an error.
    """
    longest = _check_model(model) if isinstance(model := data.get("model"), dict) else 1
    longest = max(longest, _check_added(data.get("added_tokens")))
    encoding = _growth(data.get("normalizer"), "normalizer") * _growth(data.get("pre_tokenizer"), "pre_tokenizer")
    traits = Traits(encoding, _growth(data.get("decoder"), "decoder"), longest, _unknown(data.get("model")))
    if max(traits.encoding, traits.decoding) > _GROWTH:
        raise ValueError(f"its normalizer, pre_tokenizer or decoder may make a text over {_GROWTH} times longer")
    _check_post_processor(data.get("post_processor"))
    return traits


def _check_model(model: dict[str, Any]) -> int:
    """Check the section `model`; returns the characters of its longest token."""
    vocab = model.get("vocab")
    tokens = vocab if isinstance(vocab, dict) else [entry[0] for entry in _lists(vocab) if entry]
    widest = _check_lengths("a token", (token for token in tokens if isinstance(token, str)), _TOKEN)
    prefix = model.get("continuing_subword_prefix")
    affixes = (prefix, model.get("end_of_word_suffix"), model.get("unk_token"))
    _check_lengths("a prefix, suffix or unknown token", (text for text in affixes if isinstance(text, str)), _AFFIX)
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, (int, float)) and longest > _WORD:
        raise ValueError(f"its model has max_input_chars_per_word {longest}, over the limit of {_WORD}")
    if isinstance(prefix, str) and prefix:
        for right in _right_parts(model.get("merges")):
            if not right.startswith(prefix):
                raise ValueError(f"its model has continuing_subword_prefix {prefix!r}, and merges {right!r} without it")
    return widest


def _unknown(model: Any) -> str | None:
    if not isinstance(model, dict):
        return None
    number, vocab = model.get("unk_id"), model.get("vocab")
    token = model.get("unk_token")
    if isinstance(vocab, list) and isinstance(number, int) and 0 <= number < len(vocab):
        token = vocab[number][0] if isinstance(vocab[number], list) and vocab[number] else None
    return token if isinstance(token, str) else None


def _right_parts(merges: Any) -> Iterator[str]:
    """The right part of each merge. A merge is a pair, or a text of two parts with a space between."""
    for merge in merges if isinstance(merges, list) else ():
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(parts, list) and len(parts) == 2 and isinstance(parts[1], str):
            yield parts[1]


def _check_lengths(what: str, texts: Iterable[str], limit: int) -> int:
    if (longest := max(map(len, texts), default=0)) > limit:
        raise ValueError(f"it has {what} of {longest} characters, over the limit of {limit}")
    return longest


def _growth(section: Any, name: str) -> int:
    """Factor by which the parts of a section, applied one after the other, may lengthen a text."""
    nodes = list(_nodes(section, name))
    if len(nodes) > _NODES:
        raise ValueError(f"its {name} has {len(nodes)} parts, over the limit of {_NODES}")
    return prod(max(1, _grows(node, name)) for node in nodes)


def _grows(node: dict[str, Any], name: str) -> int:
    for key, value in node.items():
        if isinstance(value, str) and len(value) > _SETTING and key != "precompiled_charsmap":
            raise ValueError(f"its {name} has a setting of {len(value)} characters, over the limit of {_SETTING}")
    kind, pattern = node.get("type"), node.get("pattern")
    grows = _GROWS.get(kind, 1) if isinstance(kind, str) else 1
    if isinstance(content := node.get("content"), str) and pattern is not None:
        found = pattern.get("String") if isinstance(pattern, dict) else None
        size = len(content.encode(errors="replace"))
        # A regular expression may match the empty text between any two characters.
        known = len(found.encode(errors="replace")) if isinstance(found, str) else 0
        grows *= -(-size // known) if known else size + 1
    if isinstance(node.get("prepend"), str):
        grows *= 1 + len(node["prepend"].encode(errors="replace"))
    if isinstance(table := node.get("precompiled_charsmap"), str):
        grows *= _longest_replacement(table, name)
    return grows


def _longest_replacement(table: str, name: str) -> int:
    """Bytes of the longest replacement of a character in a sentencepiece table."""
    try:
        data = base64.b64decode(table)
    except (binascii.Error, ValueError):
        return 1  # the library refuses it
    start = 4 + int.from_bytes(data[:4], "little")
    if start > len(data):  # the library would allocate that many bytes before it checks
        raise ValueError(f"its {name} has a precompiled_charsmap of {len(data)} bytes, whose header says {start}")
    longest = max(map(len, data[start:].split(b"\0")), default=0)
    if longest > _AFFIX:
        raise ValueError(f"its {name} replaces a character by {longest} bytes, over the limit of {_AFFIX}")
    return longest


def _check_post_processor(section: Any) -> None:
    added = 0
    for node in _nodes(section, "post_processor"):
        if not isinstance(single := node.get("single"), list):
            continue
        pieces = [(kind, told) for piece in single if isinstance(piece, dict) for kind, told in piece.items()]
        if sum(kind == "Sequence" for kind, _ in pieces) > 1:
            raise ValueError("its post_processor writes a text more than once")
        tokens = node.get("special_tokens")
        for told in (told for kind, told in pieces if kind == "SpecialToken" and isinstance(told, dict)):
            token = tokens.get(str(told.get("id"))) if isinstance(tokens, dict) else None
            ids = token.get("ids") if isinstance(token, dict) else None
            added += len(ids) if isinstance(ids, list) else 0
    if added > _ADDED:
        raise ValueError(f"its post_processor adds {added} tokens to a text, over the limit of {_ADDED}")


def _check_added(tokens: Any) -> int:
    """Check the added tokens; returns the characters of the longest."""
    texts = [token["content"] for token in _dicts(tokens) if isinstance(token.get("content"), str)]
    if (size := sum(map(len, texts))) > _CONTENTS:
        raise ValueError(f"its added tokens have {size} characters, over the limit of {_CONTENTS}")
    return _check_lengths("an added token", texts, _TOKEN)


def _nodes(section: Any, name: str, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Every object in a section, of any type, because the library guesses a type that is missing."""
    if depth > files.DEPTH:
        raise ValueError(f"its {name} is nested deeper than {files.DEPTH}")
    if isinstance(section, dict):
        yield section
    for part in section.values() if isinstance(section, dict) else section if isinstance(section, list) else ():
        if isinstance(part, (dict, list)):
            yield from _nodes(part, name, depth + 1)


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _lists(value: Any) -> list[list[Any]]:
    return [entry for entry in value if isinstance(entry, list)] if isinstance(value, list) else []
