"""The values read from valid config.json files; test_checkpoint.py tests invalid ones."""

from typing import Any

import pytest
from checkpoints import FAMILIES, raw_config

from dpad.models.checkpoint.checkpoint import parse_config
from dpad.runtime.errors import CheckpointError

each_family = pytest.mark.parametrize("family", FAMILIES)


@each_family
def test_config_values(family: str) -> None:
    """Fails if a wrong key is read, or a default overrides the file."""
    raw = raw_config(family, layers=3, width=128, heads=4, kv_heads=2, mlp_width=80, tied=True, max_length=77)
    config = parse_config(raw)[1]
    assert (config.layers, config.width, config.heads, config.kv_heads) == (3, 128, 4, 2)
    assert (config.head_size, config.mlp_width, config.tied, config.max_length) == (32, 80, True, 77)
    assert config.logit_shift == (1 if family == "dream" else 0)
    assert config.rope_theta == raw["rope_theta"] and config.norm_eps == raw["rms_norm_eps"]


@each_family
@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e3}}, "rope_theta", 5e3),
        ({"rope_theta": 7e3, "rope_parameters": {"rope_type": "default", "rope_theta": 7e3}}, "rope_theta", 7e3),
        ({"rope_theta": 9e3, "rope_scaling": {"type": "default"}}, "rope_theta", 9e3),
        ({"eos_token_id": [5, 3]}, "eos_token_id", 5),
    ],
)
def test_configs_as_newer_libraries_write_them(family: str, changes: dict[str, Any], field: str, value: object) -> None:
    """Fails if a published config.json is refused, or another RoPE base or EOS is read."""
    assert getattr(parse_config(raw_config(family, **changes))[1], field) == value


def test_an_assumed_mask_outside_the_vocabulary_is_called_assumed() -> None:
    """Fails if the error for an assumed mask id does not say that it is a default, or which key to set."""
    with pytest.raises(CheckpointError, match='151669 is outside .*a default: put "mask_token_id"'):
        parse_config(raw_config("sdar", mask_token_id=None))
