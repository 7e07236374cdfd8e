"""`Checkpoint`: a directory in the authors' format, read without running its code.

    checkpoint = Checkpoint.open(Path("LLaDA-8B-Instruct"))
    checkpoint.config.layers, checkpoint.tensors["model.transformer.wte.weight"].offset

It reads config.json and (sharded) safetensors, never pickle or remote code. Opening reads only the headers, which give
the file, offset and length of every tensor, so that the exporter can refer to a tensor without reading it.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from dpad.models import dream, fast_dllm, llada, qwen, sdar
from dpad.models.checkpoint.folder import CONFIG, check_folder
from dpad.models.checkpoint.foreign import check_adapter, no_config
from dpad.models.checkpoint.headers import DTYPES, TensorEntry, read_headers, read_tensors
from dpad.models.checkpoint.names import check_tensors, common_dtype
from dpad.models.checkpoint.shards import SINGLE, find_weights
from dpad.models.fields import read_json as read_json
from dpad.models.fields import require, tokens
from dpad.models.packed import Unpack, take_packed
from dpad.runtime.errors import CheckpointError

Config = llada.Config | qwen.Config
Model = llada.Model | qwen.Model

# The keys are architectures and not model_types, since LLaDA-MoE shares LLaDA's model_type.
FAMILIES: dict[str, ModuleType] = {
    "LLaDAModelLM": llada,
    "DreamModel": dream,
    "SDARForCausalLM": sdar,
    "Fast_dLLM_QwenForCausalLM": fast_dllm,
}

_EXPERTS = {"LLaDAMoEModelLM": "LLaDA-MoE", "LLaDA2MoeModelLM": "LLaDA2", "SDARMoeForCausalLM": "SDAR-MoE"}


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: it has every tensor of the family, with the right shape, in one dtype.

    `eos_token_ids` are all that config.json names; `notes` name the files of the directory that are not used.
    """

    directory: Path
    architecture: str
    raw_config: dict[str, Any]
    config: Config
    shards: tuple[Path, ...]
    tensors: dict[str, TensorEntry]
    dtype: str
    eos_token_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, directory: Path, *, own: bool = False) -> "Checkpoint":
        """Read and check the headers; raises `CheckpointError`, which names the file, key or tensor.

        `own` is for checkpoints of this package, whose files may be links made by an installer.
        """
        if not own:
            check_folder(directory)
        raw = read_config(directory)
        architecture, config = parse_config(raw)
        weights = find_weights(directory)
        try:
            tensors = read_headers(weights.shards)
            check_tensors(tensors, meta_model(architecture, config))
            dtype = common_dtype(tensors)
        except CheckpointError as error:
            raise CheckpointError("; ".join([str(error), *weights.notes])) from None
        ends = tokens(raw, "eos_token_id")
        return cls(directory, architecture, raw, config, weights.shards, tensors, dtype, ends, weights.notes)


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a checkpoint directory; if it is missing, `CheckpointError` says what the directory is."""
    check_adapter(directory)
    if not os.path.exists(path := directory / CONFIG):
        told = no_config(directory) or f"is {directory} a checkpoint directory?"
        raise CheckpointError(f"{path} is missing; {told}")
    return read_json(path)


def parse_config(raw: dict[str, Any]) -> tuple[str, Config]:
    """(architecture, config) of a config.json; raises `CheckpointError` for other models."""
    architectures = raw.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    if not isinstance(name, str) or name not in FAMILIES:
        experts = _EXPERTS.get(name) if isinstance(name, str) else None
        why = f"{experts}, a mixture of experts, is not supported yet" if experts else "is not supported"
        raise CheckpointError(f"config.json: architectures {architectures!r}: {why} (only {', '.join(FAMILIES)})")
    _check_quantised(raw)
    require(raw, {"transformers_weights": SINGLE})  # the file that transformers would read
    config: Config = FAMILIES[name].Config.from_json(raw)
    if config.heads % config.kv_heads:
        raise CheckpointError(f"config.json: {config.heads} heads do not divide into {config.kv_heads} key/value heads")
    if config.head_size % 2:
        raise CheckpointError(f"config.json: head size {config.head_size} is odd, but rotation needs two equal halves")
    ends = tokens(raw, "eos_token_id")
    for key, ids in (("mask_token_id", (config.mask_token_id,)), ("eos_token_id", ends)):
        if max(ids) >= config.vocab_size:
            told = f"config.json: {key} {max(ids)} is outside the vocabulary"
            if key in assumed(raw):
                told += f' of {config.vocab_size}; it is a default: put "{key}" with the model\'s own id there'
            raise CheckpointError(told)
    if config.mask_token_id in ends:
        raise CheckpointError(f"config.json: mask_token_id and eos_token_id are both {config.mask_token_id}")
    return name, config


def assumed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Keys that the config.json of a supported model leaves out, with the values that are assumed for them."""
    (name,) = raw["architectures"]
    defaults: dict[str, Any] = getattr(FAMILIES[name], "DEFAULTS", {})
    return {key: value for key, value in defaults.items() if raw.get(key) is None}


def _check_quantised(raw: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` for quantised weights; a bitsandbytes section that turns itself off is accepted."""
    for key in ("quantization_config", "quantization", "compression_config"):
        given = raw.get(key)
        loads = [given.get(f"load_in_{bits}bit") for bits in (4, 8)] if isinstance(given, dict) else []
        if not given or (loads and False in loads and not any(loads)):
            continue
        method = given.get("quant_method") if isinstance(given, dict) else None
        raise CheckpointError(
            f"config.json: {key} says that the checkpoint is quantised ({method or 'method not named'}), which is not "
            "supported: use the original checkpoint (dpad export has --weights int8, int4 and fp8)"
        )


def meta_model(architecture: str, config: Config) -> Model:
    """The family's module on the meta device: names and shapes without storage."""
    try:
        with torch.device("meta"):
            model: Model = FAMILIES[architecture].Model(config)
    except RuntimeError as error:  # sizes whose product overflows
        raise CheckpointError(f"config.json describes a model that cannot exist: {error}") from None
    return model.eval()


def _unpacked(tensors: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """`tensors` with each packed weight as one entry of its unpacked shape, which is found without reading data."""
    state = {name: torch.empty(e.shape, dtype=getattr(torch, e.dtype), device="meta") for name, e in tensors.items()}
    try:
        shapes = {name: (w.format, tuple(w.unpack(torch.float32).shape)) for name, w in take_packed(state).items()}
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"packed weights do not match their scales: {error}; export the bundle again") from None
    whole = {name: replace(tensors[f"{name}.{form}"], shape=shape) for name, (form, shape) in shapes.items()}
    for name in state:
        if tensors[name].dtype not in DTYPES.values():
            raise CheckpointError(f"tensor {name} is {tensors[name].dtype} but not packed; export the bundle again")
        whole[name] = tensors[name]
    return whole


class _Cast(nn.Module):
    """A parametrization that casts a weight to another dtype whenever it is used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.to(self.dtype)


def checked_model(architecture: str, config: Config, shards: Sequence[Path]) -> tuple[Model, dict[str, TensorEntry]]:
    """The module without storage, and the places of its weights in the files; packed ones have codes and scales.

    Raises `CheckpointError` if the files do not hold the weights of such a model.
    """
    model, tensors = meta_model(architecture, config), read_headers(shards, packed=True)
    check_tensors(_unpacked(tensors), model)
    return model, tensors


def load_model(architecture: str, config: Config, shards: tuple[Path, ...], dtype: torch.dtype) -> Model:
    """The module with memory-mapped weights; those that are packed or not in `dtype` are converted whenever used.

    Raises `CheckpointError` if the files do not hold the weights of such a model.
    """
    model, _ = checked_model(architecture, config, shards)
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        state |= dict(read_tensors(shard))
    if config.tied:
        state.pop(model.head, None)
    packed = take_packed(state)
    for path, weight in packed.items():
        module, _, name = path.rpartition(".")
        model.get_submodule(module).register_parameter(name, nn.Parameter(weight.codes, requires_grad=False))
    model.load_state_dict(state | {path: weight.codes for path, weight in packed.items()}, assign=True)
    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.dtype != dtype:
                found = packed.get(f"{path}.{name}")
                cast = _Cast(dtype) if found is None else Unpack(found, dtype)
                register_parametrization(module, name, cast, unsafe=True)  # "unsafe": it changes the dtype
    return model
