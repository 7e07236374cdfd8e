"""`Checkpoint`: a directory in the authors' format, read without running its code.

    checkpoint = Checkpoint.open(Path("LLaDA-8B-Instruct"))
    checkpoint.config.layers, checkpoint.tensors["model.transformer.wte.weight"].offset

Reads config.json and (sharded) safetensors, never pickle and never remote code. Opening
costs the headers only: every tensor is known by file, offset and length, so that the
exporter can point at it without reading it.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from dpad.models import dream, fast_dllm, llada, qwen, sdar
from dpad.models.packed import Unpack, take_packed
from dpad.runtime import files
from dpad.runtime.errors import CheckpointError

Config = llada.Config | qwen.Config
Model = llada.Model | qwen.Model

# By architecture, not by model_type: LLaDA-MoE shares LLaDA's model_type.
FAMILIES: dict[str, ModuleType] = {
    "LLaDAModelLM": llada,
    "DreamModel": dream,
    "SDARForCausalLM": sdar,
    "Fast_dLLM_QwenForCausalLM": fast_dllm,
}

_EXPERTS = {"LLaDAMoEModelLM": "LLaDA-MoE", "LLaDA2MoeModelLM": "LLaDA2", "SDARMoeForCausalLM": "SDAR-MoE"}

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CODES = {"I8": "int8", "U8": "uint8", "F8_E4M3": "float8_e4m3fn"}  # of packed weights, which bundles hold


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: byte `offset` from the start of `file`, `length` bytes."""

    file: Path
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: every tensor the family needs is there, in one dtype, with its shape."""

    directory: Path
    architecture: str
    raw_config: dict[str, Any]
    config: Config
    shards: tuple[Path, ...]
    tensors: dict[str, TensorEntry]
    dtype: str

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Read and check the headers; raises `CheckpointError` naming the file, key or tensor."""
        raw = read_json(directory / "config.json")
        architecture, config = parse_config(raw)
        shards = find_shards(directory)
        tensors = read_headers(shards)
        check_tensors(tensors, meta_model(architecture, config))
        dtypes = {entry.dtype for entry in tensors.values()}
        if len(dtypes) != 1:
            raise CheckpointError(f"{directory}: tensors of several dtypes {sorted(dtypes)}; convert them to one")
        return cls(directory, architecture, raw, config, tuple(shards), tensors, dtypes.pop())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `CheckpointError` naming the file."""
    try:
        data = files.read_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} a checkpoint directory?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return data


def parse_config(raw: dict[str, Any]) -> tuple[str, Config]:
    """(architecture, config) of a config.json; raises `CheckpointError` for other models."""
    architectures = raw.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    if not isinstance(name, str) or name not in FAMILIES:
        experts = _EXPERTS.get(name) if isinstance(name, str) else None
        why = f"{experts}, a mixture of experts, is not supported yet" if experts else "is not supported"
        raise CheckpointError(f"config.json: architectures {architectures!r}: {why} (only {', '.join(FAMILIES)})")
    config: Config = FAMILIES[name].Config.from_json(raw)
    if config.heads % config.kv_heads:
        raise CheckpointError(f"config.json: {config.heads} heads do not divide into {config.kv_heads} key/value heads")
    if config.head_size % 2:
        raise CheckpointError(f"config.json: head size {config.head_size} is odd, rotation pairs the halves of a head")
    for key in ("mask_token_id", "eos_token_id"):
        if getattr(config, key) >= config.vocab_size:
            raise CheckpointError(f"config.json: {key} {getattr(config, key)} is outside the vocabulary")
    if config.mask_token_id == config.eos_token_id:
        raise CheckpointError(f"config.json: mask_token_id and eos_token_id are both {config.mask_token_id}")
    return name, config


def find_shards(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order; raises `CheckpointError` if one is missing."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
    else:
        names = ["model.safetensors"]
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index}: shard {name!r} is not a plain file name")
        if not (directory / name).is_file():
            raise CheckpointError(_missing_weights(directory / name, index))
    return [directory / name for name in names]


def _missing_weights(shard: Path, index: Path) -> str:
    if index.exists():
        return f"{shard} is missing, and {index.name} names it: download it again"
    pickles = sorted(p.name for p in shard.parent.glob("*.bin"))
    pickled = f"{pickles[0]} is pickle, which is never loaded: convert it to safetensors" if pickles else ""
    return f"{shard} is missing: {pickled or 'download it again'}"


def read_headers(shards: Sequence[Path], packed: bool = False) -> dict[str, TensorEntry]:
    """Tensors of all shards by name; raises `CheckpointError` if two shards hold the same one."""
    tensors: dict[str, TensorEntry] = {}
    for shard in shards:
        for name, entry in read_header(shard, packed).items():
            if name in tensors:
                raise CheckpointError(f"tensor {name} is in both {tensors[name].file.name} and {shard.name}")
            tensors[name] = entry
    return tensors


def read_header(path: Path, packed: bool = False) -> dict[str, TensorEntry]:
    """Tensors of one safetensors file by name; raises `CheckpointError` on a bad or truncated file.

    Checkpoints hold floating-point tensors only, bundles also the codes of `packed` weights.
    """
    dtypes = _DTYPES | (_CODES if packed else {})
    try:
        with safe_open(path, framework="np"):  # not "pt", which maps the whole file
            pass  # the library checks that offsets, shapes and file size agree
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}; download it again") from None
    header.pop("__metadata__", None)
    entries = {}
    for name, info in header.items():
        if info["dtype"] not in dtypes:
            raise CheckpointError(f"{path}: tensor {name} has dtype {info['dtype']} (only {', '.join(dtypes)})")
        begin, end = info["data_offsets"]
        entries[name] = TensorEntry(path, 8 + size + begin, end - begin, dtypes[info["dtype"]], tuple(info["shape"]))
    return entries


def meta_model(architecture: str, config: Config) -> Model:
    """The family's module without storage: names and shapes only."""
    try:
        with torch.device("meta"):
            model: Model = FAMILIES[architecture].Model(config)
    except RuntimeError as error:  # sizes whose product overflows
        raise CheckpointError(f"config.json describes a model that cannot exist: {error}") from None
    return model.eval()


def check_tensors(tensors: dict[str, TensorEntry], model: Model) -> None:
    """Raise `CheckpointError` unless `tensors` are exactly those of `model`, in name and shape.

    A tied head may be there as a copy too, as some published files have it. It is never read; an export compares it.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.tied and model.head in tensors:
        wanted[model.head] = wanted[model.embedding]
    for kind, names in (("missing", wanted.keys() - tensors.keys()), ("unexpected", tensors.keys() - wanted.keys())):
        if names:
            raise CheckpointError(f"{len(names)} {kind} tensors, the first is {min(names)}; check config.json")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise CheckpointError(f"tensor {name} has shape {tensors[name].shape}, config.json implies {shape}")


def _unpacked(tensors: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The weights that `tensors` make, packed ones in the shape that they are unpacked to: tried without their data."""
    state = {name: torch.empty(e.shape, dtype=getattr(torch, e.dtype), device="meta") for name, e in tensors.items()}
    try:
        shapes = {name: (w.format, tuple(w.unpack(torch.float32).shape)) for name, w in take_packed(state).items()}
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"packed weights and their scales do not fit: {error}; export the bundle again") from None
    whole = {name: replace(tensors[f"{name}.{form}"], shape=shape) for name, (form, shape) in shapes.items()}
    for name in state:
        if tensors[name].dtype not in _DTYPES.values():
            raise CheckpointError(f"tensor {name} is {tensors[name].dtype}, and not packed; export the bundle again")
        whole[name] = tensors[name]
    return whole


class _Cast(nn.Module):
    """A parametrization: the weight in another dtype, made when it is used."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.to(self.dtype)


def load_model(architecture: str, config: Config, shards: tuple[Path, ...], dtype: torch.dtype) -> Model:
    """The module with its weights memory-mapped; what has another `dtype`, or is packed, is cast when it is used.

    Raises `CheckpointError` for files that do not hold the weights of such a model.
    """
    model = meta_model(architecture, config)
    check_tensors(_unpacked(read_headers(shards, packed=True)), model)
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            state |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
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
