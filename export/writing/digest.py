"""`digest`: SHA-256 of a file of an export, computed once however many names the file has.

    digest(stage / "float32/model.safetensors", advance)

Shards are hard-linked into every step that computes from them, and a manifest is written before parity and
after it: read each time, 16 GB would be hashed four times. A large file counts as the same while device, inode,
size and time of change are; small ones are read again, which costs nothing. Opening a bundle never asks this:
there every file is hashed as it lies (`runtime.bundle`).
"""

from pathlib import Path

from dpad.export.progress import Advance
from dpad.runtime.bundle.bundle import sha256

_LARGE = 64 << 20  # bytes

_known: dict[tuple[int, int, int, int], str] = {}


def digest(path: Path, advance: Advance | None = None) -> str:
    """Hex digest of the file; `advance` is told about its bytes, read or not."""
    status = path.stat()
    if status.st_size < _LARGE:
        return sha256(path, advance)
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if identity not in _known:
        _known[identity] = sha256(path, advance)
    elif advance:
        advance(status.st_size)
    return _known[identity]
