"""`TorchEngine`: the eager reference engine. It is slow and simple; every other engine is compared with it.

    engine = TorchEngine(load_model(...), contract, "float32")
    outputs = engine.step(inputs)

It runs on the device of the weights, and is not meant for serving.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dpad.models.checkpoint.checkpoint import Model, load_model, parse_config
from dpad.models.decide import decide
from dpad.models.step import Step
from dpad.runtime.bundle.bundle import Bundle
from dpad.runtime.bundle.variant import DYNAMIC, rows_dtype
from dpad.runtime.contract import StepContract
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.machine import available_memory
from dpad.runtime.engines.slots import Slots, pool_size, slot_bytes
from dpad.runtime.engines.step import Decisions, Sampling, StepInputs, StepOutputs
from dpad.runtime.errors import EngineUnavailable


class TorchEngine(Engine):
    """Runs `Step` eagerly on the device of the model's weights, and `decide` if a step needs it."""

    pass_rows = 12  # the value for ONNX Runtime on a CPU, measured in the same way

    def __init__(self, model: Model, contract: StepContract, dtype: str, slots: int | None = None) -> None:
        """`slots` is the size of the pool, see `pool_size`."""
        super().__init__()
        self.program = Step(model)
        self.device = next(model.parameters()).device
        self.name = "eager" if self.device.type == "cpu" else f"eager-{self.device.type}"
        self.contract, self.dtype = contract, dtype
        kind = getattr(torch, dtype)
        free = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else available_memory()
        self.slots = Slots(pool_size(contract, slot_bytes(contract, dtype), free, slots))
        shape = (self.slots.size, contract.kv_heads, contract.head_size)
        self.pool = [_zeros(shape, kind, self.device) for _ in range(2 * contract.layers)]

    def _step(self, inputs: StepInputs) -> StepOutputs:
        arrays = (inputs.canvas, inputs.gather_indices, inputs.cache_indices, inputs.decode_rows)
        with torch.inference_mode():
            tokens, odds, logits, *new = self.program(*map(self._tensor, arrays), self.pool)
            if inputs.write_slots is not None:
                slots = self._tensor(inputs.write_slots)
                for tensor, fresh in zip(self.pool, new):
                    tensor[slots[slots >= 0]] = fresh[slots >= 0]
            decisions = None if inputs.sampling is None else self._decide(logits, inputs.sampling)
        return StepOutputs(
            tokens.cpu().numpy(), odds.cpu().numpy(), decisions, logits.cpu().numpy() if inputs.want_logits else None
        )

    def _decide(self, logits: torch.Tensor, sampling: Sampling) -> Decisions:
        tensors = {name: self._tensor(array) for name, array in vars(sampling).items()}
        made = decide(logits, **tensors, tempers=self.contract.tempers_confidence)
        return Decisions(*(tensor.cpu().numpy() for tensor in made))

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run one step with all inputs, and return all outputs, in the order of the contract.

        bfloat16 rows are float32 arrays here, since numpy has no bfloat16.
        """
        canvas, gather, cached, rows, *pool = (self._tensor(feed[s.name]) for s in self.contract.inputs())
        with torch.inference_mode():
            dtype = getattr(torch, self.dtype)
            outputs = self.program(canvas, gather, cached, rows, [tensor.to(dtype) for tensor in pool])
        return [(t.float() if t.dtype == torch.bfloat16 else t).cpu().numpy() for t in outputs]

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros; on a CPU they come from numpy, so that pages take no memory until they are written."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros((*shape[:-1], shape[-1] * dtype.itemsize), np.uint8)).view(dtype)


def open_torch_engine(
    bundle: Bundle, variant: str | None = None, device: str = "cpu", slots: int | None = None
) -> TorchEngine:
    """Open the eager engine with a bundle's own weights.

    Args:
        bundle: a checked bundle.
        variant: variant of a step in the bundle. Default: float32 on a CPU; 16 bit on a GPU, where attention is the
            Triton kernel, if the bundle has it. Packed weights are unpacked whenever they are used.
        device: `cpu` or `cuda`.
        slots: size of the pool, see `pool_size`.

    Raises:
        InvalidRequest: `slots` is not a size, or memory has no room for it.
        EngineUnavailable: torch sees no GPU, or the bundle has no such step with weights that torch can read.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise EngineUnavailable("torch sees no CUDA device here; use engine eager, which runs on the CPU")
    steps = {name: step for name, step in bundle.manifest.steps.items() if name != DYNAMIC}  # only for ONNX Runtime
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
    return TorchEngine(model.to(device), bundle.manifest.contract, rows, slots)
