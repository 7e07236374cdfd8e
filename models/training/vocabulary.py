"""The embedded models' tokenizers: byte-level BPE in which every number up to 999 is one token."""

import random
from pathlib import Path

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dpad.models.checkpoint.checkpoint import read_json
from dpad.models.training.corpus import turn
from dpad.runtime.errors import CheckpointError

SIZE = 1664
PIECES = r"\p{N}{1,3}| ?\p{L}+|\n+|[^\p{L}\p{N}\n]+"


def build_tokenizer(seed: int, special: list[str]) -> Tokenizer:
    """A tokenizer trained on the corpus; `special` tokens have the first ids, and every text can be encoded."""
    rng = random.Random(f"tokenizer {seed}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    numbers = [" ".join(map(str, range(1000)))] * 1000  # frequent enough that each becomes one token
    turns = [text for _ in range(10000) for text in turn(rng)]
    tokenizer.train_from_iterator(numbers + turns, trainer)
    return tokenizer


def number_values(tokenizer: Tokenizer) -> dict[int, int]:
    """Map the id of every token that is a number, also with leading zeros, to its value."""
    return {index: int(text) for text, index in sorted(tokenizer.get_vocab().items()) if text.isdecimal()}


class Text:
    """A checkpoint directory's tokenizer and chat template: encodes questions and answers."""

    def __init__(self, tokenizer: Tokenizer, directory: Path) -> None:
        self.tokenizer = tokenizer
        self._settings = read_json(directory / "tokenizer_config.json")
        self.eos, self.mask = self._id("eos_token"), self._id("mask_token")
        self.values = number_values(tokenizer)
        self.separators = [self.encode(text)[-1] for text in ("1\n", "1, ")]  # of lines, of items
        self._template = jinja2.Template((directory / "chat_template.jinja").read_text("utf-8"))

    def _id(self, name: str) -> int:
        index: int | None = self.tokenizer.token_to_id(self._settings[name])
        if index is None:
            raise CheckpointError(f"the tokenizer lacks the {name} that tokenizer_config.json names")
        return index

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, in which special tokens are recognised."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def prompt(self, question: str) -> list[int]:
        """Token ids of the chat template with one user turn, up to the beginning of the answer."""
        chat = [{"role": "user", "content": question}]
        bos = self._settings.get("bos_token", "")
        return self.encode(self._template.render(messages=chat, bos_token=bos, add_generation_prompt=True))
