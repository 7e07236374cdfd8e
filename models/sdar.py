"""SDAR (JetLM/SDAR-1.7B-Chat, SDAR-4B-Chat, SDAR-8B-Chat; arXiv 2510.06303).

    config = Config.from_json(json.load(open("config.json")))
    config.block_length                         # 4
    model = Model(config)

Qwen3's transformer, causal between blocks and full inside one; row p predicts position p. A checkpoint trained
with longer blocks (such as SDAR-4B-Chat-b64) must say so in config.json, as `block_size`: else 4 is taken.
"""

from collections.abc import Mapping
from typing import Any, Self

from dpad.models import qwen
from dpad.models.fields import block, filled, require

Model = qwen.Model

_ONLY = {"attention_bias": False}

# The authors' config.json names neither: both are arguments of their generation code.
DEFAULTS = {"block_size": 4, "mask_token_id": 151669}


class Config(qwen.Config):
    """The keys of SDAR's config.json that shape the computation, under common names."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the authors' keys; raises `CheckpointError` naming a key that is missing or unsupported."""
        require(data, _ONLY)
        length = block(data, "block_size", DEFAULTS["block_size"])
        data = filled(data, DEFAULTS)
        return cls.read(data, logit_shift=0, qk_norm=True, block_length=length)
