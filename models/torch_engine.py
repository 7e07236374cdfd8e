"""`TorchEngine`: the eager reference. Slow and plain; every other engine is compared to it.

    engine = TorchEngine(load_model(...), contract, "float32")

It runs on the device of the weights, and is not meant for serving. Its caches have a row for
every canvas position, unlike those of other engines: an independent way to the same tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpad.models.checkpoint.checkpoint import Model, load_model, parse_config
from dpad.models.step import Step
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.variant import DYNAMIC, rows_dtype
from dpad.runtime.checks import check_cache, check_step
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.base import Engine, StepInputs, StepOutputs
from dpad.runtime.errors import EngineUnavailable


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

    extends = narrows = True

    def rows_of(self, cache: TorchCache, rows: NDArray[np.bool_]) -> TorchCache:
        """Copies of the chosen rows."""
        return TorchCache([tensor[torch.from_numpy(rows)] for tensor in cache.tensors])

    def new_cache(self, batch: int, slots: int) -> TorchCache:
        """Zeroed caches on the model's device."""
        shape = (batch, slots, self.contract.kv_heads, self.contract.head_size)
        dtype = getattr(torch, self.dtype)
        return TorchCache(
            [torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2 * self.contract.layers)]
        )

    def step(self, inputs: StepInputs, cache: TorchCache) -> StepOutputs:
        """Run one step eagerly."""
        check_step(inputs, self.contract, extends=True)
        check_cache(inputs, *cache.tensors[0].shape[:2])
        arrays = (inputs.canvas, inputs.gather_indices, inputs.cache_indices, inputs.decode_rows)
        canvas, gather, cached, rows = (self._tensor(array) for array in arrays)
        with torch.inference_mode():
            tokens, confidence, odds, logits, *new = self._step(canvas, gather, cached, rows, cache.tensors)
            if inputs.write_back:
                row, column = torch.nonzero(gather >= 0, as_tuple=True)
                slots = gather[row, column]
                for tensor, fresh in zip(cache.tensors, new):
                    tensor[row, slots] = fresh[row, column]
        token_ids, probability, odds_against = (tensor.cpu().numpy() for tensor in (tokens, confidence, odds))
        return StepOutputs(token_ids, probability, odds_against, logits.cpu().numpy() if inputs.want_logits else None)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """One step with every input given and every output returned, in the order of the contract.

        Rows in bfloat16 are float32 arrays here: numpy has no bfloat16.
        """
        canvas, gather, cached, rows, *caches = (self._tensor(feed[s.name]) for s in self.contract.inputs())
        with torch.inference_mode():
            dtype = getattr(torch, self.dtype)
            outputs = self._step(canvas, gather, cached, rows, [cache.to(dtype) for cache in caches])
        return [(t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy() for t in outputs]

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def open_torch_engine(bundle: Bundle, variant: str | None = None, device: str = "cpu") -> TorchEngine:
    """The eager engine over a bundle's own weights.

    Args:
        bundle: a checked bundle.
        variant: of a step in the bundle. Default: float32 on a CPU, 16 bit on a GPU (where
            attention is the Triton kernel), if the bundle has it. Packed weights are unpacked when they are used.
        device: `cpu` or `cuda`.

    Raises:
        EngineUnavailable: torch sees no GPU, or the bundle has no such step with weights that torch can read.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable("torch sees no CUDA device here; use engine torch, which runs on the CPU")
    steps = {name: step for name, step in bundle.manifest.steps.items() if name != DYNAMIC}  # ONNX Runtime's own
    preferred = ("bfloat16", "float16") if device == "cuda" else ("float32",)
    variant = variant or next((name for name in (*preferred, *steps) if name in steps), "float32")
    if variant not in steps:
        raise EngineUnavailable(
            f"{bundle.directory} has no step {variant} with weights that torch reads; export it with --dtype {variant}"
        )
    architecture, config = parse_config(bundle.manifest.model_config)
    shards = tuple(bundle.path(name) for name in steps[variant].weights)
    rows = rows_dtype(variant)
    model = load_model(architecture, config, shards, getattr(torch, rows))
    return TorchEngine(model.to(device), bundle.manifest.contract, rows)
