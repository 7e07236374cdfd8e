"""Errors for checkpoint directories that are broken, unfinished or of another kind name the cause and the way out."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from strangers import (
    FIRST,
    INDEX,
    PAGE,
    POINTER,
    SECOND,
    SINGLE,
    Make,
    assert_said,
    both,
    configured,
    cut,
    move,
    put,
    remove,
    renamed,
    write,
)

from dpad.export.hub import read_config
from dpad.models.checkpoint.checkpoint import Checkpoint, parse_config
from dpad.runtime.errors import CheckpointError


def recast(directory: Path) -> None:
    """Change norms to float32 beside bfloat16 weights, as some trainers save them."""
    weights = safetensors.torch.load_file(directory / SINGLE)
    cast = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in weights.items()}
    safetensors.torch.save_file(cast, directory / SINGLE)


def quantised(directory: Path) -> None:
    """Replace a matrix by GPTQ's tensors."""
    weights = safetensors.torch.load_file(directory / SINGLE)
    weights["model.layers.0.mlp.up_proj.qweight"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    safetensors.torch.save_file(weights, directory / SINGLE)


def emptied(directory: Path) -> None:
    """Empty the parameters, as ZeRO-3 saves those that are on several machines."""
    names = safetensors.torch.load_file(directory / SINGLE)
    safetensors.torch.save_file({name: torch.zeros(0) for name in names}, directory / SINGLE)


def headed(directory: Path) -> None:
    """Add a head that only training needs."""
    weights = safetensors.torch.load_file(directory / SINGLE)
    safetensors.torch.save_file(weights | {"value_head.weight": torch.zeros(1, 64)}, directory / SINGLE)


def doubled(directory: Path) -> None:
    """Change the weights to float64."""
    weights = safetensors.torch.load_file(directory / SINGLE)
    safetensors.torch.save_file({name: tensor.double() for name, tensor in weights.items()}, directory / SINGLE)


def resized(directory: Path) -> None:
    """Resize the embedding and the head for more tokens."""
    weights = safetensors.torch.load_file(directory / SINGLE)
    more = {
        name: torch.cat([weights[name], weights[name][:3]]) for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    safetensors.torch.save_file(weights | more, directory / SINGLE)


ADAPTER = put("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "Dream-org/Dream-7B"}')
LORA = put("adapter_model.safetensors", b"x")
BLOB = f"../../blobs/{'0' * 64}"

# A change of a good checkpoint in one file (Dream) -> words of the message; words with "!" must not be in it.
ONE: dict[str, tuple[Make, tuple[str, ...]]] = {
    "adapter": (both(ADAPTER, LORA, remove(SINGLE)), ("adapter", "Dream-org/Dream-7B", "merge_and_unload", "!again")),
    "adapter, the way": (
        both(ADAPTER, LORA, remove(SINGLE)),
        (
            "PeftModel.from_pretrained(AutoModel.from_pretrained('Dream-org/Dream-7B', trust_remote_code=True,",
            "if you trust",
        ),
    ),
    **{
        f"adapter alone, {kind}": (
            both(put("adapter_config.json", f'{{"peft_type": "{kind}"}}'), LORA, remove(SINGLE)),
            ("adapter", kind, "cannot be merged", "not supported", "!merge_and_unload"),
        )
        for kind in ("PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING")
    },
    "adapter alone": (both(ADAPTER, LORA, remove(SINGLE, "config.json")), ("adapter", "merge_and_unload", "!again")),
    "adapter, pickled": (both(put("adapter_model.bin"), remove(SINGLE)), ("adapter", "its base model", "!again")),
    "adapter over weights": (
        ADAPTER,
        ("adapter", "merge", f"{SINGLE} are merged already", "remove adapter_config.json"),
    ),
    "adapter, broken": (both(put("adapter_config.json", "[]"), remove(SINGLE)), ("adapter", "its base model")),
    "adapter in the weights": (
        renamed(lambda n: f"base_model.model.{n.replace('q_proj.weight', 'q_proj.lora_A.default.weight')}"),
        ("lora_A", "adapter", "merge_and_unload"),
    ),
    "PEFT's names": (renamed(lambda n: f"base_model.model.{n}"), ("'base_model.model.'", "PEFT", "rename")),
    "compiled names": (renamed(lambda n: f"_orig_mod.{n}"), ("'_orig_mod.'", "torch.compile")),
    "parallel names": (renamed(lambda n: f"module.{n}"), ("'module.'", "DeepSpeed")),
    "nested wrappers": (renamed(lambda n: f"module._orig_mod.{n}"), ("'module._orig_mod.'", "torch.compile")),
    "compiled inside": (renamed(lambda n: n.replace("model.", "model._orig_mod.", 1)), ("'_orig_mod.'",)),
    "sharded layers": (renamed(lambda n: n.replace("layers.0.", "layers.0._fsdp_wrapped_module.")), ("FSDP",)),
    "a prefix more": (renamed(lambda n: f"model.{n}"), ("'model.'", "rename")),
    "a stranger's prefix": (renamed(lambda n: f"student.net.{n}"), ("'student.net.'", "rename")),
    "a prefix less": (renamed(lambda n: n.removeprefix("model.")), ("lacks the prefix 'model.'",)),
    "no head": (renamed(lambda n: n if n != "lm_head.weight" else "model.rotary_emb.inv_freq"), ("lm_head", "tied")),
    "mixed dtypes": (recast, ("bfloat16", "in float32", "norm.weight", "convert")),
    "float64": (doubled, ("float64", "model.to(torch.bfloat16)", "!quantised")),
    "resized": (resized, ("embed_tokens.weight", "set vocab_size to 131")),
    "GPTQ's names": (quantised, ("qweight", "quantised")),
    "GPTQ's config": (configured(quantization_config={"quant_method": "gptq", "bits": 4}), ("quantised", "gptq")),
    "bitsandbytes": (configured(quantization_config={"load_in_4bit": True, "load_in_8bit": False}), ("quantised",)),
    "MLX": (configured(quantization={"group_size": 64, "bits": 4}), ("quantised", "quantization ")),
    "pointer": (put(SINGLE, POINTER), (SINGLE, "Git LFS", "git lfs pull", "!again")),
    "config's pointer": (put("config.json", POINTER), ("config.json", "git lfs pull")),
    "tokenizer's pointer": (put("tokenizer.json", POINTER), ("tokenizer.json", "git lfs pull")),
    "merges' pointer": (put("merges.txt", POINTER), ("merges.txt", "git lfs pull")),
    "template's pointer": (put("chat_template.jinja", POINTER), ("chat_template.jinja", "git lfs pull")),
    "merges empty": (put("merges.txt"), ("merges.txt", "empty")),
    "merges of zeros": (put("merges.txt", bytes(900)), ("merges.txt", "zeros", "unfinished")),
    "merges are a page": (put("merges.txt", PAGE), ("merges.txt", "web page", "hf download")),
    "merges in UTF-16": (put("merges.txt", "a b".encode("utf-16")), ("merges.txt", "save it as UTF-8")),
    "template empty": (put("chat_template.jinja"), ("chat_template.jinja", "empty")),
    "template is a page": (put("chat_template.jinja", PAGE), ("chat_template.jinja", "web page")),
    "template in UTF-16": (put("chat_template.jinja", "{{ 1 }}".encode("utf-16")), ("save it as UTF-8",)),
    "Xet pointer": (put(SINGLE, b"# xet version 0\nfilesize = 5\n"), ("Xet", "hf download")),
    "annex pointer": (put(SINGLE, b"/annex/objects/MD5E-s1--0.safetensors\n"), ("git annex get",)),
    "link made text": (put(SINGLE, BLOB), ("link", "cp -rL")),
    "config's link made text": (put("config.json", BLOB), ("config.json", "link", "cp -rL")),
    "empty": (put(SINGLE), (SINGLE, "empty")),
    "zeros": (put(SINGLE, bytes(5000)), (SINGLE, "zeros", "unfinished")),
    "cut": (cut(SINGLE, 9000), (SINGLE, "9000 of its", "again")),
    "cut in the header": (cut(SINGLE, 300), (SINGLE, "again")),
    "a page": (put(SINGLE, PAGE), (SINGLE, "web page", "hf download")),
    "a page as config": (put("config.json", PAGE), ("config.json", "web page")),
    "a server's message": (put(SINGLE, b'{"error":"Invalid username or password."}'), ("Invalid username", "message")),
    "compressed": (put(SINGLE, b"\x1f\x8b\x08\x00" + bytes(40)), ("compressed", "unpack", "!again")),
    "pickle by another name": (put(SINGLE, b"PK\x03\x04" + bytes(40)), ("pickle", "convert", "!again")),
    "GGUF by another name": (put(SINGLE, b"GGUF\x03" + bytes(40)), ("GGUF", "llama.cpp", "!again")),
    "byte order mark": (put("config.json", b"\xef\xbb\xbf{}"), ("config.json", "byte order mark")),
    "UTF-16": (put("config.json", "{}".encode("utf-16")), ("config.json", "UTF-16")),
    "empty tokenizer": (put("tokenizer.json"), ("tokenizer.json", "empty")),
    "aria2": (put(f"{SINGLE}.aria2", b"x"), (SINGLE, "unfinished", ".aria2", "finish")),
    "partial download": (move(SINGLE, f"{SINGLE}.incomplete"), (f"{SINGLE}.incomplete", "unfinished", "!again")),
    "browser's download": (move(SINGLE, f"{SINGLE}.crdownload"), (f"{SINGLE}.crdownload", "unfinished")),
    "download into a folder": (
        move(SINGLE, ".cache/huggingface/download/x.0123.incomplete"),
        ("x.0123.incomplete", "unfinished", "hf download"),
    ),
    "variant": (move(SINGLE, "model.fp16.safetensors"), ("model.fp16.safetensors", "rename", "!again")),
    "another name": (move(SINGLE, "consolidated.safetensors"), ("consolidated.safetensors", "rename")),
    "diffusers' name": (move(SINGLE, "diffusion_pytorch_model.safetensors"), ("diffusion_pytorch_model", "rename")),
    "pickled shards": (put("pytorch_model.bin.index.json", "{}", instead=True), ("pickle", "convert", "!again")),
    "pth": (put("consolidated.00.pth", instead=True), ("consolidated.00.pth", "pickle", "!again")),
    "gguf": (put("model-q4.gguf", instead=True), ("model-q4.gguf", "llama.cpp", "!again")),
    "TensorFlow": (put("tf_model.h5", instead=True), ("tf_model.h5", "TensorFlow")),
    "Flax": (put("flax_model.msgpack", instead=True), ("flax_model.msgpack", "Flax")),
    "archive": (put("model.tar.gz", instead=True), ("model.tar.gz", "unpack")),
    "a folder below": (move(SINGLE, "weights/model.safetensors"), ("weights", "pass", "!again")),
    "DeepSpeed": (both(put("zero_to_fp32.py", instead=True), put("optimizer.pt")), ("DeepSpeed", "zero_to_fp32.py")),
    "DeepSpeed's step": (put("global_step500/mp_rank_00_model_states.pt", instead=True), ("DeepSpeed", "!again")),
    "ZeRO-3's empty tensors": (emptied, ("(0,)", "zero_to_fp32.py")),
    "FSDP, flattened": (renamed(lambda n: f"{n}._flat_param" if "up_proj" in n else n), ("FSDP", "FULL_STATE_DICT")),
    "another file named": (configured(transformers_weights="ema.safetensors"), ("transformers_weights", "ema")),
    "a zip": (put("tokenizer.json", b"PK\x03\x04"), ("tokenizer.json", "zip", "unpack")),
    "a head too many": (headed, ("value_head.weight", "check config.json", "without them")),
    "shards of another name": (
        both(move(SINGLE, "part-1.safetensors"), put("part-2.safetensors")),
        ("part-1.safetensors and others", "without an index", "!rename"),
    ),
    "a copy's leftovers": (both(put("._model.safetensors"), remove(SINGLE)), ("no weights are there", "!._model")),
    "config by another name": (move("config.json", "config (1).json"), ("config (1).json", "rename")),
    "FSDP": (put("pytorch_model_fsdp_0/__0_0.distcp", instead=True), (".distcp", "merge-weights", "!again")),
    "no config": (remove("config.json"), ("config.json is missing", "add the config.json", "!again")),
    "shards, not all": (move(SINGLE, FIRST), (INDEX, SECOND, "1 of 2", "again")),
    "shards of two sets": (both(move(SINGLE, FIRST), put("model-00001-of-00003.safetensors")), (INDEX, "several")),
}


@pytest.mark.parametrize("case", [case for case in ONE if case.startswith(("adapter a", "config", "GPTQ's c"))])
def test_a_plan_names_it_too(tmp_path: Path, case: str) -> None:
    """Fails if `dpad plan` accepts a config.json that an export refuses, or gives another error."""
    make, words = ONE[case]
    make(write(tmp_path / "model"))
    with pytest.raises(CheckpointError) as caught:
        parse_config(read_config(str(tmp_path / "model")))
    assert_said(caught.value, words)


@pytest.mark.parametrize("case", ONE)
def test_each_state_is_named(tmp_path: Path, case: str) -> None:
    """Fails if a wrong directory opens, or the error names another cause or no way out."""
    make, words = ONE[case]
    make(write(tmp_path / "model"))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path / "model")
    assert_said(caught.value, words)
