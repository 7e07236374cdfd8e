"""Directories that are no checkpoint as they stand: each is named for what it is, with the way out.

What trainers, hubs, copies and other formats leave is made here, and opened or exported.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import random_weights, raw_config, write_checkpoint

from dpad.export.hub import read_config
from dpad.models.checkpoint import Checkpoint
from dpad.runtime.errors import CheckpointError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = (f"model-{shard:05}-of-00002.safetensors" for shard in (1, 2))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 16059522400\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"

Make = Callable[[Path], Any]


def put(name: str, content: bytes | str = b"", *, instead: bool = False) -> Make:
    """Write a file; `instead` of the weights."""

    def write(directory: Path) -> None:
        if instead:
            (directory / SINGLE).unlink()
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def both(*makes: Make) -> Make:
    """One after the other."""
    return lambda directory: [make(directory) for make in makes]


def move(name: str, target: str) -> Make:
    """Rename a file."""

    def rename(directory: Path) -> None:
        (directory / target).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).rename(directory / target)

    return rename


def remove(*names: str) -> Make:
    """Delete files."""
    return lambda directory: [(directory / name).unlink() for name in names]


def renamed(change: Callable[[str], str]) -> Make:
    """Give every tensor another name."""

    def edit(directory: Path) -> None:
        weights = safetensors.torch.load_file(directory / SINGLE)
        safetensors.torch.save_file({change(name): tensor for name, tensor in weights.items()}, directory / SINGLE)

    return edit


def configured(**changes: Any) -> Make:
    """Keys of config.json."""

    def edit(directory: Path) -> None:
        raw = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(raw | changes))

    return edit


def recast(directory: Path) -> None:
    """Norms in float32 beside weights in bfloat16, as some trainers save them."""
    weights = safetensors.torch.load_file(directory / SINGLE)
    cast = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in weights.items()}
    safetensors.torch.save_file(cast, directory / SINGLE)


def cut(name: str, keep: int) -> Make:
    """Keep the first bytes of a file."""
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:keep])


def quantised(directory: Path) -> None:
    """A matrix as GPTQ stores it."""
    weights = safetensors.torch.load_file(directory / SINGLE)
    weights["model.layers.0.mlp.up_proj.qweight"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    safetensors.torch.save_file(weights, directory / SINGLE)


def emptied(directory: Path) -> None:
    """What ZeRO-3 saves of parameters that lie on several machines."""
    names = safetensors.torch.load_file(directory / SINGLE)
    safetensors.torch.save_file({name: torch.zeros(0) for name in names}, directory / SINGLE)


def headed(directory: Path) -> None:
    """A head that only training needed."""
    weights = safetensors.torch.load_file(directory / SINGLE)
    safetensors.torch.save_file(weights | {"value_head.weight": torch.zeros(1, 64)}, directory / SINGLE)


ADAPTER = put("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "Dream-org/Dream-7B"}')
LORA = put("adapter_model.safetensors", b"x")
BLOB = f"../../blobs/{'0' * 64}"

# how a good checkpoint of one file (Dream) is changed -> words of the message; "!" before what it may not say
ONE: dict[str, tuple[Make, tuple[str, ...]]] = {
    "adapter": (both(ADAPTER, LORA, remove(SINGLE)), ("adapter", "Dream-org/Dream-7B", "merge_and_unload", "!again")),
    "adapter alone": (both(ADAPTER, LORA, remove(SINGLE, "config.json")), ("adapter", "merge_and_unload", "!again")),
    "adapter, pickled": (both(put("adapter_model.bin"), remove(SINGLE)), ("adapter", "its base model", "!again")),
    "adapter over weights": (ADAPTER, ("adapter", "merge", f"{SINGLE} are merged ones", "adapter_config.json away")),
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
    "GPTQ's names": (quantised, ("qweight", "quantised")),
    "GPTQ's config": (configured(quantization_config={"quant_method": "gptq", "bits": 4}), ("quantised", "gptq")),
    "bitsandbytes": (configured(quantization_config={"load_in_4bit": True, "load_in_8bit": False}), ("quantised",)),
    "MLX": (configured(quantization={"group_size": 64, "bits": 4}), ("quantised", "quantization ")),
    "pointer": (put(SINGLE, POINTER), (SINGLE, "Git LFS", "git lfs pull", "!again")),
    "config's pointer": (put("config.json", POINTER), ("config.json", "git lfs pull")),
    "tokenizer's pointer": (put("tokenizer.json", POINTER), ("tokenizer.json", "git lfs pull")),
    "merges' pointer": (put("merges.txt", POINTER), ("merges.txt", "git lfs pull")),
    "template's pointer": (put("chat_template.jinja", POINTER), ("chat_template.jinja", "git lfs pull")),
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
    "a head too many": (headed, ("value_head.weight", "check config.json", "without them")),
    "shards of another name": (
        both(move(SINGLE, "part-1.safetensors"), put("part-2.safetensors")),
        ("part-1.safetensors and others", "no index", "!rename"),
    ),
    "a copy's leftovers": (both(put("._model.safetensors"), remove(SINGLE)), ("no weights are there", "!._model")),
    "config by another name": (move("config.json", "config (1).json"), ("config (1).json", "rename")),
    "FSDP": (put("pytorch_model_fsdp_0/__0_0.distcp", instead=True), (".distcp", "merge-weights", "!again")),
    "no config": (remove("config.json"), ("config.json is missing", "put the config.json", "!again")),
    "shards, not all": (move(SINGLE, FIRST), (INDEX, SECOND, "1 of 2", "again")),
    "shards of two sets": (both(move(SINGLE, FIRST), put("model-00001-of-00003.safetensors")), (INDEX, "several")),
}


def write(directory: Path, shards: int = 1) -> Path:
    """A good Dream checkpoint of one layer."""
    raw = raw_config("dream", layers=1)
    return write_checkpoint(directory, raw, random_weights(raw, seed=4), shards)


def assert_said(error: CheckpointError, words: tuple[str, ...]) -> None:
    """The message is one line, holds these words, and not those that begin with "!"."""
    said = str(error)
    assert "\n" not in said, said
    assert all((word[1:] not in said) if word.startswith("!") else (word in said) for word in words), said


@pytest.mark.parametrize("case", ONE)
def test_each_state_is_named(tmp_path: Path, case: str) -> None:
    """Fails if a directory opens that is no checkpoint, or is called by another name, or the way out leads nowhere."""
    make, words = ONE[case]
    make(write(tmp_path / "model"))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path / "model")
    assert_said(caught.value, words)


SHARDED: dict[str, tuple[Make, tuple[str, ...]]] = {
    "a shard lacking": (remove(SECOND), (SECOND, "missing", INDEX, "1 of 2", "download it again")),
    "another save's index": (
        both(move(FIRST, "model-00001-of-00003.safetensors"), remove(SECOND)),
        (FIRST, "0 of 2", "model-00001-of-00003.safetensors", "older"),
    ),
    "a shard on its way": (move(SECOND, f"{SECOND}.part"), (f"{SECOND}.part", "unfinished")),
    "a shard's pointer": (put(SECOND, POINTER), (SECOND, "git lfs pull", "!again")),
    "a shard cut": (cut(SECOND, 5000), (SECOND, "5000 of its")),
    "a shard twice": (lambda d: (d / SECOND).write_bytes((d / FIRST).read_bytes()), (FIRST, SECOND, "both")),
    "index of pickles": (
        put(INDEX, '{"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}'),
        ("pytorch_model-00001", "no safetensors file"),
    ),
    "index is a pointer": (put(INDEX, POINTER), (INDEX, "git lfs pull")),
    "index of a part": (
        put(INDEX, json.dumps({"weight_map": {"model.norm.weight": FIRST}})),
        ("missing tensors", SECOND),
    ),
    "one file of a part": (lambda d: (d / FIRST).rename(d / SINGLE), ("missing tensors", f"{SINGLE} is taken", INDEX)),
}


@pytest.mark.parametrize("case", SHARDED)
def test_each_state_of_shards_is_named(tmp_path: Path, case: str) -> None:
    """Fails if shards of which some are missing, foreign or broken open, or the message hides which."""
    make, words = SHARDED[case]
    make(write(tmp_path, shards=2))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(tmp_path)
    assert_said(caught.value, words)


def hub_repository(directory: Path) -> Path:
    """A repository in the hub's cache."""
    write(directory / "snapshots" / "0123abcd")
    (directory / "refs").mkdir()
    (directory / "refs" / "main").write_text("0123abcd")
    return directory


ABOVE: dict[str, tuple[Make, tuple[str, ...]]] = {
    "the hub's repository": (hub_repository, ("hub's cache", "pass", "model/snapshots/0123abcd")),
    "the hub's cache": (lambda d: hub_repository(d / "models--JetLM--SDAR"), ("hub's cache", "JetLM/SDAR")),
    "snapshots": (lambda d: write(d / "0123abcd"), ("pass", "model/0123abcd")),
    "a trainer's output": (
        lambda d: [write(d / f"checkpoint-{step}") for step in (500, 1000)],
        ("pass", "model/checkpoint-1000"),
    ),
    "a bundle": (put("manifest.json", '{"contract": {}}'), ("bundle already",)),
    "Meta's format": (both(put("params.json", "{}"), put("consolidated.00.pth")), ("params.json", "Meta")),
    "nothing": (lambda d: d.mkdir(), ("is empty",)),
    "an archive": (put("model.zip"), ("model.zip", "unpack")),
    "sharded training": (put("__0_0.distcp"), (".distcp", "merge-weights")),
    "a download": (put("config.json.incomplete"), ("config.json.incomplete", "unfinished")),
    "something else": (put("notes.txt"), ("a checkpoint directory?", "!again")),
}


@pytest.mark.parametrize("case", ABOVE)
def test_the_folder_beside_the_right_one(tmp_path: Path, case: str) -> None:
    """Fails if a directory without config.json is not told from a checkpoint's, or the right one is not named."""
    make, words = ABOVE[case]
    make(tmp_path / "model")
    for opened in (Checkpoint.open, lambda directory: read_config(str(directory))):
        if case == "a bundle" and opened is not Checkpoint.open:
            continue  # of which `dpad plan` reads the manifest
        with pytest.raises(CheckpointError) as caught:
            opened(tmp_path / "model")
        assert_said(caught.value, ("config.json is missing", *words))


def test_what_is_only_left_over_is_no_obstacle(tmp_path: Path) -> None:
    """Fails if a checkpoint is refused for what trainers and hubs leave beside it, or that goes unsaid."""
    write(tmp_path)
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "rng_state_0.pth", "model.gguf"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "global_step500").mkdir()
    (tmp_path / ".cache/huggingface/download").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/download/old.incomplete").touch()
    configured(quantization_config={"load_in_4bit": False, "load_in_8bit": False})(tmp_path)
    (tmp_path / INDEX).write_bytes(b"")
    (tmp_path / "model.fp16.safetensors").write_bytes(POINTER)
    checkpoint = Checkpoint.open(tmp_path)
    assert [shard.name for shard in checkpoint.shards] == [SINGLE] and checkpoint.notes


def test_a_folder_of_folders_ends(tmp_path: Path) -> None:
    """Fails if looking for a checkpoint walks down without end, or into links that go round."""
    deep = write(tmp_path / "model")
    (deep / SINGLE).unlink()
    (deep / "round").symlink_to(deep, target_is_directory=True)
    (deep / "a/b/c/d").mkdir(parents=True)
    safetensors.torch.save_file({"x": torch.ones(1)}, deep / "a/b/c/d/model.safetensors")
    with pytest.raises(CheckpointError, match="no weights are there at all"):
        Checkpoint.open(deep)
