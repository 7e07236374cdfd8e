"""`Graphs` records runs as CUDA graphs, one per shape, and replays them.

    if not graphs.launch(shape):
        run.queue()
        if graphs.wanted(shape):
            graphs.capture(shape, run)

A shape is captured when it runs for the second time. A graph holds the addresses of the buffers that it was captured
with, and these never move. A capture fails mostly for lack of memory. Then half of the graphs are dropped, and the
shape is captured again after many more runs.
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
_FIRST, _LAST = 8, 1024  # runs of a shape from a failed capture to the next, doubled from the first to the last


class Graphs:
    """Up to `MOST` recorded graphs; the least recently used is dropped first.

    `failure` is the reason why the last capture failed; None if it succeeded.
    """

    def __init__(self, device: Device, enabled: bool) -> None:
        self._device, self._enabled, self._paused = device, enabled, False
        self._due: OrderedDict[StepShape, int] = OrderedDict()  # runs until a shape is captured
        self._waits: dict[StepShape, int] = {}  # the length of the last wait after a failure, in runs
        self._graphs: OrderedDict[StepShape, tuple[Any, Run]] = OrderedDict()
        self.failure: str | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def __contains__(self, shape: StepShape) -> bool:
        return shape in self._graphs

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within this block no graph is launched or captured."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def launch(self, shape: StepShape) -> bool:
        """Queue the graph of `shape`; returns False if there is none."""
        if self._paused or shape not in self._graphs:
            return False
        self._graphs.move_to_end(shape)
        self._device.launch(self._graphs[shape][0])
        return True

    def wanted(self, shape: StepShape) -> bool:
        """Whether to capture `shape`, which has just run: on its second run, and again long after a failure."""
        if not self._enabled or self._paused:
            return False
        left = self._due.pop(shape, 1)
        self._due[shape] = max(left - 1, 0)
        while len(self._due) > 8 * MOST:
            self._waits.pop(self._due.popitem(last=False)[0], None)
        return left == 0

    def capture(self, shape: StepShape, run: Run) -> None:
        """Capture `run`, which is kept as long as its graph.

        An error is stored in `failure` and not raised, because the step itself has run already.
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
        """Drop half of the graphs to free memory, and capture `shape` again later."""
        self.failure = str(error)
        self._waits[shape] = self._due[shape] = min(2 * self._waits.get(shape, _FIRST // 2), _LAST)
        for other in list(self._graphs)[: -(-len(self._graphs) // 2)]:
            self._drop(other)

    def close(self) -> None:
        """Drop all graphs."""
        for shape in list(self._graphs):
            self._drop(shape)

    def _abandon(self) -> None:
        """End a failed capture and drop what it recorded."""
        try:
            self._device.free_graph(self._device.end_capture())
        except EngineError:
            return  # ending an invalid capture fails too; the first error is the one that tells why

    def _drop(self, shape: StepShape) -> None:
        graph, _ = self._graphs.pop(shape)
        self._device.free_graph(graph)
