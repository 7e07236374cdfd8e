"""`run_plan`: one step of a compiled plan with every input given and every output returned.

    outputs = run_plan(engine, feed)     # in the order of the contract

For comparisons only: it overwrites the engine's pool, and no other thread may step meanwhile.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpad.export.parity.feeds import Feed
from dpad.runtime.engines.bfloat16 import from_bits, to_bits
from dpad.runtime.engines.step import StepInputs
from dpad.runtime.engines.tensorrt.engine import TrtEngine
from dpad.runtime.errors import EngineError


def run_plan(engine: TrtEngine, feed: Feed) -> list[NDArray[Any]]:
    """The outputs of a step over `feed`, whose tensors [P, G, D] are the first slots of the pool.

    Rows in bfloat16 are float32 arrays here: numpy has no bfloat16. Slot 0 must be zero, as it is in every pool.
    """
    half, device, contract = engine.dtype == "bfloat16", engine.device, engine.contract
    canvas, gather, cached, decoded, *pool = (feed[spec.name] for spec in contract.inputs())
    if (slots := len(pool[0])) > engine.slots.size:
        raise EngineError(
            f"a comparison needs {slots} slots of keys and values, and {engine.name} has memory for "
            f"{engine.slots.size}; use a larger GPU, or export with a smaller --max-batch"
        )
    device.make_current()
    held = [to_bits(tensor) if half else np.ascontiguousarray(tensor) for tensor in pool]
    for index, tensor in enumerate(held):
        device.upload(engine.pool.at(index), tensor)
    device.synchronise()
    outputs = engine.step(StepInputs(canvas, gather, cached, decoded, want_logits=True))
    shape = (*gather.shape, contract.kv_heads, contract.head_size)
    rows = [np.empty(shape, dtype=np.uint16 if half else engine.dtype) for _ in pool]
    for index, tensor in enumerate(rows):
        device.download(tensor, engine.new_rows.at(index))
    device.synchronise()
    assert outputs.logits is not None
    new = [from_bits(tensor) if half else tensor for tensor in rows]
    return [outputs.token_ids, outputs.odds_against, outputs.logits, *new]
