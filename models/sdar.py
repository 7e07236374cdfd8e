"""SDAR (JetLM/SDAR-1.7B-Chat, SDAR-4B-Chat, SDAR-8B-Chat; arXiv 2510.06303).

    config = Config.from_json(json.load(open("config.json")))
    config.block_length                         # 4
    model = Model(config)

It is Qwen3's transformer with attention that is causal between blocks and full within a block; row p predicts position
p. The block length is 4 unless config.json has another `block_size`, as it must for checkpoints such as
SDAR-4B-Chat-b64.
"""

from collections.abc import Mapping
from typing import Any, Self

from dpad.models import qwen
from dpad.models.fields import block, filled, require

Model = qwen.Model

_ONLY = {"attention_bias": False}

# The authors' config.json lacks both keys, which are arguments of their generation code.
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
