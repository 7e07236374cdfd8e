"""`damage`: recognises a file whose contents are not what its name says.

    damage(Path("model.safetensors"))       # "it is a Git LFS pointer, not the file: run `git lfs pull` in the clone"

A clone without its large files, an interrupted download, a web page under a file's name: parsers call each of them
"not valid", but each has a different solution.
"""

import re
from pathlib import Path

from dpad.runtime.bundle import files

TEXTS = (".jinja", ".txt")
_HEAD = 512  # bytes that are examined
_LINK = (
    "it holds the path of a link, written as text by a copy: copy the original with `cp -rL`, or fetch it with "
    "`hf download ID --local-dir DIR`"
)
_PAGE = (
    "it is a web page or a server's message, not the file: the address was that of a page, or needs a login; fetch it "
    "with `hf download ID --local-dir DIR`"
)
_PICKLE = "it is pickle, as torch.save writes it, which is never loaded: convert it to safetensors"
_ZIP = "it is a zip archive: unpack it, or if torch.save wrote it (pickle, never loaded), convert it to safetensors"

# Contents that stand for a file or a link; they are recognised in files of every kind.
_POINTERS = {
    rb"version https://git-lfs": "it is a Git LFS pointer, not the file: run `git lfs pull` in the clone",
    rb"# xet version": "it is a Git Xet pointer, not the file: fetch it with `hf download ID --local-dir DIR`",
    rb"/annex/objects/|(\.\./)*\.git/annex/": "it is a git-annex pointer, not the file: run `git annex get` there",
    rb"(\.\./)+blobs/|!<symlink>|IntxLNK\x01": _LINK,
}
_OTHERS = {
    rb"(?i)<(!doctype|html|head|\?xml|error)\b": _PAGE,
    rb"\xff\xfe|\xfe\xff": "it is UTF-16: save it as UTF-8",
    rb"\x1f\x8b|\x28\xb5\x2f\xfd|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!": "it is compressed: unpack it",
    rb"GGUF": "it is GGUF, made for llama.cpp: use the checkpoint that it was made from",
    rb"PK\x03\x04": _ZIP,
    rb"\x80[\x02-\x05]": _PICKLE,
    rb"\x89HDF": "it is HDF5, of Keras or TensorFlow: use the repository's safetensors",
}
# Recognised in all files except plain text, whose readers accept it.
_MARK = {rb"\xef\xbb\xbf": "it begins with a byte order mark, which some editors write: save it as UTF-8 without one"}


def damage(path: Path) -> str:
    """What the file at `path` is instead of what its name says, and the way out; empty if that is unknown."""
    head, size = _begin(path)
    if size == 0:
        return "it is empty: the download or the copy was interrupted, or the disk was full; fetch it again"
    if head and not head.strip(b"\0"):
        return "it begins with zeros only, like an unfinished download; fetch it again"
    return _told(_POINTERS | _OTHERS | ({} if path.suffix in TEXTS else _MARK), head)


def _begin(path: Path) -> tuple[bytes, int]:
    """The first bytes and the size of a regular file; no bytes and -1 if there is none."""
    try:
        with files.open_file(path) as file:
            return file.read(_HEAD), file.seek(0, 2)
    except (OSError, ValueError):
        return b"", -1


def _told(signs: dict[bytes, str], head: bytes) -> str:
    return next((told for sign, told in signs.items() if re.match(sign, head.lstrip(b" \t\r\n"))), "")
