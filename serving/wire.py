"""The messages between the two processes of a server, and how they are written to a socket.

    writer.write(packed(Submit(1, request, options, perf_counter())))
    message = await received(reader)            # in an event loop
    message = read(file)                        # in a thread

A message is its length and then its pickle. Both processes run this package, and the server has started the other one.
"""

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.limits import Status
from dpad.runtime.decoding.options import Options
from dpad.runtime.decoding.request import Request
from dpad.runtime.errors import DpadError
from dpad.runtime.model import DiffusionModel
from dpad.runtime.reader import Facts

_LENGTH = 4  # bytes


class Opening(NamedTuple):
    """Open this model: call `load(directory, **options, progress=...)`; `load` is `dpad.load` or a function like it."""

    load: Callable[..., DiffusionModel]
    directory: Path
    options: dict[str, Any]


class Progress(NamedTuple):
    """Progress of loading, as `dpad.load` reports it."""

    what: str
    done: int
    total: int | None


class Opened(NamedTuple):
    """The model is open."""

    facts: Facts
    has_tokenizer: bool


class Failed(NamedTuple):
    """The model could not be opened; the process ends."""

    error: Exception


class Submit(NamedTuple):
    """Decode a sequence. `began` is a `perf_counter` time, which is the same clock in all processes of a machine."""

    number: int
    request: Request
    options: Options
    began: float


class Cancel(NamedTuple):
    """Cancel a sequence."""

    number: int


class Failure(NamedTuple):
    """The error that ended a sequence, and the facts about its origin for the log."""

    error: DpadError
    where: dict[str, Any]


class Told(NamedTuple):
    """The outcomes of passes, by the numbers of their sequences, and the model's status after them."""

    status: Status
    outcomes: list[tuple[int, StepEvent | Failure]]


def packed(message: object) -> bytes:
    """Write a message as bytes."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(_LENGTH) + data


async def received(reader: asyncio.StreamReader) -> Any:
    """Read the next message; raises `EOFError` at the end."""
    length = int.from_bytes(await reader.readexactly(_LENGTH))
    return pickle.loads(await reader.readexactly(length))  # noqa: S301 - from the process that this one has started


def read(file: BinaryIO) -> Any:
    """Read the next message; raises `EOFError` at the end."""
    file.read(_LENGTH)
    return pickle.load(file)  # noqa: S301 - from the process that has started this one
