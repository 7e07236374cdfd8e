"""Filters and tests of chat templates: Jinja's own with their costs counted, and those that differ from Jinja's.

    with rendering(Budget(), None, datetime.now()):
        template.render(...)

Each counts its cost before it runs, in the budget of the rendering in its thread.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import pass_context
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment
from markupsafe import Markup, escape, soft_str

from dpad.runtime.text.disguise import Disguise
from dpad.runtime.text.template_budget import CHARACTERS, NESTS, Budget
from dpad.runtime.text.template_costs import FILTERS, TESTS, Cost, constant
from dpad.runtime.text.template_meter import MADE, READ, TICK, WRITTEN

Function = Callable[..., Any]

_ITERATOR: Any = type(iter([0]))  # the type that the filters in `_LAZY` return; in Jinja they are generators
_LAZY = ("batch", "items", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "unique")


@dataclass(frozen=True)
class Rendering:
    """The budget of one rendering, the disguise of its messages, and its time."""

    budget: Budget
    disguise: Disguise | None
    moment: datetime


_now: ContextVar[Rendering] = ContextVar("_now")


def now() -> Rendering:
    """The rendering that runs in this thread."""
    return _now.get()


@contextmanager
def rendering(budget: Budget, disguise: Disguise | None, moment: datetime) -> Iterator[None]:
    """Templates rendered in this block use `budget`, messages in `disguise`, and `moment` as the current time."""
    token = _now.set(Rendering(budget, disguise, moment))
    try:
        yield
    finally:
        _now.reset(token)


@pass_context
def written(context: Context, value: Any) -> Any:
    """Count `value`, which is about to be written. `pass_context` keeps Jinja from calling it at compile time."""
    return _as_text(value)


def settled(value: Any) -> Any:
    """Turn an iterator into a list, which can be read for its cost before it is used."""
    return list(value) if isinstance(value, _ITERATOR) else value


def _tick(steps: int) -> bool:
    _now.get().budget.spend(steps)
    return True


def _read(value: Any) -> Any:
    """Count `value`, which is about to be compared; returns it without its disguise."""
    run = _now.get()
    value = settled(value)
    run.budget.spend(run.budget.weigh(value))
    if run.disguise is not None and isinstance(value, str):
        return run.disguise.show(value)
    return value


def _as_text(value: Any) -> Any:
    """Count `value`, which is about to be written; a container with disguised text is returned as corrected text."""
    run = _now.get()
    run.budget.spend(8 + run.budget.weigh_text(value))
    if run.disguise is not None and isinstance(value, NESTS):
        return run.disguise.unescape(str(value))
    return value


def _string(value: Any) -> str:
    return soft_str(_as_text(value))


def _made(value: Any) -> Any:
    size = len(value) if hasattr(value, "__len__") else 1
    _now.get().budget.spend(1 + size // (CHARACTERS if isinstance(value, str) else 1))
    return value


def _counted(name: str, function: Function, cost: Cost) -> Function:
    """Wrap `function` to count its cost first; a lazy result is computed at once."""
    skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = _now.get().budget
        if cost is not constant:
            args = tuple(map(settled, args))
        budget.spend(9 + cost(budget, *args[skipped:], **kwargs))
        result = function(*args, **kwargs)
        return iter(list(result)) if name in _LAZY and not isinstance(result, str) else result

    return counted


def _as_shown(function: Function) -> Function:
    """Wrap a test to read values without their disguise."""

    @wraps(function)
    def shown(*args: Any, **kwargs: Any) -> Any:
        disguise = _now.get().disguise
        if disguise is not None:
            args = tuple(disguise.show(value) if isinstance(value, str) else value for value in args)
        return function(*args, **kwargs)

    return shown


def _method(name: str, text: str, *args: Any) -> Any:
    disguise = _now.get().disguise
    return getattr(text, name)(*args) if disguise is None else disguise.method(name, text, args, {})


def _replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return str(_method("replace", str(value), str(old), str(new), -1 if count is None else count))


def _trim(value: Any, chars: str | None = None) -> str:
    return str(_method("strip", soft_str(value), chars))


@pass_context
def _sum(context: Context, iterable: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    """Jinja's `sum`, with each addition counted."""
    environment = context.environment
    assert isinstance(environment, SandboxedEnvironment)
    values = iterable if attribute is None else map(make_attrgetter(environment, attribute), iterable)
    for value in values:
        if isinstance(value, str) or isinstance(start, str):
            raise TypeError("sum does not add text; use join")
        start = environment.call_binop(context, "+", start, value)
    return start


def _escape(value: Any) -> Markup:
    """Escape `value` for HTML; a disguised character is escaped like the original one."""
    escaped, disguise = escape(value), _now.get().disguise
    for character, mark in disguise.marks.items() if disguise else ():
        if escape(character) != character:
            escaped = escaped.replace(mark, escape(character))
    return escaped


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON as transformers does, without escapes for HTML."""
    text = json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    disguise = _now.get().disguise
    return disguise.unescape(text) if disguise else text


_OWN = {
    "tojson": _tojson,
    "replace": _replace,
    "trim": _trim,
    "sum": _sum,
    "e": _escape,
    "escape": _escape,
    "string": _string,
}


def counted_filters(filters: Mapping[str, Any]) -> dict[str, Any]:
    """The filters that have a cost, this module's versions where they differ, and the filters that only count."""
    known = {name: _counted(name, _OWN.get(name, filters[name]), cost) for name, cost in FILTERS.items()}
    return {**known, TICK: _tick, READ: _read, MADE: _made, WRITTEN: _as_text}


def counted_tests(tests: Mapping[str, Any]) -> dict[str, Any]:
    """The tests that have a cost."""
    return {name: _counted(name, _as_shown(tests[name]), cost) for name, cost in TESTS.items()}
