"""Files that may lie in a bundle's directory without being listed: tools put them there, and the runtime reads none.

    is_companion("README.md")             # True: a hub shows it as the repository's page
    is_companion("float32/.DS_Store")     # True: a file manager wrote it
    is_companion("float32/README.md")     # False

Hubs, git and file managers add files of their own. Those of hubs and git are accepted only at the top of the
directory: a step's ONNX file names the files beside it, so its folder may hold listed files only.
"""

import re

_FOLDERS = (".git", ".cache/huggingface", ".huggingface", "lost+found")
_TOP = re.compile(
    r"\.git(attributes|ignore)?|\.cache|\.(msc|mdl|mv)|README\.md|(LICEN[CS]E|NOTICE|COPYING)(\.(md|txt))?",
    re.IGNORECASE,
)
_LITTER = re.compile(r"\.DS_Store|\._.+|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]{8,}")


def is_companion(name: str) -> bool:
    """Whether the file or folder of this relative name may exist without being listed."""
    return bool(_TOP.fullmatch(name)) or is_litter(name) or hides(name)


def is_litter(name: str) -> bool:
    """Whether a file manager or NFS leaves such a file in any folder; it may be deleted."""
    return bool(_LITTER.fullmatch(name.rpartition("/")[2]))


def hides(name: str) -> bool:
    """Whether the name is that of a folder which is not searched, or lies in one."""
    return any(name == folder or name.startswith(f"{folder}/") for folder in _FOLDERS)
