"""`remains`: what a directory holds that is no checkpoint as it stands, and the way to one.

    remains(Path("runs/sft"))       # "checkpoint-500 has them: pass runs/sft/checkpoint-500"

Trainers, hubs, copies and other formats leave directories of many kinds; one that is passed by mistake is named.
Two levels are looked at and no more: nobody knows how deep a stranger's folders are.
"""

import os
import re
from pathlib import Path

from dpad.models.checkpoint.folder import CONFIG, listing
from dpad.runtime.bundle import files
from dpad.runtime.errors import CheckpointError

ADAPTER, MANIFEST = "adapter_config.json", "manifest.json"  # the latter is a bundle's
UNFINISHED = (".aria2", ".incomplete", ".part", ".partial", ".crdownload", ".download", ".tmp", ".filepart", ".!qB")

# Files by the end of their name -> what they are.
_FORMATS = {
    ".gguf": "GGUF, made for llama.cpp: take the checkpoint that it was made from",
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), "pickle, which is never loaded: convert it to safetensors"),
    ".bin.index.json": "the index of pickle files, which are never loaded: convert them to safetensors",
    ".h5": "TensorFlow's, which is not supported: take the repository's safetensors",
    ".msgpack": "Flax's, which is not supported: take the repository's safetensors",
    ".npz": "NumPy's, as of MLX, which is not supported: take the checkpoint that it was made from",
    ".onnx": "ONNX: pass the checkpoint that it was made from",
    **dict.fromkeys((".zip", ".tar", ".gz", ".zst"), "an archive: unpack it"),
}
# What trainers save besides.
_STATE = ("optimizer", "scheduler", "training_args", "rng_state", "adapter_model", "scaler")
# peft_type of adapters that have nothing to merge.
_PROMPTS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "PREFIX_TUNING",
    "P_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
)
_MERGE = "run `accelerate merge-weights {} OUT`, put the config and tokenizer files there, and pass OUT"


def check_adapter(directory: Path) -> None:
    """Raise `CheckpointError`, naming the base, if `directory` holds an adapter, which transformers loads over it."""
    names = listing(directory)
    weights = [name for name in names if name.endswith((".safetensors", ".bin")) and not name.startswith(_STATE)]
    if ADAPTER not in names and (weights or not any(name.startswith("adapter_model") for name in names)):
        return
    told = _read(directory / ADAPTER)
    base, kind = told.get("base_model_name_or_path"), str(told.get("peft_type"))
    known = isinstance(base, str) and base
    adapter = f"{directory} is an adapter of {base!r}" if known else f"{directory} is an adapter of its base model"
    merged = f"; if the weights in {weights[0]} are merged ones, take {ADAPTER} away" if weights else ""
    if kind in _PROMPTS:
        raise CheckpointError(
            f"{adapter} that puts learned vectors before a prompt ({kind}): it cannot be merged, and is not "
            f"supported{merged or '; train one that can be, such as LoRA'}"
        )
    loaded = f'AutoModel.from_pretrained({repr(base) if known else "BASE"}, trust_remote_code=True, dtype="auto")'
    raise CheckpointError(
        f"{adapter}, to be merged first, where the base's own code is trusted: PeftModel.from_pretrained({loaded}, "
        f"{str(directory)!r}).merge_and_unload().save_pretrained(OUT), with the base's tokenizer files beside; then "
        f"pass OUT{merged}"
    )


def remains(directory: Path) -> str:
    """What is in the place of weights, and the way out."""
    names = listing(directory)
    if found := unfinished(directory, ""):
        return found
    if found := _trainers(directory, names):
        return found
    others = [name for name in names if _is_weights(name) and os.path.isfile(directory / name)]
    if len(others) == 1:
        return (
            f"{others[0]} is not what transformers looks for either; if it holds the weights, rename it to "
            "model.safetensors"
        )
    if others:
        return f"{others[0]} and others are there, and no index says which count; fetch or save that too"
    for name in names:
        if (told := _format(name)) and not name.startswith(_STATE):
            return f"{name} is {told}"
    inside = (name for name in _folders(directory, names) if any(map(_is_weights, _inside(directory / name))))
    if found := next(inside, ""):
        return f"{found} has some: pass {directory / found}, or put its files here"
    return "no weights are there at all; download it again, or if its repository has no safetensors, convert them"


def no_config(directory: Path) -> str:
    """What a directory without config.json is, and the way out; empty if it is nothing that is known."""
    names = listing(directory)
    if not names:
        return f"{directory} is empty"
    if cached := _hub_cache(directory, names):
        return cached
    if "contract" in _read(directory / MANIFEST):
        return f"{directory} is a bundle already: pass the checkpoint that it was made from"
    if found := _folder_with(CONFIG, directory, names):
        return f"{found} has one: pass {directory / found}"
    if found := _trainers(directory, names) or unfinished(directory, ""):
        return found
    if "params.json" in names:
        return "params.json is of Meta's own format: take the repository's files for transformers"
    if found := next((name for name in names if re.fullmatch(r"config\b.*json.*", name, re.I)), ""):
        return f"{found} is there: rename it"
    if any(map(_is_weights, names)):
        return "the weights are there: put the config.json of the model beside them that they were trained from"
    return next((f"{name} is {told}" for name in names if (told := _format(name))), "")


def unfinished(directory: Path, name: str) -> str:
    """The file that a download of `name` (of any, where it is empty) left unfinished, and the way out."""
    cache = directory / ".cache/huggingface/download"
    for folder, wanted in ((directory, name), (cache, name), (directory.parent.parent / "blobs", "")):
        if folder.name == "blobs" and directory.parent.name != "snapshots":
            continue
        for found in _inside(folder):
            if found.startswith(wanted) and found.endswith(UNFINISHED):
                return f"the download of {found} is unfinished: go on with it, as the same `hf download` does"
    return ""


def _trainers(directory: Path, names: list[str]) -> str:
    """States of training, which tools turn into weights."""
    if "zero_to_fp32.py" in names or any(re.fullmatch(r"global_step\d+", name) for name in names):
        command = "python zero_to_fp32.py . OUT --safe_serialization"
        return (
            f"it is DeepSpeed's state: run `{command}` in {directory}, put the config and tokenizer there, and pass OUT"
        )
    for name in (".", *_folders(directory, names)):
        if any(found.endswith(".distcp") for found in _inside(directory / name)):
            return f"it is the state of a sharded training (.distcp): {_MERGE.format(directory / name)}"
    return ""


def _hub_cache(directory: Path, names: list[str]) -> str:
    """Where the snapshot lies, if `directory` is of the hub's cache and above it."""
    if repository := next((name for name in names if name.startswith("models--")), ""):
        return f"{directory} is the hub's cache: pass the hub id, such as {repository[8:].replace('--', '/')}"
    if "snapshots" not in names:
        return ""
    found = _inside(directory / "snapshots")
    if not found:
        return f"{directory} is a repository of the hub's cache without a snapshot; download it again"
    main = _text(directory / "refs/main")
    chosen = main if main in found else found[-1]
    return f"{directory} is a repository of the hub's cache: pass {directory / 'snapshots' / chosen}"


def _folder_with(name: str, directory: Path, names: list[str]) -> str:
    """The folder in `directory` that has a file of this name; the last step where they are a trainer's."""
    found = [folder for folder in _folders(directory, names) if os.path.isfile(directory / folder / name)]
    return max(found, key=lambda folder: int((re.findall(r"\d+$", folder) or ["0"])[0][:9]), default="")


def _folders(directory: Path, names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith(".") and os.path.isdir(directory / name)]


def _inside(directory: Path) -> list[str]:
    try:
        return listing(directory)
    except CheckpointError:
        return []


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith((".", *_STATE))


def _format(name: str) -> str:
    end = next((end for end in sorted(_FORMATS, key=len, reverse=True) if name.lower().endswith(end)), None)
    return _FORMATS[end] if end else ""


def _read(path: Path) -> dict[str, object]:
    try:
        data = files.read_json(path)
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _text(path: Path) -> str:
    try:
        return files.read_text(path).strip()
    except (OSError, ValueError):
        return ""
