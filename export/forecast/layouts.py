"""`LAYOUTS`: the contents of published repositories besides weights, to make random checkpoints in the same layout.

    layout = LAYOUTS["llada"]
    layout.config["d_model"], layout.special[126336]

Keys, sizes and ids are those of config.json and tokenizer_config.json of GSAI-ML/LLaDA-8B-Instruct,
GSAI-ML/LLaDA-1.5 and Dream-org/Dream-v0-Instruct-7B. Special tokens that no template uses have reserved names.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """One repository's layout.

    Attributes:
        config: config.json; `layers` is its key for the number of layers.
        words: size of the vocabulary without special tokens: ids 0 to `words` - 1; the special tokens follow.
        special: text of every special token by id, without a gap.
        named: the named tokens of tokenizer_config.json, such as bos_token.
        parts: whether the vocabulary is in vocab.json and merges.txt instead of tokenizer.json.
        template: the embedded checkpoint with the same chat template.
    """

    config: dict[str, Any]
    layers: str
    words: int
    special: dict[int, str]
    named: dict[str, str]
    parts: bool
    template: str


def _reserved(first: int, last: int, known: dict[int, str]) -> dict[int, str]:
    return {index: known.get(index, f"<|reserved_{index}|>") for index in range(first, last + 1)}


_LLADA = Layout(
    config={
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "alibi": False,
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "bias_for_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": 4096,
        "embedding_dropout": 0.0,
        "embedding_size": 126464,
        "eos_token_id": 126081,
        "flash_attention": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "init_std": 0.02,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": 126336,
        "max_sequence_length": 4096,
        "mlp_hidden_size": 12288,
        "mlp_ratio": 4,
        "multi_query_attention": None,
        "n_heads": 32,
        "n_kv_heads": 32,
        "n_layers": 32,
        "pad_token_id": 126081,
        "residual_dropout": 0.0,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 500000.0,
        "scale_logits": False,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vocab_size": 126464,
        "weight_tying": False,
    },
    layers="n_layers",
    words=126080,
    special=_reserved(
        126080,
        126348,
        {
            126080: "<|startoftext|>",
            126081: "<|endoftext|>",
            126336: "<|mdm_mask|>",
            126346: "<|start_header_id|>",
            126347: "<|end_header_id|>",
            126348: "<|eot_id|>",
        },
    ),
    named={
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mdm_mask|>",
    },
    parts=False,
    template="tiny",
)

_DREAM = Layout(
    config={
        "architectures": ["DreamModel"],
        "model_type": "Dream",
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 3584,
        "initializer_range": 0.02,
        "intermediate_size": 18944,
        "mask_token_id": 151666,
        "max_position_embeddings": 131072,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "pad_token_id": 151643,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    layers="num_hidden_layers",
    words=151643,
    special=_reserved(
        151643,
        151666,
        {
            151643: "<|endoftext|>",
            151644: "<|im_start|>",
            151645: "<|im_end|>",
            151665: "<|beginoftext|>",
            151666: "<|mask|>",
        },
    ),
    named={
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    },
    parts=True,
    template="tiny-dream",
)

LAYOUTS = {"llada": _LLADA, "llada-1.5": _LLADA, "dream": _DREAM}
