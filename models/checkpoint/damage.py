"""`damage`: what lies in the place of a file, where it is not what its name says.

    damage(Path("model.safetensors"))       # "it is a Git LFS pointer, not the file: run `git lfs pull` in the clone"

Clones without their large files, downloads that broke off, web pages under a file's name: parsers call all of them
"not valid", and the way out differs.
"""

import re
from pathlib import Path

from dpad.runtime.bundle import files

TEXTS = (".jinja", ".txt")
_HEAD = 512  # bytes that tell
_LINK = (
    "it holds the target of a link, which a copy made text: copy the original with `cp -rL`, or fetch it with "
    "`hf download ID --local-dir DIR`"
)
_PAGE = (
    "it is a web page or a server's message, not the file: the address was that of a page, or wants a login; fetch it "
    "with `hf download ID --local-dir DIR`"
)
_PICKLE = "it is pickle, as torch.save writes it, which is never loaded: convert it to safetensors"
_ZIP = "it is a zip archive: unpack it, or if torch.save wrote it (pickle, never loaded), convert it to safetensors"

# Of files of all kinds: what stands for the file, or for a link to it.
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
    rb"GGUF": "it is GGUF, made for llama.cpp: take the checkpoint that it was made from",
    rb"PK\x03\x04": _ZIP,
    rb"\x80[\x02-\x05]": _PICKLE,
    rb"\x89HDF": "it is HDF5, of Keras or TensorFlow: take the repository's safetensors",
}
# Of all but plain text, whose readers know it.
_MARK = {rb"\xef\xbb\xbf": "it begins with a byte order mark, as some editors write one: save it as UTF-8 without"}


def damage(path: Path) -> str:
    """What lies at `path` instead of a file of its name, and the way out; empty if it is nothing that is known."""
    head, size = _begin(path)
    if size == 0:
        return "it is empty: the download or the copy broke off, or the disk was full; fetch it again"
    if head and not head.strip(b"\0"):
        return "it begins with nothing but zeros, as an unfinished download does; fetch it again"
    return _told(_POINTERS | _OTHERS | ({} if path.suffix in TEXTS else _MARK), head)


def _begin(path: Path) -> tuple[bytes, int]:
    """The first bytes of a regular file, and its size; no bytes and -1 where there is none."""
    try:
        with files.open_file(path) as file:
            return file.read(_HEAD), file.seek(0, 2)
    except (OSError, ValueError):
        return b"", -1


def _told(signs: dict[bytes, str], head: bytes) -> str:
    return next((told for sign, told in signs.items() if re.match(sign, head.lstrip(b" \t\r\n"))), "")
