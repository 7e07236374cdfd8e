"""The tokens that a checkpoint adds to its vocabulary, and which of them are special. Four files declare them.

    declared = Declared.read(checkpoint.directory, own)     # `own`: added_tokens of its tokenizer.json
    tokens = declared.added_to(own, vocabulary)             # as a tokenizer.json holds them

The files are merged by the rules of transformers:

- `added_tokens_decoder` of tokenizer_config.json overrides tokenizer.json. If there is none,
  special_tokens_map.json overrides tokenizer_config.json, and added_tokens.json is read too.
- Tokens of tokenizer_config.json that tokenizer.json lacks are added: first those with an id, then the named ones
  (`eos_token`, `extra_special_tokens`, ...), which are special.

transformers does not report contradictions. Here a token with two ids, or with an id that the vocabulary already uses,
is an error, since it would select a wrong row of the embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpad.models.checkpoint.checkpoint import read_json
from dpad.runtime.errors import CheckpointError
from dpad.runtime.text.special_tokens import content_of

CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_DECODER = "added_tokens_decoder"
_FLAGS = ("single_word", "lstrip", "rstrip")

Token = dict[str, Any]  # an entry of added_tokens in a tokenizer.json


@dataclass(frozen=True)
class Declared:
    """The tokens that the files beside tokenizer.json declare.

    Attributes:
        config: tokenizer_config.json, merged with special_tokens_map.json if that is used.
        source: the checkpoint's directory.
        tokens: declared tokens with an id, sorted by id, each with its file.
        named: declared tokens with a name, which are special.
        notes: a message for each declaration that is ignored.
    """

    config: dict[str, Any]
    source: Path
    tokens: tuple[tuple[Token, Path], ...]
    named: tuple[Token, ...]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, source: Path, own: Sequence[Token] = ()) -> "Declared":
        """Read the files of `source`; raises `CheckpointError` if they cannot be read or contradict each other."""
        config, special, added = (_read(source / name) for name in (CONFIG, SPECIAL, ADDED))
        notes = []
        if _DECODER in config:
            tokens = _decoder(source / CONFIG, config[_DECODER])
            contents = {token["content"] for token in (*tokens, *own)}
            if left_out := sorted(str(content) for content in added if content not in contents):
                notes.append(
                    f"{ADDED}: {left_out[0]!r} is ignored, since {CONFIG} has an {_DECODER} without it"
                    + (f" (and {len(left_out) - 1} more)" if left_out[1:] else "")
                )
            for key, value in special.items():
                if (text := content_of(value)) and text != content_of(config.get(key)) and key.endswith("_token"):
                    notes.append(
                        f"{SPECIAL}: {key} {text!r} is ignored, since {CONFIG} has an {_DECODER} and its {key} is "
                        f"{content_of(config.get(key))!r}"
                    )
            paths = [source / CONFIG] * len(tokens)
        else:
            config = config | special
            named = {token["content"] for token in _named(config)}
            tokens = [_token(content, number, special=content in named) for content, number in added.items()]
            paths = [source / ADDED] * len(tokens)
        _compare([*((token, source / "tokenizer.json") for token in own), *zip(tokens, paths), *_legacy(source, added)])
        pairs = sorted(zip(tokens, paths), key=lambda pair: pair[0]["id"])
        return cls(config, source, tuple(pairs), tuple(_named(config)), tuple(notes))

    def added_to(self, own: Sequence[Token], vocabulary: Mapping[str, int]) -> list[Token]:
        """The declared tokens merged with `own`, the added tokens of tokenizer.json, sorted by id.

        `vocabulary` maps the model's tokens to ids. The tokenizers library gives an added token the next free id;
        raises `CheckpointError` if a declared id is another one.
        """
        tokens = {token["content"]: dict(token) for token in own}
        for token, path in self.tokens:
            free = self._next(tokens, vocabulary)
            content, number = token["content"], token["id"]
            got = vocabulary.get(content, tokens[content]["id"] if content in tokens else free)
            if got != number:
                raise CheckpointError(
                    f"{path} gives token {content!r} the id {number}, but after the vocabulary and the tokens before "
                    f"it its id is {got}; is the vocabulary complete?"
                )
            tokens[content] = dict(token)
        for token in self.named:
            content = token["content"]
            number = vocabulary.get(content, self._next(tokens, vocabulary))
            tokens.setdefault(content, {**token, "id": number})["special"] = True
        holders: dict[int, str] = {number: content for content, number in vocabulary.items()}
        for content, token in tokens.items():
            if (other := holders.setdefault(token["id"], content)) != content:
                raise CheckpointError(
                    f"{self.source}: its tokenizer's tokens {other!r} and {content!r} have the same id, "
                    f"{token['id']}; give each its own"
                )
        return sorted(tokens.values(), key=lambda token: int(token["id"]))

    @staticmethod
    def _next(tokens: Mapping[str, Token], vocabulary: Mapping[str, int]) -> int:
        """The id that the tokenizers library would give to a new token."""
        return max([len(vocabulary), *(int(token["id"]) + 1 for token in tokens.values())])


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _token(content: Any, number: Any, *, special: bool, told: Mapping[str, Any] | None = None) -> Token:
    told = told or {}
    flags = {flag: bool(told.get(flag)) for flag in _FLAGS}
    return {"id": number, "content": content, **flags, "normalized": told.get("normalized", not special)} | {
        "special": special
    }


def _decoder(path: Path, declared: Any) -> list[Token]:
    """The tokens in an `added_tokens_decoder`, sorted by id."""
    try:
        tokens = [
            _token(told["content"], int(number), special=bool(told.get("special")), told=told)
            for number, told in (declared or {}).items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {_DECODER} cannot be read: {error!r}") from None
    return sorted(tokens, key=lambda token: int(token["id"]))


def _named(config: Mapping[str, Any]) -> list[Token]:
    """The tokens under a name (`eos_token`) or in a list of special tokens, without repetition."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    listed = list(extra.values()) if isinstance(extra, dict) else extra if isinstance(extra, list) else []
    values = [value for key, value in config.items() if key.endswith("_token")] + listed
    found = {text: value for value in reversed(values) if (text := content_of(value))}
    return [
        _token(text, None, special=True, told=value if isinstance(value, dict) else None)
        for text, value in reversed(found.items())
    ]


def _legacy(source: Path, added: Mapping[str, Any]) -> Iterator[tuple[Token, Path]]:
    return ((_token(content, number, special=False), source / ADDED) for content, number in added.items())


def _compare(said: Sequence[tuple[Token, Path]]) -> None:
    """Raise `CheckpointError` if two files give a token different ids, or an entry is not a token."""
    ids: dict[str, tuple[int, Path]] = {}
    for token, path in said:
        content, number = token.get("content"), token.get("id")
        if not isinstance(content, str) or not content or not isinstance(number, int) or isinstance(number, bool):
            raise CheckpointError(f"{path}: the added token {content!r} has the id {number!r}; give it a whole number")
        first, where = ids.setdefault(content, (number, path))
        if first != number:
            raise CheckpointError(
                f"token {content!r} has the id {first} in {where} and {number} in {path.name}; keep the file that the "
                "model was trained with, and remove the other one"
            )
