"""`RemoteModel`: a bundle whose engine runs in another process. When that process ends, another one is started.

    async with RemoteModel.opened(Opening(dpad.load, Path("bundles/tiny"), {}), progress) as model:
        async for event in model.astream(request, gen_length=64):
            ...

Prompts and options are read in this process, passes run in the other one. When the other one ends, each of its
sequences ends with an error. Until the next one is open, callers get an error that says when to try again.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from math import ceil
from time import monotonic, perf_counter
from typing import Self, Unpack

from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.limits import Status
from dpad.runtime.decoding.options import Options
from dpad.runtime.decoding.request import Request
from dpad.runtime.errors import BundleError, DpadError, ModelClosed
from dpad.runtime.model import DiffusionModel
from dpad.runtime.reader import Facts, Reader, tokenizer_directory
from dpad.runtime.show import kind
from dpad.runtime.text.codec import TextCodec
from dpad.serving.engine_process import EngineProcess, Tell
from dpad.serving.errors import ApiError
from dpad.serving.log import Elsewhere, logger, where
from dpad.serving.wire import Cancel, Failure, Opening, Submit, Told

_STEADY = 60.0  # seconds that a process must run for the next start to come without delay
_LONGEST = 30.0  # seconds of delay before a start, at most
_MOST_UNSENT = 16 << 20  # bytes that an engine may leave unread; beyond, it hangs, and requests are refused
_LATER = 10  # seconds of Retry-After while the engine hangs
_IDLE = Status(0, 0, 0, 0)

Box = asyncio.Queue[StepEvent | Exception]


class RemoteModel(Reader):
    """A model for one event loop, with the part of `DiffusionModel` that a service needs."""

    def __init__(self, opening: Opening, process: EngineProcess, facts: Facts, codec: TextCodec | None) -> None:
        super().__init__(facts, codec)
        # "auto" must not choose another engine later, since engines may decide near ties differently.
        self._opening = opening._replace(options=opening.options | {"engine": facts.engine})
        self._process: EngineProcess | None = process
        self._boxes: dict[int, Box] = {}
        self._numbers = count()
        self._status, self._passes = _IDLE, 0  # status of this process, passes of the earlier ones
        self._again = 0.0  # the `monotonic` time at which the next process will probably be open
        self._closed = False
        self.restarts = self.lost = 0  # processes after the first one, sequences that ended with a process

    @classmethod
    @asynccontextmanager
    async def opened(cls, opening: Opening, progress: Tell) -> AsyncIterator[Self]:
        """Open a model in another process; raises the error that loading raises there."""
        process, (facts, has_tokenizer) = await EngineProcess.start(opening, progress)
        try:
            codec = TextCodec.open(tokenizer_directory(opening.directory)) if has_tokenizer else None
            model = cls(opening, process, facts, codec)
        except BaseException:
            await process.stop()
            raise
        supervising = asyncio.create_task(model._supervise(process))
        try:
            yield model
        finally:
            model.close()
            supervising.cancel()
            await asyncio.wait({supervising})

    @property
    def status(self) -> Status:
        """The status that the process sent last, with the passes of all processes."""
        return self._status._replace(passes=self._passes + self._status.passes)

    def check_open(self) -> None:
        """Raise `ModelClosed`, or `ApiError` if there is no engine or it takes no messages."""
        if self._closed:
            raise ModelClosed("this server's model is closed")
        if self._process is None:
            left = ceil(self._again - monotonic())
            raise ApiError(503, "the engine has ended and is being started again", "engine_ended", retry_after=left)
        if self._process.unsent > _MOST_UNSENT:
            raise ApiError(503, "the engine hangs", "engine_hangs", retry_after=_LATER)

    async def astream(self, request: Request, **options: Unpack[Options]) -> AsyncGenerator[StepEvent, None]:
        """Yield one `StepEvent` per pass; cancelling the task cancels the remaining passes.

        Raises the errors that decoding raises, `ApiError` if the process ends, and `ModelClosed`.
        """
        self.check_open()
        process, number, box = self._process, next(self._numbers), Box()
        assert process is not None
        self._boxes[number] = box
        process.send(Submit(number, request, options, perf_counter()))
        try:
            while True:
                told = await box.get()
                if isinstance(told, Exception):
                    raise told
                yield told
                if told.generation is not None:
                    return
        finally:
            if self._boxes.pop(number, None) is not None and self._process is process:
                process.send(Cancel(number))

    def close(self) -> None:
        """End all sequences with `ModelClosed`, and refuse new ones with it."""
        self._closed = True
        self._end_all(lambda: ModelClosed("this server's model was closed"))

    def _end_all(self, error: Callable[[], Exception]) -> int:
        """End all sequences, each with an `error` of its own; returns their number."""
        boxes = list(self._boxes.values())
        self._boxes.clear()
        for box in boxes:
            box.put_nowait(error())
        return len(boxes)

    def _take(self, told: Told) -> None:
        """Hand the outcomes in a message to their streams."""
        self._status = told.status
        for number, outcome in told.outcomes:
            last = isinstance(outcome, Failure) or outcome.generation is not None
            box = self._boxes.pop(number, None) if last else self._boxes.get(number)
            if box is not None:
                box.put_nowait(_error(outcome) if isinstance(outcome, Failure) else outcome)

    async def _supervise(self, process: EngineProcess) -> None:
        """Start another process when one ends; delay starts more and more while processes end soon."""
        ended = 0
        try:
            while True:
                began = monotonic()
                logger.info(
                    "engine started", extra={"facts": {"process": process.number, "seconds": round(process.seconds, 3)}}
                )
                await self._follow(process)
                ended = 0 if monotonic() - began > _STEADY else ended
                while self._process is None:
                    delay = min(_LONGEST, 2.0 ** (ended - 1)) if ended else 0.0
                    ended += 1
                    self._again = monotonic() + delay + process.seconds
                    logger.info("engine starts again", extra={"facts": {"in_seconds": delay}})
                    await asyncio.sleep(delay)
                    self._process = await self._start()
                process = self._process
        finally:
            await process.stop()

    async def _follow(self, process: EngineProcess) -> None:
        """Hand on events until `process` ends; then end its sequences."""
        try:
            await process.listen(self._take)
        except Exception as error:  # a message cannot be read
            logger.error("failed", extra={"facts": where(error)})
        self._process, self._again = None, monotonic() + process.seconds
        self._status, self._passes = _IDLE, self.status.passes
        lost = self._end_all(_ended)
        self.lost += lost
        await process.stop()
        facts = {"process": process.number, **process.ending, "sequences": lost}
        logger.error("engine ended", extra={"facts": facts})

    async def _start(self) -> EngineProcess | None:
        """Start another process; returns None if it cannot be started."""
        try:
            process, (facts, _) = await EngineProcess.start(self._opening, _untold)
            if facts.digest != self.facts.digest:
                await process.stop()
                raise BundleError("the bundle was replaced while it was served; start the server again")
        except (DpadError, OSError, MemoryError) as error:
            logger.error("engine not started", extra={"facts": {"error": kind(error)}})
            return None
        self.facts = facts
        self.restarts += 1
        return process


Model = DiffusionModel | RemoteModel  # what a service can serve


def _ended() -> ApiError:
    return ApiError(
        503, "the engine ended before this answer was complete; send the request again", "engine_ended", retry_after=1
    )


def _error(failure: Failure) -> DpadError:
    failure.error.__cause__ = Elsewhere(failure.where)
    return failure.error


def _untold(what: str, done: int, total: int | None) -> None:
    """Ignore the progress of a start that nobody watches."""
