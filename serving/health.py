"""`Health`: whether a server is ready. It is if its engine decodes, which a short decode (the canary) tries.

    health = Health(model, admission)
    await health.obstacle()         # why the server is not ready; empty if it is

While requests run, their passes are the proof, and no canary is added to the load.
"""

import asyncio
from contextlib import aclosing
from time import monotonic

from dpad.runtime.decoding.options import Options
from dpad.runtime.decoding.request import Request
from dpad.runtime.errors import DpadError
from dpad.runtime.show import kind
from dpad.serving.admission import Admission
from dpad.serving.errors import ApiError
from dpad.serving.remote_model import Model
from dpad.serving.settings import PATIENCE

FRESH = 5.0  # seconds for which a canary's result is valid


class Health:
    """The readiness of one model."""

    def __init__(self, model: Model, admission: Admission, patience: float = PATIENCE) -> None:
        self._model, self._admission, self._patience = model, admission, patience
        self._lock = asyncio.Lock()
        self._proved, self._moved, self._passes = -FRESH, monotonic(), 0

    async def obstacle(self) -> str:
        """Why no request can be served now; empty if one can."""
        if self._admission.draining:
            return "this server is ending"
        try:
            self._model.check_open()
        except (DpadError, ApiError) as error:
            return str(error)
        async with self._lock:  # simultaneous callers share one canary
            status, now = self._model.status, monotonic()
            if status.passes != self._passes or not status.running:
                self._passes, self._moved = status.passes, now
            if status.running:
                silent = now - self._moved
                return f"no pass has ended in {silent:.0f} s" if silent > self._patience else ""
            return "" if now - self._proved < FRESH else await self._canary()

    async def _canary(self) -> str:
        contract = self._model.facts.contract
        options: Options = {"decoder": "fixed", "steps": 1, "deadline": self._patience}
        length = contract.block_length if contract.block_causal else 1
        options["gen_length"] = options["block_length"] = length
        token = 0 if contract.mask_token_id else 1
        try:
            async with (
                asyncio.timeout(self._patience),
                aclosing(self._model.astream(Request((token,)), **options)) as passes,
            ):
                async for _ in passes:
                    pass
        except (DpadError, ApiError, TimeoutError) as error:
            return f"the engine decodes nothing: {kind(error)}"
        self._proved = monotonic()
        return ""
