"""Diagnoses how a copy or download damaged a bundle's files, and names the command that repairs them.

    told(path, entry.sha256)            # "… had its line ends converted to CRLF …"; None if the cause is unknown
    nearby(Path("bundles"))             # "; bundles lie in it: bundles/tiny, bundles/dream"

Bundles are moved by hubs, git, archives and network copies, and each leaves its own kind of damage. These functions
run only after a check of the bundle has failed.
"""

import hashlib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from dpad.runtime.bundle.files import read_bytes, read_json

_POINTER = b"version https://git-lfs.github.com/spec/"
_SMALL, _TEXT = 1024, 16 << 20  # most bytes of a pointer or a link's text, and of a file whose line ends are examined
_LINK_TEXT = re.compile(rb"(\.\./)+blobs/[0-9a-f]{40,64}\s*")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PARTIAL = re.compile(r"(.*/)?\.(.+)\.[A-Za-z0-9]{6}")  # rsync's names of unfinished files
_UNFINISHED = re.compile(r"\.(part|partial|crdownload|download|incomplete|tmp|aria2)$")
_MANY = 100  # most entries of a folder that are examined


def blob_of(directory: Path, path: Path) -> Path | None:
    """The blob that the link `path` leads to, if it is one of the same repository in a hub's cache; None otherwise.

    The repository's blobs lie in `blobs`, in the nearest folder above `directory` that has one.
    """
    cache = next((above / "blobs" for above in directory.resolve().parents if (above / "blobs").is_dir()), None)
    target = Path(os.path.realpath(path))  # unlike `resolve`, it does not raise for a loop of links
    inside = target.parent == cache and _BLOB.fullmatch(target.name) and target.is_file()
    return target if inside else None


def lacks_blob(directory: Path, path: Path) -> bool:
    """Whether the link `path` leads to a missing blob of its repository, as after an unfinished download."""
    target = Path(os.path.realpath(path))
    caches = [above / "blobs" for above in directory.resolve().parents if (above / "blobs").is_dir()]
    return target.parent in caches[:1] and _BLOB.fullmatch(target.name) is not None and not target.exists()


def copy_command(directory: Path, name: str) -> str:
    """The command that copies a bundle with the files that its links lead to."""
    return shlex.join(["cp", "-rL", str(directory), f"bundles/{Path(name).name or 'copy'}"])


def told(path: Path, sha256: str | None = None) -> str | None:
    """How the file at `path`, whose hash should be `sha256`, was damaged, and what to do; None if that is unknown."""
    with suppress(OSError):
        size = path.stat().st_size
        if size > _TEXT:
            return None
        data = read_bytes(path)
        if size < _SMALL and data.startswith(_POINTER):
            return (
                f"{path} is a pointer of Git LFS, and not the file: fetch it with git lfs install && git lfs pull in "
                "the clone, or get the bundle with hf download"
            )
        if size < _SMALL and _LINK_TEXT.fullmatch(data):
            return f"{path} is the text of a link into a hub's cache, and not the file: copy the bundle with cp -rL"
        unix = data.replace(b"\r\n", b"\n")
        for kind, other in (("to CRLF", unix), ("from CRLF", unix.replace(b"\n", b"\r\n"))):
            if hashlib.sha256(other).hexdigest() == sha256:
                name = shlex.quote(path.name)
                return (
                    f"{path} had its line ends converted {kind}, as git and editors do: copy it again unchanged, or in "
                    f"a clone run rm {name} && git -c core.autocrlf=false checkout {name}"
                )
    return None


def renamed(name: str, present: Iterable[str]) -> str | None:
    """The one of `present` that differs from `name` only in case or in Unicode normalization; None if there is none."""
    return next((other for other in present if other != name and _plain(other) == _plain(name)), None)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def partial_of(name: str, listed: Iterable[str]) -> str | None:
    """The one of `listed` that an interrupted copy or download began to write as `name`; None if there is none."""
    match = _PARTIAL.fullmatch(name)
    whole = f"{match[1] or ''}{match[2]}" if match else _UNFINISHED.sub("", name)
    return whole if whole != name and whole in set(listed) else None


def is_unfinished(directory: Path) -> bool:
    """Whether `directory` holds an unfinished file of `hf download --local-dir`."""
    with suppress(OSError):
        downloads = (directory / ".cache/huggingface/download").rglob("*.incomplete")
        return next(downloads, None) is not None
    return False


def nearby(directory: Path) -> str:
    """Bundles above or below a directory that is not a bundle, as the end of a message; empty if there are none."""
    with suppress(OSError):
        if above := [path for path in list(directory.absolute().parents)[:3] if _is_bundle(path)]:
            return f"; the bundle is {above[0]}"
        if not directory.is_dir():
            return ""
        snapshots = sorted(islice(directory.glob("models--*/snapshots/*"), _MANY))
        below = [path for path in (*_below(directory), *snapshots) if _is_bundle(path)]
        if below:
            more = f" and {len(below) - 3} more" if len(below) > 3 else ""
            return f"; bundles lie in it: {', '.join(str(path) for path in below[:3])}{more}"
    return ""


def _below(directory: Path) -> Iterator[Path]:
    """Folders in `directory`, and the folders in those."""
    for path in _folders(directory):
        yield path
        yield from _folders(path)


def _folders(directory: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in islice(directory.iterdir(), _MANY) if path.is_dir())
    return []


def _is_bundle(directory: Path) -> bool:
    """Whether its manifest.json is a bundle's, and not a web app's."""
    with suppress(OSError, ValueError):
        path = directory / "manifest.json"
        data = read_json(path) if path.stat().st_size < _TEXT // 4 else None
        return isinstance(data, dict) and {"schema_version", "contract"} <= data.keys()
    return False
