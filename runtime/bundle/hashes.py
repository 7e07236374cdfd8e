"""`Hashing` computes SHA-256 of several files at a time, `sha256` of one file.

    with Hashing({path: path.stat().st_size for path in paths}, advance) as hashing:
        hashing.digest(paths[0])        # waits for this file; raises `OSError` if it cannot be read

Threads hash in parallel, because one thread hashes 0.5 to 2 GB a second and disks and the page cache are faster;
hashlib releases the GIL.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Self

from dpad.runtime.bundle.files import open_file

_PIECE = 1 << 20  # bytes that are read at a time
_THREADS = 8  # most threads

Advance = Callable[[int], None]


class Hashing:
    """Hashes files in threads, the largest first, while a `with` block runs; at its end threads stop.

    `advance` is called with the number of bytes read, in the thread that calls `digest`.
    """

    def __init__(self, sizes: Mapping[Path, int], advance: Advance | None = None) -> None:
        self._advance = advance
        self._left = deque(sorted(sizes, key=sizes.__getitem__, reverse=True))
        self._stopped = False
        # Threads report the bytes they read, or the result for a file. It is a SimpleQueue, which survives an
        # interrupt: `Queue`, which is written in Python, may be left with its lock held.
        self._told: SimpleQueue[int | tuple[Path, str | Exception]] = SimpleQueue()
        self._ended: dict[Path, str | Exception] = {}
        self._threads: list[Thread] = []

    def digest(self, path: Path) -> str:
        """Hex digest of one of the files; raises the error that reading it raised."""
        while path not in self._ended:
            told = self._told.get()
            if isinstance(told, tuple):
                self._ended[told[0]] = told[1]
            elif self._advance:
                self._advance(told)
        found = self._ended[path]
        if isinstance(found, Exception):
            raise found
        return found

    def __enter__(self) -> Self:
        for _ in range(min(_THREADS, os.cpu_count() or 1, len(self._left))):
            thread = Thread(target=self._work, name="dpad-hashes", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system starts no more threads
                break
            self._threads.append(thread)
        if not self._threads:
            self._work()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.clear()
        self._stopped = True
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        for path in iter(self._next, None):
            try:
                found: str | Exception = sha256(path, self._tell)
            except Exception as error:
                found = error
            self._told.put((path, found))

    def _next(self) -> Path | None:
        try:
            return self._left.popleft()
        except IndexError:
            return None

    def _tell(self, amount: int) -> None:
        if self._stopped:
            raise _Stopped
        self._told.put(amount)


class _Stopped(Exception):
    """The block has ended, and nobody waits for this file's digest."""


def sha256(path: Path, advance: Advance | None = None) -> str:
    """Hex digest of a file, read in pieces; `advance` is called with the size of each."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            if advance:
                advance(len(piece))
    return digest.hexdigest()
