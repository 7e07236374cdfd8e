"""`walk` lists everything below a directory.

    for name, mode in walk(Path("bundles/tiny")):     # "float32", "float32/step.onnx", ...
        stat.S_ISREG(mode)

Directories are untrusted: links are not followed, files are not opened, and deep nesting does not recurse.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk(directory: Path, enters: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, int]]:
    """Yield relative name and mode (of `lstat`) of every entry below `directory`, a folder before its contents.

    A folder is entered only if `enters(name)` is true. Raises `OSError` for a folder that cannot be read.
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
