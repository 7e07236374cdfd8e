"""`walk`: everything below a directory, as it lies there.

    for name, mode in walk(Path("bundles/tiny")):     # "float32", "float32/step.onnx", ...
        stat.S_ISREG(mode)

Directories come from outside: links are not followed, nothing is opened, and depth costs no stack.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk(directory: Path, enters: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, int]]:
    """Relative name and mode (of `lstat`) of every entry below `directory`, a folder before what lies in it.

    Folders whose name `enters` turns down are not entered. Raises `OSError` for a folder that cannot be read.
    """
    left = [""]
    while left:
        folder = left.pop()
        with os.scandir(directory / folder) as entries:
            found = sorted(
                (entry.name, entry.stat(follow_symlinks=False).st_mode, entry.is_dir(follow_symlinks=False))
                for entry in entries
            )
        folders = []
        for name, mode, is_folder in found:
            path = f"{folder}/{name}" if folder else name
            yield path, mode
            if is_folder and enters(path):
                folders.append(path)
        left += reversed(folders)
