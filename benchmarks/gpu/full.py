"""The large model of gpu-check: random weights in LLaDA-8B's layout, drawn on the GPU and exported as usual.

bundle = session.once(bundle_of)
"""

import hashlib
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from dpad.export import pipeline
from dpad.export.forecast import synthetic
from dpad.export.forecast.layouts import LAYOUTS
from dpad.export.progress import Progress
from dpad.export.settings import ExportSettings
from dpad.runtime.bundle.bundle import Bundle
from gpu.attention import substituted
from gpu.packing import place_packed
from gpu.session import Session
from gpu.timing import DEVICE


def make_bundle(session: Session) -> dict[str, Any]:
    """Make the checkpoint and its bundle with full weights; returns seconds and bytes of both."""
    return _make(session, "bundle", session.setup.sizes.full)


def make_packed(session: Session) -> dict[str, Any]:
    """Make the checkpoint and its bundle with packed weights, which are packed on the device."""
    return _make(session, "packed", session.setup.sizes.packed)


def _make(session: Session, name: str, weights: tuple[str, ...]) -> dict[str, Any]:
    sizes, began = session.setup.sizes, time.monotonic()
    model = checkpoint(session)
    drawn = time.monotonic() - began
    settings = ExportSettings(dtypes=(sizes.dtype,), weights=weights, max_batch=sizes.batch, max_length=sizes.longest)
    with ExitStack() as replaced:
        replaced.enter_context(substituted(pipeline, place_packed=place_packed))
        bundle, _ = pipeline.export_bundle(model, session.setup.folder / name, settings, Progress())
    size = sum(entry.size for entry in bundle.manifest.files.values())
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    return {
        "weights_gb": size / 1e9,
        "draw_s": drawn,
        "export_s": time.monotonic() - began - drawn,
        "disk_free_gb": shutil.disk_usage(session.setup.folder).free / 1e9,
    }


def checkpoint(session: Session) -> str:
    """The MODEL to export: the folder of a random checkpoint, written if it does not exist, or a model's name."""
    model, folder = session.setup.sizes.model, session.setup.folder / "checkpoint"
    if model not in LAYOUTS:
        return model
    if not folder.exists():
        with substituted(synthetic, random_tensor=draw):
            synthetic.write_checkpoint(model, folder, None, 0, Progress())
    return str(folder)


def draw(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A random tensor as `dpad synth` draws it, but on the device: other numbers from the same distribution."""
    state = torch.Generator(DEVICE).manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7]))
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    deviation = 1.0 if "wte" in name or "embed_tokens" in name else shape[1] ** -0.5
    weight = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_(0, deviation, generator=state)
    return weight.cpu()


def bundle_of(session: Session) -> Bundle:
    """The bundle with full weights; it is made now if no earlier part has made it."""
    return _opened(session, "bundle", make_bundle)


def packed_of(session: Session) -> Bundle:
    """The bundle with packed weights."""
    return _opened(session, "packed", make_packed)


def _opened(session: Session, name: str, make: Any) -> Bundle:
    folder: Path = session.setup.folder / name
    if not folder.exists():
        make(session)
    return Bundle.open(folder, hashes=False)
