"""`Reader`: reads prompts and options for one bundle. It holds the tokenizer, the limits and the presets, no engine.

    reader.request("What is 53 + 34?")          # token ids, by the chat template
    reader.options(preset="gsm8k").gen_length

A `DiffusionModel` is a reader with an engine in the same process. A server's reader has its engine in another one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from dpad.runtime.arguments import reading
from dpad.runtime.contract import StepContract
from dpad.runtime.decoding.limits import check_room
from dpad.runtime.decoding.options import GenerationOptions, Options
from dpad.runtime.decoding.presets import Preset, resolve, served
from dpad.runtime.decoding.prompts import Prompt, read_flag, read_prompt, read_suffix
from dpad.runtime.decoding.request import Request
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.text.codec import TextCodec

_DROPPED = 2  # a tokenizer may drop half of a text's characters: spaces between words, combining accents


@dataclass(frozen=True)
class Facts:
    """Facts about an open engine. They can be sent to another process.

    Attributes:
        engine: name of the engine.
        contract: the engine's step.
        slots: tokens whose keys and values fit into the pool.
        max_running: most sequences that are decoded together.
        presets: the bundle's sets of decoding options.
        digest: SHA-256 of the bundle's manifest.
    """

    engine: str
    contract: StepContract
    slots: int
    max_running: int
    presets: Mapping[str, Preset]
    digest: str


class Reader:
    """Reads prompts and options; raises `InvalidRequest` for those that the engine of `facts` cannot serve."""

    def __init__(self, facts: Facts, codec: TextCodec | None) -> None:
        """Without a `codec`, prompts and results are token ids only."""
        self.facts, self._codec = facts, codec

    @property
    def presets(self) -> Mapping[str, Preset]:
        """The bundle's sets of decoding options, by name."""
        return self.facts.presets

    @property
    def has_tokenizer(self) -> bool:
        """Whether the bundle has a tokenizer; without one, prompts and results are token ids only."""
        return self._codec is not None

    @property
    def codec(self) -> TextCodec:
        """The tokenizer; raises `InvalidRequest` if the checkpoint came without one."""
        if self._codec is None:
            raise InvalidRequest(
                "this bundle has no tokenizer; pass token ids (to dpad generate as --ids) and read `token_ids`"
            )
        return self._codec

    @reading("an option")
    def options(self, **options: Unpack[Options]) -> GenerationOptions:
        """Resolve keyword arguments; options that they leave out come from `preset`, or from the preset `default`.

        The window of a preset's schedule is cut to a shorter `gen_length`. Unknown names of presets and
        options raise `InvalidRequest`.
        """
        return resolve(self.presets, self.facts.contract, options)

    @reading("an option")
    def _served(self, options: Mapping[str, Any]) -> GenerationOptions:
        """Resolve as `options` does; the error for a preset that cannot be served names the preset."""
        return served(self.presets, self.facts.contract, options)

    def request(self, prompt: Prompt, *, raw: bool = False, suffix: str | None = None) -> Request:
        """Encode a prompt as token ids.

        Text is wrapped by the chat template, unless `raw` is set or there is no template. `suffix` is the text
        behind the generated text (infill).
        """
        given, behind, raw = read_prompt(prompt), read_suffix(suffix), read_flag(raw)
        if isinstance(given, Request):
            if behind:
                raise InvalidRequest("a Request holds its own suffix_ids; leave suffix out")
            return given
        self.check_size(given, behind)
        if isinstance(given, str):
            chat = self.codec.has_chat_template and not raw
            messages = [{"role": "user", "content": given}]
            ids = self.codec.encode_chat(messages, self.check_size) if chat else self.codec.encode(given)
        elif given and isinstance(given[0], dict):
            self.check_size(*(part for message in given for part in message.values()))
            ids = self.codec.encode_chat(given, self.check_size)
        else:
            ids = given
        return Request(tuple(ids), tuple(self.codec.encode_plain(behind)) if behind else ())

    def check_size(self, *texts: object) -> None:
        """Raise `InvalidRequest` if `texts` together are longer than any canvas could hold.

        It is called before encoding, which would cost time and memory. Values that are not strings are ignored.
        """
        most = self.facts.contract.max_length
        size = sum(str.__len__(text) for text in texts if isinstance(text, str))
        if size > most and size > (limit := _DROPPED * most * self.codec.longest_token):
            raise InvalidRequest(
                f"a text of {size} characters is over the {limit} that this bundle's {most} tokens could hold; "
                "shorten it, or export with a larger --max-length"
            )

    def check(self, prompt: Prompt, *, raw: bool = False, **options: Unpack[Options]) -> None:
        """Raise the error that decoding would raise for this request, without running any pass."""
        self.check_open()
        resolved = self._served(options)
        resolved.check(self.facts.contract)
        request = self.request(prompt, raw=raw)
        request.check(resolved, self.facts.contract)
        check_room(request.slots(resolved), self.facts.slots, self.facts.engine)

    def check_open(self) -> None:
        """Raise an error if nothing can be decoded now; by default it does nothing."""


def tokenizer_directory(bundle_directory: Path) -> Path:
    """The folder of a bundle that holds its tokenizer files."""
    return bundle_directory / "tokenizer"
