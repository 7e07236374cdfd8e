"""`Regions`: a step cut at attention; Inductor compiles each piece once and every layer uses it.

    regions = Regions(model, compiled=True)
    x, query, cos, sin = regions.first(ids, positions, new_key, new_value)
    x, query = regions.between(0, x, attended, cos, sin, new_key, new_value)
    regions.last(x, attended, token_ids, odds, logits)

A region ends where the next attention begins: `between` is the end of one layer and the beginning of the next. So no
cut separates operations that Inductor could fuse. The first axis of all tensors is the rows of a step, M = B · Q or the
decoded ones, and only its size differs between calls. The layers' weights are arguments, so that three graphs are
enough for a model of any depth. New keys and values and the results of a step are written into tensors of the caller.
"""

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from dpad.models import llada, qwen
from dpad.models.checkpoint.checkpoint import Model
from dpad.models.decide import argmax
from dpad.models.step import odds_against

Layer = llada.Block | qwen.Layer


class Regions:
    """The three regions of one model. Symbols as in `StepContract`; H query heads, C `config.width`."""

    def __init__(self, model: Model, compiled: bool) -> None:
        """Without `compiled` the regions run uncompiled, for comparison."""
        self._model, self._layers = model, model.blocks
        made = _compiled if compiled else _as_written
        self._first, self._between, self._last = made(_first), made(_between), made(_last)

    def first(
        self, ids: Tensor, positions: Tensor, new_key: Tensor, new_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Everything before the first attention.

        Args:
            ids, positions: int64 [M], tokens and their canvas positions.
            new_key, new_value: [M, G, D], outputs that are written.

        Returns:
            Rows [M, C], query [M, H, D], and the rotation's cos and sin, float32 [M, 1, D/2].
        """
        rows: tuple[Tensor, Tensor, Tensor, Tensor]
        rows = self._first(self._model, self._layers[0], ids, positions, new_key, new_value)
        return rows

    def between(
        self, layer: int, x: Tensor, attended: Tensor, cos: Tensor, sin: Tensor, new_key: Tensor, new_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Everything between the attention of `layer`, whose result is `attended` [M, H, D], and the next one.

        The other tensors are as in `first`; returns rows [M, C] and the next query [M, H, D].
        """
        layers = self._layers[layer], self._layers[layer + 1]
        rows: tuple[Tensor, Tensor] = self._between(*layers, x, attended, cos, sin, new_key, new_value)
        return rows

    def last(self, x: Tensor, attended: Tensor, token_ids: Tensor, odds: Tensor, logits: Tensor) -> None:
        """Everything after the last attention, for the decoded rows alone.

        Args:
            x, attended: [R, C] and [R, H, D].
            token_ids, odds, logits: int64 [R], float32 [R] and [R, V], outputs that are written.
        """
        self._last(self._model, self._layers[-1], x, attended, token_ids, odds, logits)


def _first(
    model: Model, layer: Layer, ids: Tensor, positions: Tensor, new_key: Tensor, new_value: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = model.embed(ids)
    cos, sin = model.rotation(positions)
    return x, _before(layer, x, cos, sin, new_key, new_value), cos, sin


def _between(
    layer: Layer,
    following: Layer,
    x: Tensor,
    attended: Tensor,
    cos: Tensor,
    sin: Tensor,
    new_key: Tensor,
    new_value: Tensor,
) -> tuple[Tensor, Tensor]:
    x = _after(layer, x, attended)
    return x, _before(following, x, cos, sin, new_key, new_value)


def _last(
    model: Model, layer: Layer, x: Tensor, attended: Tensor, token_ids: Tensor, odds: Tensor, logits: Tensor
) -> None:
    found = model.logits(_after(layer, x, attended))
    tokens = argmax(found).squeeze(-1)  # Inductor gives each row of torch.argmax to one GPU block only
    token_ids.copy_(tokens)
    odds.copy_(odds_against(found, tokens))
    logits.copy_(found)


def _before(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, new_key: Tensor, new_value: Tensor) -> Tensor:
    """Call `layer.before`, write its key and value into `new_key` and `new_value`, and return the query."""
    query, key, value = layer.before(x, cos, sin)
    new_key.copy_(key)
    new_value.copy_(value)
    return query


def _after(layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
    """Call `layer.after` on rows with an additional first axis of size 1.

    On two axes Inductor adds the residual within the matrix product, which costs a copy of the rows. On three axes it
    adds the residual in the kernel of the following norm, which reads the rows anyway.
    """
    return layer.after(x[None], attended[None])[0]


def _as_written(region: Callable[..., Any]) -> Callable[..., Any]:
    return region


def _compiled(region: Callable[..., Any]) -> Callable[..., Any]:
    """`region` compiled as one graph for any number of rows.

    Dynamo caches compiled code by code object and limits the number of compilations of each, so every model gets a copy
    of the code object. Only the number of rows is dynamic; sizes that differ between models are not.
    """
    assert isinstance(region, FunctionType)
    own = FunctionType(region.__code__.replace(), region.__globals__, region.__name__)
    compiled: Callable[..., Any] = torch.compile(own, fullgraph=True, dynamic=False)
    ready: set[bool] = set()  # one row needs a graph of its own

    def call(*arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        several = len(tensors[0]) > 1
        for tensor in tensors if several else []:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        if several in ready:
            return compiled(*arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of its own code; callers may turn that into errors
            found = compiled(*arguments)
        ready.add(several)
        return found

    return call
