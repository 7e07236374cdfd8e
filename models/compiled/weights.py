"""`load_merged`: loads a model for serving, with its weights on the device and layers on the same rows merged.

    model = load_merged(architecture, config, shards, torch.bfloat16, torch.device("cuda"))

Each weight is copied from the mapped file to its place, which is a part of a larger tensor if products are merged. So
the device holds the model and the tensor that is being copied, but no second copy of the model. The driver copies from
mapped memory to a GPU through page-locked memory of its own, so that no buffers are needed here. A CPU uses the mapped
file directly for weights that are not merged.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from dpad.models.checkpoint.checkpoint import Config, Model, checked_model
from dpad.models.checkpoint.headers import TensorEntry
from dpad.models.compiled.products import Full, Merged, packed_product
from dpad.models.linear import Together
from dpad.models.packed import SCALE, Packed
from dpad.runtime.bundle.variant import PACKED


def load_merged(
    architecture: str, config: Config, shards: Sequence[Path], dtype: torch.dtype, device: torch.device
) -> Model:
    """The module on `device` with its weights in `dtype`; packed weights stay packed.

    Raises `CheckpointError` if the files do not hold the weights of such a model.
    """
    model, entries = checked_model(architecture, config, shards)
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(shard, framework="pt")) for shard in shards]
        held = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a mapping
        weights = _Weights(entries, lambda name: held[name].get_tensor(name), dtype, device)
        _fill(model, weights)
    return model


class _Weights:
    """The tensors of a checkpoint by name, copied to the device on request."""

    def __init__(
        self,
        entries: Mapping[str, TensorEntry],
        read: Callable[[str], Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._entries, self._read, self._dtype, self._device = entries, read, dtype, device

    def tensor(self, *names: str, dtype: torch.dtype | None = None, dim: int = 0) -> Tensor:
        """One tensor, or several concatenated along `dim`, in `dtype` or else in the dtype of the rows."""
        dtype = dtype or self._dtype
        if len(names) == 1:
            return self._read(*names).to(self._device).to(dtype)
        shapes = [list(self._entries[name].shape) for name in names]
        sizes = [shape[dim] for shape in shapes]
        shapes[0][dim] = sum(sizes)
        whole = torch.empty(shapes[0], dtype=dtype, device=self._device)
        for name, place in zip(names, torch.split(whole, sizes, dim)):
            place.copy_(self._read(name).to(self._device))
        return whole

    def product(self, *paths: str) -> nn.Module:
        """One product for the linear layers `paths`."""
        names = [f"{path}.weight" for path in paths]
        biases = [f"{path}.bias" for path in paths]
        bias = self.tensor(*biases) if biases[0] in self._entries else None
        form = self._format(names[0])
        if form is None:
            return Full(self.tensor(*names), bias)
        codes = [f"{name}.{form}" for name in names]
        stored = getattr(torch, self._entries[codes[0]].dtype)
        scale = self.tensor(*(f"{name}.{SCALE}" for name in names), dim=-1)
        return packed_product(Packed(form, self.tensor(*codes, dtype=stored, dim=-1), scale), bias)

    def is_packed(self, path: str) -> bool:
        """Whether the weights of a linear layer are packed."""
        return self._format(f"{path}.weight") is not None

    def _format(self, name: str) -> str | None:
        return next((form for form in PACKED if f"{name}.{form}" in self._entries), None)


def _fill(model: Model, weights: _Weights) -> None:
    """Load the weights into `model`, and replace its linear layers by products."""
    paths = {module: path for path, module in model.named_modules()}
    for module, path in list(paths.items()):
        for name, together in list(vars(module).items()):
            if isinstance(together, Together):
                parts = together.parts
                product = weights.product(*(paths[part] for part in parts))
                for part in parts:
                    delattr(module, paths[part].removeprefix(f"{path}."))
                setattr(module, name, Merged(product, [part.out_features for part in parts]))
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and weights.is_packed(path):
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, weights.product(path))
    for path, module in model.named_modules():
        for name, _ in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(weights.tensor(f"{path}.{name}"), requires_grad=False))
