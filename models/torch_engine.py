"""`TorchEngine`: the eager reference. Slow and plain; every other engine is compared to it.

    engine = TorchEngine(load_model(...), contract, "float32")
"""

from dataclasses import dataclass

import numpy as np
import torch

from dpad.models.checkpoint import Model
from dpad.models.step import Step
from dpad.runtime.contract import StepContract
from dpad.runtime.engine import Engine, StepInputs, StepOutputs


@dataclass
class TorchCache:
    """Key and value tensors of each layer in turn: [B, T, G, D] each."""

    tensors: list[torch.Tensor]


class TorchEngine(Engine):
    """Runs `Step` eagerly on the device of the model's weights."""

    def __init__(self, model: Model, contract: StepContract, dtype: str) -> None:
        self._step = Step(model)
        self.device = next(model.parameters()).device
        self.name = f"torch-{self.device.type}"
        self.contract, self.dtype = contract, dtype

    def new_cache(self, batch: int, slots: int) -> TorchCache:
        """Zeroed caches on the model's device."""
        shape = (batch, slots, self.contract.kv_heads, self.contract.head_size)
        dtype = getattr(torch, self.dtype)
        return TorchCache(
            [torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2 * self.contract.layers)]
        )

    @torch.inference_mode()
    def step(self, inputs: StepInputs, cache: TorchCache) -> StepOutputs:
        """Run one step eagerly."""
        arrays = (inputs.canvas, inputs.gather_indices, inputs.cache_indices, inputs.decode_rows)
        canvas, gather, cached, rows = (torch.from_numpy(np.ascontiguousarray(a)).to(self.device) for a in arrays)
        tokens, confidence, odds, logits, *new = self._step(canvas, gather, cached, rows, cache.tensors)
        if inputs.write_back:
            row, column = torch.nonzero(gather >= 0, as_tuple=True)
            slots = gather[row, column]
            for tensor, fresh in zip(cache.tensors, new):
                tensor[row, slots] = fresh[row, column]
        host = [tensor.cpu().numpy() for tensor in (tokens, confidence, odds)]
        return StepOutputs(*host, logits.cpu().numpy() if inputs.want_logits else None)
