"""Runs requests for the decoding tests: one engine, one result with tokens, steps and passes.

    result = run(engine, [Request(prompt)], options)[0]
    result.tokens, result.committed[position], result.nfe

The engines of `BUCKETS` pad their axes, as compiled ones do.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from dpad.models.torch_engine import TorchEngine
from dpad.runtime.decoding import scheduler
from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.decoding.sequence import Sequence
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.onnx import OnnxEngine


@dataclass
class Decoded:
    """One sequence: its canvas, the number of its passes, and when each position was committed."""

    tokens: list[int] = field(default_factory=list)
    nfe: int = 0
    committed: dict[int, tuple[int, int]] = field(default_factory=dict)  # position -> (block, step)
    confidence: dict[int, float] = field(default_factory=dict)

    def add(self, event: StepEvent) -> None:
        """Add the sequence's next event."""
        self.nfe += 1
        assert event.nfe == self.nfe
        for position, confidence in zip(event.positions, event.confidences):
            assert position not in self.committed, "a position is decided once"
            self.committed[int(position)] = (event.block, event.step)
            self.confidence[int(position)] = float(confidence)


def collect(events: Iterable[StepEvent], rows: int) -> list[Decoded]:
    """The result of each sequence, from the events of complete generations."""
    results = [Decoded() for _ in range(rows)]
    for event in events:
        results[event.index].add(event)
        if event.generation is not None:
            assert not results[event.index].tokens, "a row finishes once"
            results[event.index].tokens = event.generation.canvas.tolist()
    return results


def run(engine: Engine, requests: list[Request], options: GenerationOptions) -> list[Decoded]:
    """Decode requests together until all are finished."""
    options.check(engine.contract)
    sequences = [Sequence(request, options, engine.contract, row) for row, request in enumerate(requests)]
    results = [Decoded() for _ in requests]
    for sequence, event in scheduler.run(engine, sequences):
        results[sequence.index].add(event)
        if event.finished:
            results[sequence.index].tokens = sequence.canvas.tolist()
    return results


class Buckets:
    """Pads every axis to a multiple of 16, as compiled engines pad to buckets."""

    def padded(self, axis: str, size: int) -> int:
        """The next multiple of 16."""
        return -(-size // 16) * 16


class BucketTorch(Buckets, TorchEngine):
    """The eager engine with padded axes."""


class BucketOnnx(Buckets, OnnxEngine):
    """ONNX Runtime with padded axes."""


BUCKETS: dict[str, type] = {"torch": BucketTorch, "onnxruntime": BucketOnnx}
