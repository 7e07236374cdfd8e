"""Decoding presets: those of published checkpoints, and those in a checkpoint's own file.

    presets_of("GSAI-ML/LLaDA-1.5", directory, *eos_token_ids)

The table comes from the DPad paper (arXiv 2508.14148): k, scale and window of the suffix dropout for each task and
length, with blocks of 32, greedy decoding and threshold 0.9. SDAR's preset adds <|im_end|>, which ends a turn in its
chat template, to the EOS of its config.json; other checkpoints list such tokens in generation_config.json or
config.json. A file `presets.json` beside config.json adds presets or replaces these; its format is that of
`dpad.runtime.decoding.presets`.
"""

from pathlib import Path
from typing import Any

from dpad.models.checkpoint.checkpoint import read_json
from dpad.runtime.errors import CheckpointError

FILE_NAME, ENDS = "presets.json", "generation_config.json"
SOURCES = (FILE_NAME, ENDS)


def _preset(gen_length: int, k: float, scale: float, window: int) -> dict[str, Any]:
    return {"gen_length": gen_length, "schedule": {"gaussian": {"k": k, "scale": scale, "window": window}}}


_CHAT = {"default": {"eos_token_ids": [151645, 151643]}}  # <|im_end|>, <|endoftext|>

PUBLISHED: dict[str, dict[str, dict[str, Any]]] = {
    "GSAI-ML/LLaDA-8B-Instruct": {
        "gsm8k": _preset(256, 4, 2, 256),
        "math": _preset(256, 4, 2, 256),
        "humaneval": _preset(512, 3, 2.3, 512),
        "mbpp": _preset(512, 3, 2.3, 128),
    },
    "GSAI-ML/LLaDA-1.5": {
        "gsm8k": _preset(256, 3, 1.6, 256),
        "gsm8k-1024": _preset(1024, 3, 1.6, 256),
        "math": _preset(256, 3, 1.6, 256),
        "humaneval": _preset(512, 3, 2.3, 128),
        "mbpp": _preset(512, 3, 1.6, 512),
    },
    "Dream-org/Dream-v0-Base-7B": {
        "gsm8k": _preset(256, 4, 1.6, 256),
        "math": _preset(256, 4, 1.6, 128),
        "humaneval": _preset(512, 3, 2.3, 128),
        "humaneval-2048": _preset(2048, 3, 2.3, 128),
        "mbpp": _preset(512, 3, 1.6, 128),
    },
    **dict.fromkeys(("JetLM/SDAR-1.7B-Chat", "JetLM/SDAR-4B-Chat", "JetLM/SDAR-8B-Chat"), _CHAT),
}


def presets_of(hub_id: str, directory: Path, *eos_token_ids: int) -> dict[str, Any]:
    """The presets, by name, of the checkpoint `hub_id` in `directory`; its own presets.json overrides the table.

    `eos_token_ids` are those of config.json; generation_config.json, if it has any, overrides them. A contract has only
    one EOS, the first of config.json. If text ends at other tokens too, they are added to every preset that does not
    name its own, and to `default`. Raises `CheckpointError` for files that cannot be read.
    """
    own = directory / FILE_NAME
    presets = {**PUBLISHED.get(hub_id, {}), **(read_json(own) if own.exists() else {})}
    ends = _ends_of_text(directory / ENDS) or list(eos_token_ids)
    if set(ends) <= {*eos_token_ids[:1]}:
        return presets
    return {
        name: {"eos_token_ids": ends, **preset} if isinstance(preset, dict) else preset
        for name, preset in {"default": {}, **presets}.items()
    }


def _ends_of_text(path: Path) -> list[int]:
    """The ids under `eos_token_id` in generation_config.json; empty without the file or the key."""
    told = read_json(path).get("eos_token_id") if path.exists() else None
    ids = told if isinstance(told, list) else [] if told is None else [told]
    if not all(type(token) is int for token in ids):
        raise CheckpointError(f"{path}: eos_token_id {told!r} is neither a token id nor a list of them")
    return ids
