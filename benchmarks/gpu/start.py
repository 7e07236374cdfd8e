"""The time from `dpad.load` to the first token in a fresh process, by phase, with empty and with full caches.

Cold: the bundle is not in the page cache, and there is no compiled code. Warm: a second process finds the weights in
the page cache and compiled code in the user's cache folder. This file does not import dpad. Later parts use the model
that `cold` opened.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from gpu.session import Session

# Variables for the folders where dpad, PyTorch, Triton and CUDA keep compiled code; each gets a new folder here.
_CACHES = ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH")


def cold(session: Session) -> dict[str, Any]:
    """Measure a start with empty caches."""
    shutil.rmtree(session.setup.folder / "cache", ignore_errors=True)
    dropped = drop(session.setup.folder / "bundle")
    return {"dropped_gb": dropped / 1e9, **_start(session, "bundle")}


def warm(session: Session) -> dict[str, Any]:
    """Measure a start with the bundle in the page cache and code that an earlier process compiled."""
    if not (session.setup.folder / "cache").exists():
        return {"skipped": "no earlier process has compiled anything; run the part cold before it"}
    return _start(session, "bundle")


def drop(folder: Path) -> int:
    """Remove the files below `folder` from the page cache; returns their size in bytes."""
    size = 0
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)  # unwritten pages would stay in the cache
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
            size += path.stat().st_size
    return size


def own_caches(folder: Path) -> None:
    """Keep compiled code below `folder`; must be called before any library that compiles is imported."""
    (folder / "cache").mkdir(parents=True, exist_ok=True)
    for name in _CACHES:
        os.environ[name] = str(folder / "cache" / name.lower())


def model_of(session: Session) -> Any:
    """The `DiffusionModel` of the bundle; it is opened now if no earlier part has opened it."""
    return session.once(_opened)["model"]


def _opened(session: Session) -> dict[str, Any]:
    if not (session.setup.folder / "bundle").exists():
        from gpu.full import make_bundle

        make_bundle(session)
    return load(session, "bundle", session.setup.sizes.engine)


def _start(session: Session, name: str) -> dict[str, Any]:
    if not (session.setup.folder / name).exists():
        return {"skipped": "there is no bundle"}
    found: dict[str, Any] = session.once(_opened)
    return {key: value for key, value in found.items() if key != "model"}


def load(session: Session, name: str, engine: str) -> dict[str, Any]:
    """Open the bundle and decode a first token, timed by phase; the result includes the model.

    The phases are those of `dpad.load`: imports, hashing, opening the engine (copying weights to the device, compiling
    code or finding it), and warm-up. The calls are those of `dpad.load`, in the same order.
    """
    sizes, phases = session.setup.sizes, dict[str, float]()
    own_caches(session.setup.folder)
    began = last = time.perf_counter()

    def phase(of: str) -> None:
        nonlocal last
        now = time.perf_counter()
        phases[of] = now - last
        last = now

    import dpad
    from dpad.runtime.bundle.bundle import Bundle

    phase("import dpad")
    bundle = Bundle.open(session.setup.folder / name)
    phase("check files")
    import torch  # noqa: F401 - dpad.load would import it now

    phase("import torch")
    slots = max(2, max(sizes.at_once)) * (sizes.canvas + 1) + 1
    model = dpad.load(bundle.directory, engine=engine, slots=slots, warm=False, verify_hashes=False)
    session.opened.callback(model.close)
    phase("open the engine")
    opened = _memory()
    _warm_up(model, bundle)
    phase("record steps")
    recorded = _memory()
    prompt = [int(token) for token in range(10, 10 + sizes.prompt)]
    with_events = model.stream(prompt, gen_length=sizes.new, cache="dual", early_termination=False)
    next(iter(with_events))
    with_events.close()
    phase("first token")
    return {
        "model": model,
        "engine": engine,
        "total_s": time.perf_counter() - began,
        "phases_s": phases,
        "memory_gb": _account(model, bundle, engine, opened, recorded),
    }


def _warm_up(model: Any, bundle: Any) -> None:
    """Warm up as `dpad.load` does by default."""
    from dpad._load import WARM_SECONDS
    from dpad.runtime.decoding.likely import likely_rows

    model.engine.warm_up(likely_rows(bundle.manifest.contract, bundle.manifest.presets), WARM_SECONDS)


def _memory() -> tuple[int, int]:
    """Bytes of device memory that are in use by all processes, and that this process has allocated as tensors."""
    import torch

    if not torch.cuda.is_available():
        return 0, 0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free, torch.cuda.memory_allocated()


def _account(
    model: Any, bundle: Any, engine: str, opened: tuple[int, int], recorded: tuple[int, int]
) -> dict[str, float]:
    """Device memory of weights, pool and recordings; the rest is context, code and workspaces."""
    from dpad.runtime.bundle.variant import suffix
    from dpad.runtime.engines.slots import slot_bytes

    steps = bundle.manifest.steps.items()
    files = [file for variant, step in steps if engine.endswith(suffix(variant) or engine) for file in step.weights]
    slot = slot_bytes(model.engine.contract, model.engine.dtype)
    parts = {
        "weights": sum(bundle.manifest.files[file].size for file in files),
        "pool": slot * model.engine.slots.size,
        "recordings": recorded[0] - opened[0],
        "allocated as tensors": recorded[1],
        "in use": recorded[0],
    }
    return {name: size / 1e9 for name, size in parts.items()}
