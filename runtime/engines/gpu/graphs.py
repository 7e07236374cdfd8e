"""`Graphs`: runs recorded as CUDA graphs, one a shape.

    if not graphs.launch(shape):
        run.queue()
        if graphs.wanted(shape):
            graphs.capture(shape, run)

A shape is captured when it comes a second time. A graph names the buffers it was captured with, none of which ever
moves. Where capturing fails, for want of memory mostly, half of the recordings are given up, and the shape is tried
again when it has come many times more.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.program import Run
from dpad.runtime.engines.gpu.step_shape import StepShape
from dpad.runtime.errors import EngineError

MOST = 128
_FIRST, _LAST = 8, 1024  # runs of a shape until a failed capture is tried again: doubled from one to the other


class Graphs:
    """At most `MOST` recordings, the least recently used of which goes first.

    `failure` says why the last capture failed; None if it did not.
    """

    def __init__(self, device: Device, enabled: bool) -> None:
        self._device, self._enabled, self._paused = device, enabled, False
        self._due: OrderedDict[StepShape, int] = OrderedDict()  # runs until a shape is captured
        self._waits: dict[StepShape, int] = {}  # after its last failure
        self._graphs: OrderedDict[StepShape, tuple[Any, Run]] = OrderedDict()
        self.failure: str | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def __contains__(self, shape: StepShape) -> bool:
        return shape in self._graphs

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile nothing is launched and nothing captured."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def launch(self, shape: StepShape) -> bool:
        """Queue the recording of `shape`; False if there is none."""
        if self._paused or shape not in self._graphs:
            return False
        self._graphs.move_to_end(shape)
        self._device.launch(self._graphs[shape][0])
        return True

    def wanted(self, shape: StepShape) -> bool:
        """Whether to record now what has just run: the second time, and long after a failure."""
        if not self._enabled or self._paused:
            return False
        left = self._due.pop(shape, 1)
        self._due[shape] = max(left - 1, 0)
        while len(self._due) > 8 * MOST:
            self._waits.pop(self._due.popitem(last=False)[0], None)
        return left == 0

    def capture(self, shape: StepShape, run: Run) -> None:
        """Record `run`, which is kept as long as the recording.

        A failure is remembered in `failure` and not raised: the step has run already.
        """
        try:
            self._device.begin_capture()
            try:
                run.queue()
            except EngineError:
                self._abandon()
                raise
            graph = self._device.end_capture()
        except EngineError as error:
            self.failed(shape, error)
            return
        self.failure = None
        self._waits.pop(shape, None)
        self._graphs[shape] = (graph, run)
        if len(self._graphs) > MOST:
            self._drop(next(iter(self._graphs)))

    def failed(self, shape: StepShape, error: EngineError) -> None:
        """Make room, and try `shape` again later."""
        self.failure = str(error)
        self._waits[shape] = self._due[shape] = min(2 * self._waits.get(shape, _FIRST // 2), _LAST)
        for other in list(self._graphs)[: -(-len(self._graphs) // 2)]:
            self._drop(other)

    def close(self) -> None:
        """Drop all of them."""
        for shape in list(self._graphs):
            self._drop(shape)

    def _abandon(self) -> None:
        """Take the stream out of capturing; what it recorded is of no use."""
        try:
            self._device.free_graph(self._device.end_capture())
        except EngineError:
            return  # a spoiled capture ends with an error of its own; the first one tells why

    def _drop(self, shape: StepShape) -> None:
        graph, _ = self._graphs.pop(shape)
        self._device.free_graph(graph)
