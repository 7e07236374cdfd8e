"""How the decoding tests run a request: one engine, one result with tokens, steps and passes.

    result = run(engine, [Request(prompt)], options)[0]
    result.tokens, result.committed[position], result.nfe

The engines of `BUCKETS` pad their axes, as compiled ones do.
"""

from dataclasses import dataclass, field

from dpad.models.torch_engine import TorchEngine
from dpad.runtime.decoding.generate import StepEvent, generate
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.decoding.request import Request
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.onnx import OnnxEngine


@dataclass
class Decoded:
    """One row: its canvas, passes it took part in, and when each position was decided."""

    tokens: list[int] = field(default_factory=list)
    nfe: int = 0
    committed: dict[int, tuple[int, int]] = field(default_factory=dict)  # position -> (block, step)
    confidence: dict[int, float] = field(default_factory=dict)


def collect(events: list[StepEvent], rows: int) -> list[Decoded]:
    """What the events say of each row."""
    results = [Decoded() for _ in range(rows)]
    for event in events:
        for row in event.active:
            results[row].nfe += 1
        for row, position, confidence in zip(event.rows, event.positions, event.confidences):
            assert position not in results[row].committed, "a position is decided once"
            results[row].committed[int(position)] = (event.block, event.step)
            results[row].confidence[int(position)] = float(confidence)
        for row, canvas in zip(event.finished, event.canvases):
            assert not results[row].tokens, "a row finishes once"
            results[row].tokens = canvas.tolist()
    return results


def run(engine: Engine, requests: list[Request], options: GenerationOptions) -> list[Decoded]:
    """Decode a batch to its end."""
    return collect(list(generate(engine, requests, options)), len(requests))


class Buckets:
    """Pads every axis up to a multiple of 16, as compiled engines do."""

    def padded(self, axis: str, size: int) -> int:
        """The next multiple of 16."""
        return -(-size // 16) * 16


class BucketTorch(Buckets, TorchEngine):
    """The eager engine with padded axes."""


class BucketOnnx(Buckets, OnnxEngine):
    """ONNX Runtime with padded axes."""


BUCKETS: dict[str, type] = {"torch": BucketTorch, "onnxruntime": BucketOnnx}
