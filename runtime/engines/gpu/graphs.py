"""`Graphs`: steps recorded as CUDA graphs, one a shape.

    if not graphs.launch(shape):
        ...  # run the step eagerly
        if graphs.wanted(shape):
            graphs.capture(shape, owner, queue_the_step)

A shape is captured when it comes a second time. A graph names the buffers it was captured with, none of which ever
moves. Where capturing fails, steps run eagerly from then on.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from dpad.runtime.engines.gpu.device import Device
from dpad.runtime.engines.gpu.step_shape import StepShape
from dpad.runtime.errors import EngineError

_MOST = 32


class Graphs:
    """At most `_MOST` recordings, the least recently used of which goes first.

    Where `failure` says why not, nothing more is captured; what is captured stays.
    """

    def __init__(self, device: Device, enabled: bool) -> None:
        self._device, self._enabled = device, enabled
        self._seen: OrderedDict[StepShape, None] = OrderedDict()
        self._graphs: OrderedDict[StepShape, tuple[Any, Any]] = OrderedDict()
        self.failure: str | None = None

    def launch(self, shape: StepShape) -> bool:
        """Queue the recording of `shape`; False if there is none."""
        if shape not in self._graphs:
            return False
        self._graphs.move_to_end(shape)
        self._device.launch(self._graphs[shape][0])
        return True

    def wanted(self, shape: StepShape) -> bool:
        """Whether to record now what has just run: yes the second time."""
        if not self._enabled or self.failure is not None:
            return False
        if shape in self._seen:
            return True
        self._seen[shape] = None
        while len(self._seen) > 8 * _MOST:
            self._seen.popitem(last=False)
        return False

    def capture(self, shape: StepShape, owner: Any, queue: Callable[[], None]) -> None:
        """Record what `queue` queues. `owner` is kept as long as the recording.

        A failure is remembered in `failure` and not raised: the step has run already.
        """
        try:
            self._device.begin_capture()
            try:
                queue()
            except EngineError:
                self._abandon()
                raise
            graph = self._device.end_capture()
        except EngineError as error:
            self.failure = str(error)
            return
        self._graphs[shape] = (graph, owner)
        while len(self._graphs) > _MOST:
            self._drop(next(iter(self._graphs)))

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
