"""Dream (Dream-org/Dream-v0-Base-7B, Dream-v0-Instruct-7B; arXiv 2508.15487) and its descendants.

    config = Config.from_json(json.load(open("config.json")))
    model = Model(config)

It is Qwen2's transformer without causal mask. It keeps the shift of the autoregressive model from which it was adapted:
row p-1 predicts position p. DiffuCoder (arXiv 2506.20639) and Dream-Coder are the same module with other weights.
"""

from collections.abc import Mapping
from typing import Any, Self

from dpad.models import qwen

Model = qwen.Model


class Config(qwen.Config):
    """The keys of Dream's config.json that shape the computation, under common names."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the authors' keys; raises `CheckpointError` naming a key that is missing or unsupported."""
        return cls.read(data, logit_shift=1, qkv_bias=True)
