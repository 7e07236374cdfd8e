"""`Health`: whether a server can answer. Live is its event loop; ready is its engine, tried by a short decode.

    health = Health(model, admission)
    await health.obstacle()         # "" or what is in the way

While requests run, the passes that they make are the proof, and nothing is added to the load.
"""

import asyncio
from time import monotonic

from dpad.runtime.decoding.options import Options
from dpad.runtime.decoding.request import Request
from dpad.runtime.errors import DpadError
from dpad.runtime.model import DiffusionModel
from dpad.runtime.show import kind
from dpad.serving.admission import Admission

FRESH, PATIENCE = 5.0, 30.0  # seconds that a proof counts, and that a pass may take


class Health:
    """Of one model."""

    def __init__(self, model: DiffusionModel, admission: Admission) -> None:
        self._model, self._admission = model, admission
        self._lock = asyncio.Lock()
        self._proved, self._moved, self._passes = -FRESH, monotonic(), 0

    async def obstacle(self) -> str:
        """Why no request would be served now, empty if one would."""
        if self._admission.draining:
            return "this server is ending"
        async with self._lock:  # one canary serves all who ask
            status, now = self._model.status, monotonic()
            if status.passes != self._passes or not status.running:
                self._passes, self._moved = status.passes, now
            if status.running:
                silent = now - self._moved
                return f"no pass has ended in {silent:.0f} s" if silent > PATIENCE else ""
            return "" if now - self._proved < FRESH else await self._canary()

    async def _canary(self) -> str:
        contract = self._model.facts.contract
        options: Options = {"decoder": "fixed", "steps": 1, "deadline": PATIENCE}
        length = contract.block_length if contract.block_causal else 1
        options["gen_length"] = options["block_length"] = length
        token = 0 if contract.mask_token_id else 1
        try:
            async with asyncio.timeout(PATIENCE):
                await self._model.agenerate(Request((token,)), **options)
        except (DpadError, TimeoutError) as error:
            return f"the engine decodes nothing: {kind(error)}"
        self._proved = monotonic()
        return ""
