"""What may lie in a bundle's directory beside its files, because tools put it there and nothing is read from it.

    is_companion("README.md")             # True: of the hub's page
    is_companion("float32/.DS_Store")     # True: of a file manager
    is_companion("float32/README.md")     # False

A hub, git and file managers add files of their own. Those that belong to the directory as a whole count at its top
only: a step names the files beside it, and there none may lie that is not listed.
"""

import re

_FOLDERS = (".git", ".cache/huggingface", ".huggingface", "lost+found")
_TOP = re.compile(
    r"\.git(attributes|ignore)?|\.cache|\.(msc|mdl|mv)|README\.md|(LICEN[CS]E|NOTICE|COPYING)(\.(md|txt))?",
    re.IGNORECASE,
)
_LITTER = re.compile(r"\.DS_Store|\._.+|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]{8,}")


def is_companion(name: str) -> bool:
    """Whether the file or folder of this relative name may be there without being listed."""
    return bool(_TOP.fullmatch(name)) or is_litter(name) or hides(name)


def is_litter(name: str) -> bool:
    """Whether it is what a file manager or NFS leaves in any folder, and nobody misses."""
    return bool(_LITTER.fullmatch(name.rpartition("/")[2]))


def hides(name: str) -> bool:
    """Whether it is a folder, or in a folder, of whose contents nothing is looked at."""
    return any(name == folder or name.startswith(f"{folder}/") for folder in _FOLDERS)
