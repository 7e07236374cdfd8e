"""An engine's outputs are compared with the contract; wrong ones raise an error that names the engine."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from sealed import STEP, answer, edit_graph, reseal

import dpad
from dpad.runtime import errors
from dpad.runtime.engines.base import Engine
from dpad.runtime.engines.step import StepInputs, StepOutputs


def _bytes(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        data = (bundle / STEP).read_bytes()
        assert old in data and len(old) == len(new)
        (bundle / STEP).write_bytes(data.replace(old, new))
        reseal(bundle)

    return change


def _graph(*arguments: Any, **attributes: Any) -> Callable[[Path], None]:
    return lambda bundle: edit_graph(bundle, lambda model: answer(model, *arguments, **attributes))


def _drop_output(model: onnx.ModelProto) -> None:
    del model.graph.output[-1]


GRAPHS: dict[str, tuple[Callable[[Path], None], str]] = {
    "token beyond the vocabulary": (_graph("token_ids", "Add", 10**9), "predicted token 1000000"),
    "token below 0": (_graph("token_ids", "Sub", 10**12), "predicted token -9999"),
    "more tokens": (_graph("token_ids", "Concat", axis=1, repeats=True), "gave .* for token_ids instead of"),
    "more rows": (_graph("odds_against", "Concat", axis=0, repeats=True), "gave .* for odds_against instead of"),
    "odds below 0": (_graph("odds_against", "Sub", 1e9), "gave odds of -"),
    "odds that are NaN": (_graph("odds_against", "Mul", float("nan")), "produced NaN"),
    "another axis": (_graph("odds_against", "Flatten", axis=0), "gave .* for odds_against"),
    "more logits": (_graph("logits", "Concat", axis=2, repeats=True), "output logits is"),
    "logits that are NaN": (_graph("logits", "Mul", float("nan")), "produced NaN"),
    "more keys": (_graph("new_key.0", "Concat", axis=1, repeats=True), "gave new_key.0 of shape"),
    "more heads": (_graph("new_value.1", "Concat", axis=2, repeats=True), "output new_value.1 is"),
    "more of a batch": (_graph("new_key.1", "Concat", axis=0, repeats=True), "gave new_key.1 of shape"),
    "name that is no text": (_bytes(b"odds_against", b"odds_ag\xff\xfenst"), "step.onnx"),
    "input that is no text": (_bytes(b"gather_indices", b"gather_\xff\xfe\xfd\xfc\xfb\xfa\xf9"), "step.onnx"),
    "one output less": (lambda bundle: edit_graph(bundle, _drop_output), "outputs are not those of the contract"),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_a_sealed_graph_that_lies_is_an_engine_error(bundle: Path, case: str) -> None:
    """Fails if a step that violates the contract gives text, or an error about the request or from numpy."""
    change, said = GRAPHS[case]
    change(bundle)
    decoders: list[dict[str, Any]] = [{}, {"cache": "extend"}, {"decoder": "entropy"}]
    with pytest.raises(errors.EngineError, match=said) as caught, dpad.load(bundle) as model:
        for options in decoders:
            model.generate_batch(["w5 w6", "w7"], gen_length=64, **options)
    assert type(caught.value) is errors.EngineError


class Liar(Engine):
    """An engine whose outputs are changed by `lie`."""

    def __init__(self, engine: Engine, lie: Callable[[StepOutputs], Any]) -> None:
        super().__init__()
        self.name, self.contract, self.dtype, self.slots = "liar", engine.contract, engine.dtype, engine.slots
        self._engine, self._lie = engine, lie

    def _step(self, inputs: StepInputs) -> StepOutputs:
        told: StepOutputs = self._lie(self._engine.step(inputs))
        return told


def _decisions(**edits: Callable[[Any], Any]) -> Callable[[StepOutputs], Any]:
    def lie(outputs: StepOutputs) -> StepOutputs:
        decisions = outputs.decisions
        assert decisions is not None
        return replace(outputs, decisions=replace(decisions, **{n: e(getattr(decisions, n)) for n, e in edits.items()}))

    return lie


LIES: dict[str, Callable[[StepOutputs], Any]] = {
    "nothing": lambda outputs: None,
    "a tuple": lambda outputs: (outputs.token_ids, outputs.odds_against),
    "lists": lambda outputs: replace(outputs, token_ids=outputs.token_ids.tolist()),
    "fewer rows": lambda outputs: replace(outputs, token_ids=outputs.token_ids[:, :-1]),
    "no rows": lambda outputs: replace(outputs, odds_against=outputs.odds_against[:, :0]),
    "one axis": lambda outputs: replace(outputs, odds_against=outputs.odds_against[0]),
    "tokens in 32 bit": lambda outputs: replace(outputs, token_ids=outputs.token_ids.astype(np.int32)),
    "tokens that are numbers": lambda outputs: replace(outputs, token_ids=outputs.token_ids.astype(np.float32)),
    "odds that are objects": lambda outputs: replace(outputs, odds_against=outputs.odds_against.astype(object)),
    "a token too large": lambda outputs: replace(outputs, token_ids=outputs.token_ids + 2**62),
    "a token below 0": lambda outputs: replace(outputs, token_ids=outputs.token_ids - 2**40),
    "odds below 0": lambda outputs: replace(outputs, odds_against=-1 - outputs.odds_against),
    "odds that are NaN": lambda outputs: replace(outputs, odds_against=outputs.odds_against * np.float32("nan")),
}
DECISIONS: dict[str, Callable[[StepOutputs], Any]] = {
    "no decisions": lambda outputs: replace(outputs, decisions=None),
    "an array of decisions": lambda outputs: replace(outputs, decisions=outputs.odds_against),
    "a drawn token too large": _decisions(token_ids=lambda array: array + 2**62),
    "a drawn token below 0": _decisions(token_ids=lambda array: array - 2**40),
    "fewer margins": _decisions(margin=lambda array: array[:, :-1]),
    "entropies in a list": _decisions(negative_entropy=lambda array: array.tolist()),
    "margins that are NaN": _decisions(margin=lambda array: array * np.float32("nan")),
}


@pytest.mark.parametrize("case", [*LIES, *DECISIONS])
def test_an_engine_that_lies_is_named(whole: Path, case: str) -> None:
    """Fails if wrong outputs of a custom or compiled engine give a traceback or an error about the prompt."""
    with dpad.load(whole) as model:
        liar = dpad.DiffusionModel(Liar(model.engine, (LIES | DECISIONS)[case]), model.codec)
        with pytest.raises(errors.EngineError, match="engine liar gave|engine liar predicted|the engine produced NaN"):
            liar.generate("w5 w6", gen_length=32, decoder="margin" if case in DECISIONS else "threshold")
