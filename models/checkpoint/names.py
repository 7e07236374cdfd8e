"""`check_tensors`: a checkpoint holds exactly the tensors of its model, or it is said what it holds instead.

    check_tensors(read_headers(shards), meta_model(architecture, config))

Trainers save a model within what they wrapped it in, unmerged adapters or quantised weights: each has names of its
own, and its own way out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from dpad.models import llada, qwen
from dpad.models.checkpoint.headers import TensorEntry
from dpad.runtime.errors import CheckpointError

# Parts of names that wrappers put in front of a module's own, and who does.
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

    A tied head may be there as a copy too, as some published files have it. It is never read; an export compares it.
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
            empty = "; ZeRO-3 leaves such where it does not gather: run zero_to_fp32.py" * (0 in tensors[name].shape)
            if not empty and name in (model.embedding, model.head) and tensors[name].shape[1:] == shape[1:]:
                empty = (
                    f"; if the embedding was resized, set {model.rows_key} to {tensors[name].shape[0]} in config.json"
                )
            raise CheckpointError(f"tensor {name} has shape {tensors[name].shape}, config.json implies {shape}{empty}")


def common_dtype(tensors: Mapping[str, TensorEntry]) -> str:
    """The dtype of all `tensors`; raises `CheckpointError`, naming one that has another than most."""
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
    """What the names tell, and the way out."""
    names = sorted(tensors)
    if found := next(filter(_ADAPTER.search, names), ""):
        return (
            f"{found} is of an adapter that is not merged into its base: save what merge_and_unload() of PEFT returns, "
            "and export that"
        )
    if found := next(filter(_QUANTISED.search, names), ""):
        return f"{found} is of a quantised checkpoint, which is not supported: take the one that it was made from"
    if found := next((name for name in names if "_flat_param" in name), ""):
        return f"{found} is of FSDP, flattened: save the full state, as with state_dict_type FULL_STATE_DICT"
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
    """Names that are right but for a prefix that they have, or lack."""
    for name in names:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if (rest := ".".join(parts[cut:])) in wanted:
                return f"{name} has the prefix {name.removesuffix(rest)!r} that the model has not: rename the tensors"
    inner = {".".join(name.split(".")[cut:]): name for name in wanted for cut in range(1, name.count(".") - 1)}
    for name in names:
        if name in inner:
            lacking = inner[name].removesuffix(name)
            return f"{name} lacks the prefix {lacking!r}: save the whole model, or rename the tensors"
    return ""


def _head(model: llada.Model | qwen.Model, missing: set[str], unexpected: set[str]) -> str:
    if missing != {model.head} or unexpected:
        return ""
    return f"if the head is tied to {model.embedding}, config.json has to say so; else the checkpoint lacks its head"
