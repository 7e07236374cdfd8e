"""Complete bundles of small random checkpoints, for tests that open one.

    checkpoint = write_source(directory, "llada")       # config, safetensors, tokenizer, template
    bundle = export(checkpoint, out)

They are exported without parity, to save time.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from checkpoints import EOS, MASK, VOCAB, random_weights, raw_config, write_checkpoint
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from dpad.export.pipeline import export_bundle
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.manifest import FILE_NAME, digest

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def write_source(directory: Path, family: str = "llada", *, seed: int = 0, shards: int = 1, **changes: Any) -> Path:
    """A random checkpoint with a word-level tokenizer; the head size is 64, for which fused attention exists."""
    raw = raw_config(family, **({"width": 128, "heads": 2, "kv_heads": 1, "max_length": 256} | changes))
    dtype = getattr(torch, changes.get("torch_dtype", "float32"))
    write_checkpoint(directory, raw, random_weights(raw, seed, dtype), shards)
    write_tokenizer(directory)
    return directory


def write_tokenizer(directory: Path) -> None:
    """Write tokenizer.json, with words w0 … w126, the roles, EOS and the mask, and a chat template."""
    words = {f"w{i}": i for i in range(VOCAB)}
    for name, token in (("<eos>", EOS), ("<mask>", MASK), ("user", 2), ("assistant", 3), ("<unk>", 4)):
        words = {word: i for word, i in words.items() if i != token} | {name: token}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<eos>", "<mask>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<eos>", "mask_token": {"content": "<mask>"}})
    )
    (directory / "chat_template.jinja").write_text(TEMPLATE)


def edit(directory: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> None:
    """Change the manifest of a bundle by `change`; without `sign` its old digest stays."""
    path = directory / FILE_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps({**data, "digest": digest(data)} if sign else data))


def deciding(bundle: Bundle) -> tuple[Path, Path]:
    """The decide plan of a bundle's first engine, and the ONNX file from which it is built."""
    return bundle.path(bundle.manifest.engines[0].decide), bundle.path(bundle.manifest.decide)


def export(source: Path, out: Path, **settings: Any) -> Bundle:
    """Export without parity and without progress, by default in float32 for ONNX Runtime."""
    return export_bundle(str(source), out, ExportSettings(**settings), Progress())[0]
