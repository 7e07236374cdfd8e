"""`Regions`: a step cut at attention, each piece compiled once by Inductor and used for every layer.

    regions = Regions(model, compiled=True)
    x, query, cos, sin = regions.first(ids, positions, new_key, new_value)
    x, query = regions.between(0, x, attended, cos, sin, new_key, new_value)
    regions.last(x, attended, token_ids, odds, logits)

A region ends where the next attention begins, so that nothing which Inductor could fuse lies on two sides of a cut:
`between` is the end of one layer and the beginning of the next. All tensors have the rows of a step as their first
axis, M = B · Q or the decoded ones, and that is the only size which may differ from call to call. The layers' weights
are arguments, so three graphs serve a model of any depth. New keys and values, and what a step answers, are
written into tensors of the caller.
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
        """Without `compiled` they run as they are written: to compare the two."""
        self._model, self._layers = model, model.blocks
        made = _compiled if compiled else _as_written
        self._first, self._between, self._last = made(_first), made(_between), made(_last)

    def first(
        self, ids: Tensor, positions: Tensor, new_key: Tensor, new_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Up to the first attention.

        Args:
            ids, positions: int64 [M], tokens and where they stand.
            new_key, new_value: [M, G, D], which are written.

        Returns:
            Rows [M, C], query [M, H, D], and the rotation's cos and sin, float32 [M, 1, D/2].
        """
        rows: tuple[Tensor, Tensor, Tensor, Tensor]
        rows = self._first(self._model, self._layers[0], ids, positions, new_key, new_value)
        return rows

    def between(
        self, layer: int, x: Tensor, attended: Tensor, cos: Tensor, sin: Tensor, new_key: Tensor, new_value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """From the attention of `layer` to the next one's: `attended` [M, H, D] to the next query [M, H, D].

        Others as in `first`; returns rows and query.
        """
        layers = self._layers[layer], self._layers[layer + 1]
        rows: tuple[Tensor, Tensor] = self._between(*layers, x, attended, cos, sin, new_key, new_value)
        return rows

    def last(self, x: Tensor, attended: Tensor, token_ids: Tensor, odds: Tensor, logits: Tensor) -> None:
        """From the last attention to the answer, for the decoded rows alone.

        Args:
            x, attended: [R, C] and [R, H, D].
            token_ids, odds, logits: int64 [R], float32 [R] and [R, V], which are written.
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
    tokens = argmax(found).squeeze(-1)  # in parts: Inductor leaves each row of a plain one to one program of a GPU
    token_ids.copy_(tokens)
    odds.copy_(odds_against(found, tokens))
    logits.copy_(found)


def _before(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, new_key: Tensor, new_value: Tensor) -> Tensor:
    """`layer.before`, its keys and values written where they are to be; the query."""
    query, key, value = layer.before(x, cos, sin)
    new_key.copy_(key)
    new_value.copy_(value)
    return query


def _after(layer: Layer, x: Tensor, attended: Tensor) -> Tensor:
    """`layer.after`, on rows with an axis of one before them.

    Inductor adds a residual to a matrix product within the product, which costs a copy of the rows; on three axes it
    adds it in the kernel of the norm that follows, which reads them anyway.
    """
    return layer.after(x[None], attended[None])[0]


def _as_written(region: Callable[..., Any]) -> Callable[..., Any]:
    return region


def _compiled(region: Callable[..., Any]) -> Callable[..., Any]:
    """`region` as one graph, whatever the number of rows.

    Dynamo keeps what it compiled by the code object, and counts how often it compiled one: a copy of its own keeps the
    models of a process apart. Sizes that differ between two models must not become dynamic, so only rows are.
    """
    assert isinstance(region, FunctionType)
    own = FunctionType(region.__code__.replace(), region.__globals__, region.__name__)
    compiled: Callable[..., Any] = torch.compile(own, fullgraph=True, dynamic=False)
    ready: set[bool] = set()  # a graph for one row is another one

    def call(*arguments: Any) -> Any:
        tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
        several = len(tensors[0]) > 1
        for tensor in tensors if several else []:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        if several in ready:
            return compiled(*arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's about itself, which somebody may have made errors
            found = compiled(*arguments)
        ready.add(several)
        return found

    return call
