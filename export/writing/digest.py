"""`digests`: SHA-256 of the files of an export, computed once however many names a file has.

    first, second = digests([stage / "float32/model.safetensors", stage / "float32/step.onnx"], advance)

Shards are hard-linked into every step that computes from them, and a manifest is written before parity and
after it: read each time, 16 GB would be hashed four times. A large file counts as the same while device, inode,
size and time of change are; small ones are read again, which costs nothing. Opening a bundle never asks this:
there every file is hashed as it lies (`runtime.bundle`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dpad.export.progress import Advance
from dpad.runtime.bundle.hashes import Hashing

_LARGE = 64 << 20  # bytes


class _Identity(NamedTuple):
    device: int
    inode: int
    size: int
    changed: int


_known: dict[_Identity, str] = {}


def digests(paths: Sequence[Path], advance: Advance | None = None) -> list[str]:
    """Hex digest of each file; `advance` is told about its bytes, read or not. Raises `OSError`, as of the first."""
    identities = [_identity(path) for path in paths]
    unread: dict[_Identity, Path] = {}
    for identity, path in zip(identities, paths):
        if identity not in _known:
            unread.setdefault(identity, path)
    if advance:
        advance(sum(identity.size for identity in identities) - sum(identity.size for identity in unread))
    with Hashing({path: identity.size for identity, path in unread.items()}, advance) as hashing:
        read = {identity: hashing.digest(path) for identity, path in unread.items()}
    _known.update((identity, digest) for identity, digest in read.items() if identity.size >= _LARGE)
    return [(read.get(identity) or _known[identity]) for identity in identities]


def digest(path: Path) -> str:
    """Hex digest of one file."""
    return digests([path])[0]


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return _Identity(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
