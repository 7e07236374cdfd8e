"""Fast-dLLM v2 (Efficient-Large-Model/Fast_dLLM_v2_7B, _1.5B; arXiv 2509.26328).

    config = Config.from_json(json.load(open("config.json")))
    config.block_length                         # 32
    model = Model(config)

It is Qwen2.5's transformer with attention that is causal between blocks and full within a block. It keeps the
autoregressive shift: row p-1 predicts position p, so the last row of a finished block predicts the next block's first
token.
"""

from collections.abc import Mapping
from typing import Any, Self

from dpad.models import qwen
from dpad.models.fields import block, filled

Model = qwen.Model

# The authors' config.json lacks the mask's id, which is an argument of their generation code.
DEFAULTS = {"bd_size": 32, "mask_token_id": 151665}


class Config(qwen.Config):
    """The keys of Fast-dLLM v2's config.json that shape the computation, under common names."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the authors' keys; raises `CheckpointError` naming a key that is missing or unsupported."""
        length = block(data, "bd_size", DEFAULTS["bd_size"])
        data = filled(data, DEFAULTS)
        return cls.read(data, logit_shift=1, qkv_bias=True, block_length=length)
