"""The embedded models' tokenizers, built again."""

from functools import cache

from tokenizers import Tokenizer

from dpad.models.checkpoint.checkpoint import read_json
from dpad.models.training.__main__ import SHIPPED, special_tokens
from dpad.models.training.vocabulary import build_tokenizer


@cache
def tokenizer_of(name: str) -> Tokenizer:
    """The tokenizer that the training script builds."""
    return build_tokenizer(0, special_tokens(read_json(SHIPPED / name / "tokenizer_config.json")))
