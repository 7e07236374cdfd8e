"""`foreign_contents`: says what a directory without usable weights is, and how to get from it to a checkpoint.

    foreign_contents(Path("runs/sft"))       # "checkpoint-500 has some: pass runs/sft/checkpoint-500, or ..."

Trainers, hubs, copies and other formats leave directories that can be passed by mistake; each kind gets its own
message. Only two levels of folders are searched, since an untrusted directory may be of any depth.
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
    ".gguf": "GGUF, made for llama.cpp: use the checkpoint that it was made from",
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), "pickle, which is never loaded: convert it to safetensors"),
    ".bin.index.json": "the index of pickle files, which are never loaded: convert them to safetensors",
    ".h5": "TensorFlow's, which is not supported: use the repository's safetensors",
    ".msgpack": "Flax's, which is not supported: use the repository's safetensors",
    ".npz": "NumPy's, as used by MLX, which is not supported: use the checkpoint that it was made from",
    ".onnx": "ONNX: pass the checkpoint that it was made from",
    **dict.fromkeys((".zip", ".tar", ".gz", ".zst"), "an archive: unpack it"),
}
# Files that trainers save beside the weights.
_STATE = ("optimizer", "scheduler", "training_args", "rng_state", "adapter_model", "scaler")
# peft_type of adapters that cannot be merged.
_PROMPTS = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "PREFIX_TUNING",
    "P_TUNING",
    "ADAPTION_PROMPT",
    "CPT",
    "CARTRIDGE",
)
_MERGE = "run `accelerate merge-weights {} OUT`, add the config and tokenizer files to OUT, and pass OUT"


def check_adapter(directory: Path) -> None:
    """Raise `CheckpointError`, naming the base, if `directory` holds an adapter (transformers would load both)."""
    names = listing(directory)
    weights = [name for name in names if name.endswith((".safetensors", ".bin")) and not name.startswith(_STATE)]
    if ADAPTER not in names and (weights or not any(name.startswith("adapter_model") for name in names)):
        return
    told = _read(directory / ADAPTER)
    base, kind = told.get("base_model_name_or_path"), str(told.get("peft_type"))
    known = isinstance(base, str) and base
    adapter = f"{directory} is an adapter of {base!r}" if known else f"{directory} is an adapter of its base model"
    merged = f"; if the weights in {weights[0]} are merged already, remove {ADAPTER}" if weights else ""
    if kind in _PROMPTS:
        raise CheckpointError(
            f"{adapter} that puts learned vectors before a prompt ({kind}): it cannot be merged and is not "
            f"supported{merged or '; train one that can be merged, such as LoRA'}"
        )
    loaded = f'AutoModel.from_pretrained({repr(base) if known else "BASE"}, trust_remote_code=True, dtype="auto")'
    raise CheckpointError(
        f"{adapter}; merge it first, if you trust the base's own code: PeftModel.from_pretrained({loaded}, "
        f"{str(directory)!r}).merge_and_unload().save_pretrained(OUT), add the base's tokenizer files, and pass "
        f"OUT{merged}"
    )


def foreign_contents(directory: Path) -> str:
    """What the directory holds instead of weights, and the way out."""
    names = listing(directory)
    if found := unfinished(directory, ""):
        return found
    if found := _trainers(directory, names):
        return found
    others = [name for name in names if _is_weights(name) and os.path.isfile(directory / name)]
    if len(others) == 1:
        return (
            f"transformers would not find {others[0]} either; if it holds the weights, rename it to model.safetensors"
        )
    if others:
        return f"{others[0]} and others are there without an index that names them; fetch or save the index too"
    for name in names:
        if (told := _format(name)) and not name.startswith(_STATE):
            return f"{name} is {told}"
    inside = (name for name in _folders(directory, names) if any(map(_is_weights, _inside(directory / name))))
    if found := next(inside, ""):
        return f"{found} has some: pass {directory / found}, or put its files here"
    return "no weights are there at all; download it again, or if its repository has no safetensors, convert them"


def no_config(directory: Path) -> str:
    """What a directory without config.json is, and the way out; empty if that is unknown."""
    names = listing(directory)
    if not names:
        return f"{directory} is empty"
    if cached := _hub_cache(directory, names):
        return cached
    if "contract" in _read(directory / MANIFEST):
        return f"{directory} is a bundle: pass the checkpoint that it was made from"
    if found := _folder_with(CONFIG, directory, names):
        return f"{found} has one: pass {directory / found}"
    if found := _trainers(directory, names) or unfinished(directory, ""):
        return found
    if "params.json" in names:
        return "params.json is in Meta's own format: use the repository's files for transformers"
    if found := next((name for name in names if re.fullmatch(r"config\b.*json.*", name, re.I)), ""):
        return f"{found} is there: rename it"
    if any(map(_is_weights, names)):
        return "the weights are there: add the config.json of the model from which they were trained"
    return next((f"{name} is {told}" for name in names if (told := _format(name))), "")


def unfinished(directory: Path, name: str) -> str:
    """The unfinished download of `name` (or, if that is empty, of any file), and the way out; else empty."""
    cache = directory / ".cache/huggingface/download"
    for folder, wanted in ((directory, name), (cache, name), (directory.parent.parent / "blobs", "")):
        if folder.name == "blobs" and directory.parent.name != "snapshots":
            continue
        for found in _inside(folder):
            if found.startswith(wanted) and found.endswith(UNFINISHED):
                return f"the download of {found} is unfinished: continue it with the same `hf download` command"
    return ""


def _trainers(directory: Path, names: list[str]) -> str:
    """A training state, and the tool that converts it to weights; else empty."""
    if "zero_to_fp32.py" in names or any(re.fullmatch(r"global_step\d+", name) for name in names):
        command = "python zero_to_fp32.py . OUT --safe_serialization"
        return f"it is DeepSpeed's state: run `{command}` in {directory}, add config and tokenizer to OUT, and pass OUT"
    for name in (".", *_folders(directory, names)):
        if any(found.endswith(".distcp") for found in _inside(directory / name)):
            return f"it is the state of a sharded training (.distcp): {_MERGE.format(directory / name)}"
    return ""


def _hub_cache(directory: Path, names: list[str]) -> str:
    """A message that names the snapshot or hub id, if `directory` is the hub's cache or a repository in it."""
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
    """The folder in `directory` with a file of this name; of a trainer's steps the last one."""
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
