"""Small random checkpoints in the authors' format, and the engines that open them.

    raw = raw_config("llada", kv_heads=1)
    write_checkpoint(directory, raw, random_weights(raw, seed=3), shards=2)
    contract_of(directory), export_step(directory)

Names and shapes are literal here, not taken from the modules under test, so that a renamed parameter is noticed. The
mask's row of the output head is 0, so that a random model never prefers the mask unless a test changes that.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
import safetensors.torch
import torch

from dpad.export.step.trace import attach_weights, trace_step
from dpad.export.step.trace_decide import trace_decide
from dpad.models.checkpoint.checkpoint import Checkpoint, load_model
from dpad.models.torch_engine import TorchEngine
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.onnx import OnnxEngine

FAMILIES = ("llada", "dream")
BLOCK_CAUSAL = ("sdar", "fast_dllm")
VOCAB, MASK, EOS = 128, 127, 1

Weights = dict[str, torch.Tensor]

# The keys in config.json of families with Qwen's transformer, besides Qwen's own keys.
_QWEN: dict[str, dict[str, Any]] = {
    "dream": {"architectures": ["DreamModel"], "model_type": "Dream"},
    "sdar": {
        "architectures": ["SDARForCausalLM"],
        "model_type": "sdar",
        "attention_bias": False,
        "head_dim": 48,
        "block_size": 4,
    },
    "fast_dllm": {"architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": 8},
}


def raw_config(family: str, **changes: Any) -> dict[str, Any]:
    """A config.json in the authors' keys; `changes` take common names or the authors' own."""
    common = {
        "layers": 2,
        "width": 64,
        "heads": 2,
        "kv_heads": 2 if family == "llada" else 1,  # in Qwen's families all heads share one
        "mlp_width": 96,
        "tied": False,
        "max_length": 512,
    }
    common |= {name: changes.pop(name) for name in list(changes) if name in common}
    if family == "llada":
        raw = {
            "architectures": ["LLaDAModelLM"],
            "model_type": "llada",
            "n_layers": common["layers"],
            "d_model": common["width"],
            "n_heads": common["heads"],
            "n_kv_heads": common["kv_heads"],
            "mlp_hidden_size": common["mlp_width"],
            "embedding_size": VOCAB,
            "vocab_size": VOCAB,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "include_qkv_bias": False,
            "weight_tying": common["tied"],
            "max_sequence_length": common["max_length"],
        }
    else:
        raw = {
            **_QWEN[family],
            "num_hidden_layers": common["layers"],
            "hidden_size": common["width"],
            "num_attention_heads": common["heads"],
            "num_key_value_heads": common["kv_heads"],
            "intermediate_size": common["mlp_width"],
            "vocab_size": VOCAB,
            "rope_theta": 1000000.0,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "tie_word_embeddings": common["tied"],
            "max_position_embeddings": common["max_length"],
        }
    return raw | {"mask_token_id": MASK, "eos_token_id": EOS} | changes


def weight_shapes(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the authors' safetensors for this config.json."""
    return _llada_shapes(raw) if "d_model" in raw else _qwen_shapes(raw)


def _llada_shapes(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, mlp, vocab = raw["d_model"], raw["mlp_hidden_size"], raw["embedding_size"]
    kv = raw["n_kv_heads"] * (width // raw["n_heads"])
    shapes: dict[str, tuple[int, ...]] = {
        "model.transformer.wte.weight": (vocab, width),
        "model.transformer.ln_f.weight": (width,),
    }
    if not raw["weight_tying"]:
        shapes["model.transformer.ff_out.weight"] = (vocab, width)
    for layer in range(raw["n_layers"]):
        block = f"model.transformer.blocks.{layer}."
        for name, out in (("q_proj", width), ("k_proj", kv), ("v_proj", kv)):
            shapes[f"{block}{name}.weight"] = (out, width)
            if raw["include_qkv_bias"]:
                shapes[f"{block}{name}.bias"] = (out,)
        shapes |= {f"{block}{name}.weight": (width,) for name in ("attn_norm", "ff_norm")}
        shapes |= {f"{block}{name}.weight": (mlp, width) for name in ("ff_proj", "up_proj")}
        shapes |= {f"{block}attn_out.weight": (width, width), f"{block}ff_out.weight": (width, mlp)}
    return shapes


def _qwen_shapes(raw: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, mlp, vocab = raw["hidden_size"], raw["intermediate_size"], raw["vocab_size"]
    head = raw.get("head_dim") or width // raw["num_attention_heads"]
    q, kv = raw["num_attention_heads"] * head, raw["num_key_value_heads"] * head
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, width),
        "model.norm.weight": (width,),
    }
    if not raw["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    for index in range(raw["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        for name, out in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            shapes[f"{layer}self_attn.{name}.weight"] = (out, width)
            if raw["model_type"] != "sdar":
                shapes[f"{layer}self_attn.{name}.bias"] = (out,)
        if raw["model_type"] == "sdar":
            shapes |= {f"{layer}self_attn.{name}.weight": (head,) for name in ("q_norm", "k_norm")}
        shapes[f"{layer}self_attn.o_proj.weight"] = (width, q)
        shapes |= {f"{layer}{n}.weight": (width,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}mlp.{name}.weight": (mlp, width) for name in ("gate_proj", "up_proj")}
        shapes[f"{layer}mlp.down_proj.weight"] = (width, mlp)
    return shapes


def head_name(raw: dict[str, Any]) -> str:
    """The name of the matrix that projects to the vocabulary."""
    if "d_model" in raw:
        return "model.transformer.wte.weight" if raw["weight_tying"] else "model.transformer.ff_out.weight"
    return "model.embed_tokens.weight" if raw["tie_word_embeddings"] else "lm_head.weight"


def random_weights(
    raw: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32, sharpness: float = 4.0
) -> Weights:
    """Random weights; logits have a standard deviation near `sharpness`.

    The embedding is small compared with the output of attention, so that masks at different places predict different
    tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for name, shape in weight_shapes(raw).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("bias"):
            noise = 0.3 * noise
        elif len(shape) == 1:
            noise = 1.0 + 0.1 * noise
        elif name == head_name(raw):
            noise = noise * sharpness / shape[1] ** 0.5
            noise[raw["mask_token_id"]] = 0.0
        elif "wte" in name or "embed_tokens" in name:
            noise = 0.3 * noise
        else:
            noise = noise * (2.0 if ("q_proj" in name or "k_proj" in name) else 1.5) / shape[1] ** 0.5
        weights[name] = noise.to(dtype)
    return weights


def write_checkpoint(directory: Path, raw: dict[str, Any], weights: Weights, shards: int = 1) -> Path:
    """Write config.json and safetensors; with more than one shard also the index, as on the hub."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw))
    if shards == 1:
        safetensors.torch.save_file(weights, directory / "model.safetensors")
        return directory
    names = list(weights)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard::shards]}
        safetensors.torch.save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


_MODULES = {"LLaDAModelLM": "llada"} | {raw["architectures"][0]: family for family, raw in _QWEN.items()}


def contract_of(checkpoint: Checkpoint, **changes: Any) -> StepContract:
    """The contract of a small model: batches of 4, canvases of the model's own length."""
    config = checkpoint.config
    values = {
        "family": _MODULES[checkpoint.architecture],
        "layers": config.layers,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_size": config.head_size,
        "vocab_size": config.vocab_size,
        "mask_token_id": config.mask_token_id,
        "eos_token_id": config.eos_token_id,
        "logit_shift": config.logit_shift,
        "max_batch": 4,
        "max_length": config.max_length,
        "block_length": config.block_length or 16,
        "window": 32,
        "tempers_confidence": _MODULES[checkpoint.architecture] != "llada",
        "block_causal": config.block_length > 0,
    }
    return StepContract(**(values | changes))


_ANY = StepContract("llada", 1, 1, 1, 8, VOCAB, MASK, EOS, 0, 1, 1, 1, 1, False)
_decisions = cache(trace_decide)  # tracing takes seconds, and depends on the vocabulary and one flag alone


def export_step(directory: Path) -> Path:
    """Trace the checkpoint's step and `decide`; writes step.onnx and decide.onnx beside the weights."""
    checkpoint = Checkpoint.open(directory)
    contract = contract_of(checkpoint)
    ir.save(_decisions(replace(_ANY, tempers_confidence=contract.tempers_confidence)), directory / "decide.onnx")
    model = trace_step(checkpoint.architecture, checkpoint.config, contract, checkpoint.dtype)
    attach_weights(model, checkpoint.tensors)
    ir.save(model, directory / "step.onnx")
    return directory / "step.onnx"


def torch_engine(directory: Path, kind: type[TorchEngine] = TorchEngine) -> TorchEngine:
    """The eager engine of a checkpoint."""
    checkpoint = Checkpoint.open(directory)
    dtype = getattr(torch, checkpoint.dtype)
    model = load_model(checkpoint.architecture, checkpoint.config, checkpoint.shards, dtype)
    return kind(model, contract_of(checkpoint), checkpoint.dtype)


def onnx_engine(directory: Path, kind: type[OnnxEngine] = OnnxEngine) -> OnnxEngine:
    """ONNX Runtime on a checkpoint whose `step.onnx` was exported; one thread."""
    checkpoint = Checkpoint.open(directory)
    files = {"path": directory / "step.onnx", "decide": directory / "decide.onnx"}
    return kind(**files, contract=contract_of(checkpoint), variant=checkpoint.dtype, threads=1)


OPENERS: dict[str, Callable[..., TorchEngine | OnnxEngine]] = {
    "torch": torch_engine,
    "onnxruntime": onnx_engine,
}
