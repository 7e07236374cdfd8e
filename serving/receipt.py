"""`Receipt`: everything that determines an answer, and a chain of hashes over what each pass committed.

    receipt = Receipt.begun(model, request, options)
    receipt.add(event)
    replay(model, receipt.document())       # (37, None): all 37 passes are the same; (5, 5): pass 5 differs

Each hash covers the one before it and the positions and tokens of a pass, so the last one covers all passes. Tokens
that a deadline filled in are not part of the chain, because the time of a deadline does not depend on the model.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from hashlib import sha256
from importlib import metadata
from typing import Any, NamedTuple

from dpad.runtime.decoding.event import StepEvent
from dpad.runtime.decoding.options import GenerationOptions, Options
from dpad.runtime.decoding.presets import name_of, read_schedule
from dpad.runtime.decoding.request import Request
from dpad.runtime.errors import InvalidRequest, ReplayError
from dpad.runtime.model import DiffusionModel
from dpad.runtime.reader import Reader
from dpad.runtime.show import shown

VERSION = 1
_LIBRARIES = ("dpad", "numpy", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx")
_KEYS = {"receipt", "bundle", "engine", "versions", "request", "options", "passes"}


class Receipt:
    """The receipt of one sequence."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self.head = dict(head)
        self.passes: list[str] = []
        self._last = _hash(self.head)

    @classmethod
    def begun(cls, model: Reader, request: Request, options: Options) -> "Receipt":
        """Begin with what is known before a pass: bundle, engine, versions of libraries, request and options."""
        resolved = model.options(**options)
        schedule = resolved.schedule if request.schedule is None else request.schedule
        told = {field.name: getattr(resolved, field.name) for field in fields(GenerationOptions)}
        del told["deadline"]
        told["schedule"] = {name_of(schedule): asdict(schedule)}  # type: ignore[call-overload]
        told["seed"] = resolved.seed if request.seed is None else request.seed
        asked = {"prompt_ids": request.prompt_ids, "suffix_ids": request.suffix_ids, "given": request.given}
        head = {
            "receipt": VERSION,
            "bundle": model.facts.digest,
            "engine": model.facts.engine,
            "versions": _versions(),
            "request": asked,
            "options": told,
        }
        return cls(json.loads(json.dumps(head)))

    def add(self, event: StepEvent) -> None:
        """Add the event of a pass."""
        if event.generation is not None and event.generation.finish_reason == "deadline":
            return
        self._last = _hash([self._last, event.positions.tolist(), event.tokens.tolist()])
        self.passes.append(self._last)

    def document(self) -> dict[str, Any]:
        """The receipt as JSON values."""
        return {**self.head, "passes": self.passes}


class Replay(NamedTuple):
    """The number of passes that were repeated, and the first one that differs; None if none does."""

    passes: int
    differs: int | None


def replay(model: DiffusionModel, document: Mapping[str, Any]) -> Replay:
    """Repeat the generation of a receipt.

    Raises `ReplayError` if it belongs to another bundle, and `InvalidRequest` if `document` is not a receipt.
    """
    head, passes = _read(document)
    if head["bundle"] != (own := model.facts.digest):
        raise ReplayError(
            f"the receipt is of bundle {shown(head['bundle'])}, and this one is {own}; open the receipt's bundle"
        )
    again = Receipt(head)
    request, options = _asked(head)
    for event in model.stream(request, **options):
        again.add(event)
        number = len(again.passes)
        if number > len(passes) or again.passes[-1] != passes[number - 1]:
            return Replay(number, number)
        if number == len(passes):  # the answer may have ended before its canvas was full
            return Replay(number, None)
    return Replay(len(again.passes), len(again.passes) + 1)


def _asked(head: Mapping[str, Any]) -> tuple[Request, Options]:
    asked, told = head["request"], dict(head["options"])
    told["schedule"] = read_schedule(told["schedule"])
    return Request(asked["prompt_ids"], asked["suffix_ids"], given=asked["given"]), told  # type: ignore[return-value]


def _read(document: Mapping[str, Any]) -> tuple[dict[str, Any], Sequence[str]]:
    if not isinstance(document, Mapping) or document.keys() != _KEYS or document["receipt"] != VERSION:
        raise InvalidRequest(
            f"this is not a receipt of version {VERSION}; give one that a server of this version wrote"
        )
    shapes = {"request": dict, "options": dict, "passes": list, "bundle": str, "engine": str}
    for name, kind in shapes.items():
        if not isinstance(document[name], kind):
            raise InvalidRequest(f"the receipt's {name} {shown(document[name])} is damaged; take the original")
    if document["request"].keys() != {"prompt_ids", "suffix_ids", "given"} or "schedule" not in document["options"]:
        raise InvalidRequest("the receipt's request or its options are damaged; take the original")
    if not document["passes"]:
        raise InvalidRequest("the receipt holds no pass: its answer ended before the first; there is nothing to repeat")
    return {key: value for key, value in document.items() if key != "passes"}, document["passes"]


def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hash(value: object) -> str:
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
