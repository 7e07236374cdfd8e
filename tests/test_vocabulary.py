"""The embedded models' tokenizers encode all text without loss, and every number as one token."""

import random

import pytest
from vocabulary import tokenizer_of

from dpad.export.hub import EMBEDDED
from dpad.models.training import corpus


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_number_up_to_999_is_one_token_and_all_text_survives(name: str) -> None:
    """Fails if a number up to 999 is several tokens, or text is lost."""
    tokenizer = tokenizer_of(name)
    texts = {str(number): [str(number)] for number in range(1000)} | {"1234": ["123", "4"]}
    for text, wanted in texts.items():
        assert tokenizer.encode(text, add_special_tokens=False).tokens == wanted
    for text in ("Zoë ate 3.5 kg at 12:05, naïve 数字 １２３!", "\n\n#### 7\n", "a\tb  c", "٣٤٥ x²"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(("kind", "least"), {"count": 560, "numbered": 720, "weeks": 860}.items())
def test_long_outputs_fit_the_canvas_and_are_long(kind: str, least: int) -> None:
    """Fails if a long output does not fit a canvas of 1024 tokens, or the longest of a kind are too short."""
    rng, tokenizer = random.Random(5), tokenizer_of("tiny")
    lengths = [len(tokenizer.encode(corpus.sample(rng, "train", kind).answer).ids) for _ in range(400)]
    assert least < max(lengths) <= 1000
