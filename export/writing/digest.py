"""`digests`: SHA-256 of an export's files; a file with several hard links is hashed once.

    first, second = digests([stage / "float32/model.safetensors", stage / "float32/step.onnx"], advance)

Shards are hard-linked into every step that uses them, and the manifest is written before and after parity, so that
without a cache 16 GB would be hashed four times. A large file is the same if device, inode, size and change time are
equal. Small files are always read. Opening a bundle does not use this cache: there every file is hashed
(`runtime.bundle`).
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
    """Hex digest of each file; `advance` gets the size of each, cached or not. Raises the first file's `OSError`."""
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
