"""`dpad serve` over an engine that takes the same time for every pass and computes nothing.

    python benchmarks/serving_load/null_server.py 5 8 serve bundles/tiny --port 0     # 5 ms a pass, 8 sequences

All that follows the two numbers is the command line of `dpad`, and the server is the real one. Tokens depend on the
canvas alone, so an answer does not depend on the requests beside it; none of the tokens ends a text.
"""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import dpad
from dpad.cli import main
from dpad.commands import serve
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.slots import Slots
from dpad.runtime.engines.step import Decisions, StepInputs, StepOutputs
from serving_load import null_server  # by the name that the engine's process finds

_FREE = 10**6  # rows of padding that cost nothing, so that all sequences share a pass
_ROUND = 32


class PacedEngine(Engine):
    """A pass takes `seconds`, whatever its shape, and gives tokens of `plain`."""

    name, dtype = "null", "float32"

    def __init__(self, contract: StepContract, plain: list[int], seconds: float, slots: int | None = None) -> None:
        super().__init__()
        self.contract, self.pass_rows = contract, _FREE
        self.slots = Slots((slots or contract.max_batch * contract.max_length) + 1)
        self._plain, self._seconds = np.array(plain), seconds

    def padded(self, axis: str, size: int) -> int:
        """Sizes in steps, as on a GPU."""
        return min(-(-size // _ROUND) * _ROUND, self.contract.max_length)

    def _step(self, inputs: StepInputs) -> StepOutputs:
        end = time.perf_counter() + self._seconds
        positions = np.take_along_axis(inputs.gather_indices, inputs.decode_rows, axis=1)
        tokens = self._plain[(31 * positions + inputs.canvas[:, :1]) % len(self._plain)]
        odds = (1 + positions % 7).astype(np.float32)
        decided = Decisions(tokens, odds, -odds, -odds) if inputs.sampling is not None else None
        logits = None
        if inputs.want_logits:
            logits = np.zeros((*tokens.shape, self.contract.vocab_size), np.float32)
        time.sleep(max(0.0, end - time.perf_counter()))
        return StepOutputs(tokens, odds, decided, logits)


def load(
    pass_ms: float,
    batch: int,
    bundle: Path,
    *,
    max_running: int | None = None,
    max_waiting: int = 64,
    slots: int | None = None,
    **ignored: Any,
) -> dpad.DiffusionModel:
    """In place of `dpad.load`: the tokenizer, presets and limits of `bundle` over a `PacedEngine`."""
    with dpad.load(bundle, threads=1) as opened:
        contract, codec, presets = opened.facts.contract, opened.codec, opened.presets
    special = {contract.mask_token_id, contract.eos_token_id}
    plain = [token for token in range(contract.vocab_size) if token not in special and codec.decode([token]).strip()]
    engine = PacedEngine(replace(contract, max_batch=batch), plain, pass_ms / 1e3, slots)
    limits: Any = {"max_running": max_running or batch, "max_waiting": max_waiting, "digest": opened.facts.digest}
    return dpad.DiffusionModel(engine, codec, presets, **limits)


if __name__ == "__main__":
    serve.load = partial(null_server.load, float(sys.argv.pop(1)), int(sys.argv.pop(1)))  # type: ignore[assignment]
    main()
