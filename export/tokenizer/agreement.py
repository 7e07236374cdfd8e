"""`check_agreement`: checks that config.json and the tokenizer agree, and that prompts are tokens of the model.

    check_agreement(checkpoint, stage / "tokenizer", ends, progress)

With the mask id of another model the text is nonsense, and a chat template that writes a token beyond the embedding
fails in the first request. What cannot be right is refused; what is doubtful is reported.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dpad.export.progress import Progress
from dpad.models.checkpoint.checkpoint import Checkpoint, read_json
from dpad.models.checkpoint.folder import CONFIG
from dpad.models.presets import ENDS
from dpad.runtime.errors import BundleError, CheckpointError, InvalidRequest
from dpad.runtime.text.codec import TextCodec
from dpad.runtime.text.special_tokens import content_of
from dpad.runtime.text.tokenizer_file import open_tokenizer

_TEXT = "What is 53 + 34?"
_TURNS = [{"role": role, "content": _TEXT} for role in ("system", "user", "assistant", "user")]
_OTHER_MASKS = ("[gMASK]", "[sMASK]")  # in GLM's tokenizers they begin a text and are not the mask
_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")


def check_agreement(checkpoint: Checkpoint, folder: Path, presets: Mapping[str, Any], progress: Progress) -> None:
    """Compare config.json with the tokenizer in `folder`, if there is one.

    Raises `CheckpointError`, naming the token and the file, for what cannot be right; reports what is doubtful.
    """
    if not folder.exists():
        return
    _Tokens(checkpoint, folder).check(_ends(checkpoint, presets), progress)
    _check_prompts(checkpoint, TextCodec.open(folder))


class _Tokens:
    """The texts and kinds of a tokenizer's tokens, by id, and the tokens that its settings name."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        tokenizer, _ = open_tokenizer(folder / "tokenizer.json")
        self.config = checkpoint.config
        self.source = checkpoint.directory
        self.names = {number: text for text, number in tokenizer.get_vocab(with_added_tokens=True).items()}
        added = tokenizer.get_added_tokens_decoder().items()
        self.names |= {number: token.content for number, token in added}
        self.added = {number for number, _ in added}
        self.special = {number for number, token in added if token.special}
        self.declared: dict[str, str] = {}
        for name in _SETTINGS:
            for path in (self.source / name, folder / name):
                if path.is_file():
                    self.declared |= {
                        key: text for key, value in read_json(path).items() if (text := content_of(value))
                    }

    def check(self, ends: Sequence[int], progress: Progress) -> None:
        """Refuse or report contradictions; see `check_agreement`."""
        beyond = sorted(number for number in self.names if number >= self.config.vocab_size)
        if beyond:
            progress.say(
                f"{self.source}: {len(beyond)} of the tokenizer's tokens are beyond the embedding's "
                f"{self.config.vocab_size} rows, the first is {self._named(beyond[0])}; text that needs them is refused"
            )
        self._check_mask(progress)
        for token in dict.fromkeys(ends):
            self._check_end(token, progress)
        eos = self._id_of("eos_token")
        if eos is not None and eos not in ends:
            progress.say(
                f"text does not end at the tokenizer's eos_token {self._named(eos)}, but at "
                f"{', '.join(map(self._named, ends))}; if it should, add it to eos_token_id in generation_config.json"
            )

    def _check_mask(self, progress: Progress) -> None:
        mask = self.config.mask_token_id
        other = read_json(path).get("mask_token_id") if (path := self.source / ENDS).exists() else None
        if other not in (None, mask):
            if self._is_mask(other) and not self._is_mask(mask):
                raise CheckpointError(
                    f"{self.source / ENDS} has mask_token_id {other}, {self._what(other)} of the tokenizer, and "
                    f"{CONFIG} has {mask}, {self._what(mask)}; put the id with which the model was trained into "
                    f"{CONFIG}"
                )
            progress.say(f"{ENDS} has mask_token_id {other!r}, and {CONFIG} has {mask}, which is used")
        if self._is_mask(mask):
            return
        declared = self._id_of("mask_token")
        others = [number for number in sorted(self.names) if self._is_mask(number)]
        told = f"{CONFIG}: mask_token_id {mask} is {self._what(mask)} of {self.source}'s tokenizer"
        whose = ", which names no mask"
        if others or declared is not None:
            whose = f", whose mask is {self._named(others[0] if declared is None else declared)}"
        if declared is not None or (others and mask not in self.special):
            raise CheckpointError(
                f"{told}{whose}; put the id with which the model was trained there, or its tokenizer beside it"
            )
        progress.say(f"{told}{whose}; it is assumed that the model was trained with it as its mask")

    def _check_end(self, token: int, progress: Progress) -> None:
        if token in self.special or self.names.get(token, "") in self.declared.values():
            return
        eos = self._id_of("eos_token")
        files = f"{CONFIG} or generation_config.json"
        told = f"{files}: eos_token_id {token} is {self._what(token)} of {self.source}'s tokenizer"
        if token not in self.names and eos is not None:
            raise CheckpointError(f"{told}, whose eos_token is {self._named(eos)}; put an id of the tokenizer there")
        progress.say(f"{told}; text ends at it nevertheless")

    def _is_mask(self, token: Any) -> bool:
        text = self.names.get(token) if isinstance(token, int) else None
        if text is None:
            return False
        if text == self.declared.get("mask_token"):
            return True
        return token in self.added and "mask" in text.lower() and text not in _OTHER_MASKS

    def _id_of(self, key: str) -> int | None:
        text = self.declared.get(key)
        return next((number for number, name in self.names.items() if name == text), None)

    def _named(self, token: int) -> str:
        return f"{self.names.get(token, '')!r} ({token})"

    def _what(self, token: int) -> str:
        if token not in self.names:
            return "no token"
        return f"{'the special token' if token in self.special else 'the ordinary token'} {self.names[token]!r}"


def _ends(checkpoint: Checkpoint, presets: Mapping[str, Any]) -> list[int]:
    """The tokens that end a text, if no preset other than `default` is used."""
    default = presets.get("default")
    told = default.get("eos_token_ids") if isinstance(default, Mapping) else None
    return list(told or checkpoint.eos_token_ids)


def _check_prompts(checkpoint: Checkpoint, codec: TextCodec) -> None:
    """Raise `CheckpointError` if a plain text or a chat message becomes tokens that a request may not contain."""
    config = checkpoint.config
    ways: dict[str, Callable[[], list[int]]] = {"tokenizer.json": lambda: codec.encode(_TEXT)}
    if codec.has_chat_template:
        known = {"": _TURNS[1:2], ", with all roles": _TURNS, ", with a system": _TURNS[:2]}
        for roles, turns in known.items():
            with suppress(InvalidRequest):  # many templates refuse a system turn, some need one
                codec.render(turns)
                ways[f"chat template{roles}"] = partial(codec.encode_chat, turns)
    for part, encode in ways.items():
        try:
            ids = encode()
        except (BundleError, InvalidRequest) as error:
            raise CheckpointError(f"{checkpoint.directory}, {part}: {error}") from error
        told = f"{checkpoint.directory}, {part}: a sample prompt contains"
        if (highest := max(ids, default=0)) >= config.vocab_size:
            raise CheckpointError(
                f"{told} {codec.token_text(highest)!r} ({highest}), and the embedding has {config.vocab_size} rows; "
                "use the tokenizer that belongs to these weights, or weights whose embedding was resized for it"
            )
        if config.mask_token_id in ids:
            raise CheckpointError(
                f"{told} the mask {codec.token_text(config.mask_token_id)!r} ({config.mask_token_id}), which stands "
                "for text that is not yet decoded; remove it from the prompt's template"
            )
