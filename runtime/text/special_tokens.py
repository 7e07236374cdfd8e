"""The special tokens that a chat template can use by name, such as `bos_token`, as transformers reads them.

    named_tokens(directory, padding="<|endoftext|>")     # {"bos_token": "<s>", ...}

The defaults of the tokenizer's class are overridden by tokenizer_config.json, and both by the older file
special_tokens_map.json, unless tokenizer_config.json lists the added tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpad.runtime.bundle.files import read_json
from dpad.runtime.errors import BundleError

_END = "<|endoftext|>"
DEFAULTS: dict[str, dict[str, str]] = {
    "Qwen2Tokenizer": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
    "DreamTokenizer": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
    "Qwen3_5Tokenizer": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
    "GPT2Tokenizer": {"unk_token": _END, "bos_token": _END, "eos_token": _END},
    "CodeGenTokenizer": {"unk_token": _END, "bos_token": _END, "eos_token": _END},
    "GPTNeoXTokenizer": {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": "<|padding|>"},
    "GemmaTokenizer": {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    | {"mask_token": "<mask>"},
    "CohereTokenizer": {"unk_token": "<UNK>", "bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>"}
    | {"pad_token": "<PAD>", "cls_token": "<CLS>", "sep_token": "<SEP>", "mask_token": "<MASK_TOKEN>"},
}


def named_tokens(directory: Path, padding: str | None = None) -> dict[str, str]:
    """Name -> token. `padding` is tokenizer.json's padding token. Raises `BundleError` if a file cannot be read."""
    config = read_table(directory / "tokenizer_config.json")
    told: dict[str, Any] = {"pad_token": padding, **_defaults(config)} | config
    if "added_tokens_decoder" not in config:
        told |= read_table(directory / "special_tokens_map.json")
    named = {name: value for name, value in told.items() if name.endswith("_token")}
    for name in ("model_specific_special_tokens", "extra_special_tokens", "additional_special_tokens"):
        more = told.get(name)
        named |= more if isinstance(more, dict) else {}
    return {name: text for name, value in named.items() if (text := content_of(value)) is not None}


def read_table(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; empty if there is no file, or no object in it. Raises `BundleError`."""
    if not path.exists():
        return {}
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read as JSON: {error}") from error
    return data if isinstance(data, dict) else {}


def _defaults(config: Mapping[str, Any]) -> dict[str, str]:
    name = config.get("tokenizer_class")
    return DEFAULTS.get(name.removesuffix("Fast"), {}) if isinstance(name, str) else {}


def content_of(value: Any) -> str | None:
    """The text of a token that a file writes as text or as {"content": text}; None for other values."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None
