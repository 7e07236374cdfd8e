"""`check_tensors`: checks that a checkpoint holds exactly its model's tensors, and explains other names.

    check_tensors(read_headers(shards), meta_model(architecture, config))

Trainers may save a model inside a wrapper, with unmerged adapters, or quantised. Each of these changes the names in its
own way and has its own solution.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from dpad.models import llada, qwen
from dpad.models.checkpoint.headers import TensorEntry
from dpad.runtime.errors import CheckpointError

# Parts that wrappers add to the names of a module -> the wrapper.
_WRAPPERS = {
    "base_model.model": "PEFT",
    "base_layer": "PEFT",
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel or DeepSpeed",
    "_forward_module": "Lightning Fabric",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}
_PART = re.compile(rf"(?:(?<=\.)|^)({'|'.join(map(re.escape, _WRAPPERS))})\.")
_ADAPTER = re.compile(r"\.(lora_|modules_to_save|ia3_|oft_|hada_|lokr_|vera_)")
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|g_idx|scales|biases|SCB|weight_scale\w*|weight_packed|weight_shape|input_scale"
    r"|weight\.(absmax|quant_map|nested_absmax|quant_state\S*))$"
)


def check_tensors(tensors: Mapping[str, TensorEntry], model: llada.Model | qwen.Model) -> None:
    """Raise `CheckpointError` unless `tensors` are exactly those of `model`, in name and shape.

    Some published files also hold a tied head as a copy. It is never read; an export compares it with the embedding.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tied and model.head in tensors:
        wanted[model.head] = wanted[model.embedding]
    missing, unexpected = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            told = _known(wanted, tensors) or _head(model, missing, unexpected) or "check config.json"
            if not missing:
                told += ", or save the model without them"
            raise CheckpointError(f"{len(names)} {kind} tensors, the first is {min(names)}; {told}")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            empty = "; ZeRO-3 saves empty tensors unless it gathers: run zero_to_fp32.py" * (0 in tensors[name].shape)
            if not empty and name in (model.embedding, model.head) and tensors[name].shape[1:] == shape[1:]:
                empty = (
                    f"; if the embedding was resized, set {model.rows_key} to {tensors[name].shape[0]} in config.json"
                )
            raise CheckpointError(f"tensor {name} has shape {tensors[name].shape}, config.json implies {shape}{empty}")


def common_dtype(tensors: Mapping[str, TensorEntry]) -> str:
    """The dtype of all `tensors`; if there are several, raises `CheckpointError` naming a tensor of a rarer one."""
    found = Counter(entry.dtype for entry in tensors.values()).most_common()
    if len(found) > 1:
        rare = found[-1][0]
        counts = ", ".join(f"{count} in {dtype}" for dtype, count in found)
        first = min(name for name, entry in tensors.items() if entry.dtype == rare)
        raise CheckpointError(
            f"tensors of several dtypes: {counts}, such as {first} in {rare}; convert them to one, as "
            "model.to(torch.bfloat16).save_pretrained(DIR) does"
        )
    return found[0][0]


def _known(wanted: Iterable[str], tensors: Mapping[str, TensorEntry]) -> str:
    """What wrote the tensors, by their names, and the way out; empty if that is unknown."""
    names = sorted(tensors)
    if found := next(filter(_ADAPTER.search, names), ""):
        return (
            f"{found} belongs to an adapter that is not merged into its base: save the result of PEFT's "
            "merge_and_unload(), and export that"
        )
    if found := next(filter(_QUANTISED.search, names), ""):
        return f"{found} belongs to a quantised checkpoint, which is not supported: use the one that it was made from"
    if found := next((name for name in names if "_flat_param" in name), ""):
        return f"{found} is a flattened tensor of FSDP: save the full state (state_dict_type FULL_STATE_DICT)"
    wanted = frozenset(wanted)
    for name in names:
        if (parts := _PART.findall(name)) and _PART.sub("", name) in wanted:
            who = ", ".join(dict.fromkeys(_WRAPPERS[part] for part in parts))
            said = "".join(f"{part}." for part in parts)
            return (
                f"{name} has the prefix {said!r} of a wrapper ({who}): save the model inside it, or rename the tensors "
                "without it"
            )
    return _moved(wanted, names)


def _moved(wanted: frozenset[str], names: list[str]) -> str:
    """A message if the names are right except for an additional or a missing prefix; else empty."""
    for name in names:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if (rest := ".".join(parts[cut:])) in wanted:
                return f"{name} has the prefix {name.removesuffix(rest)!r}, which the model lacks: rename the tensors"
    inner = {".".join(name.split(".")[cut:]): name for name in wanted for cut in range(1, name.count(".") - 1)}
    for name in names:
        if name in inner:
            lacking = inner[name].removesuffix(name)
            return f"{name} lacks the prefix {lacking!r}: save the whole model, or rename the tensors"
    return ""


def _head(model: llada.Model | qwen.Model, missing: set[str], unexpected: set[str]) -> str:
    if missing != {model.head} or unexpected:
        return ""
    return f"if the head is tied to {model.embedding}, config.json must say so; otherwise the checkpoint lacks its head"
