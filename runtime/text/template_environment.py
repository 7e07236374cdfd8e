"""Jinja set up for chat templates as in transformers, in a sandbox that counts the work of a template.

    template = TemplateEnvironment().from_string(source)
    with rendering(Budget(), None, datetime.now()):
        template.render(messages=messages, ...)

The parsed template is changed before Jinja compiles it to Python, so that every operation whose cost depends on data is
counted before it runs: bodies of loops and macros, operators, comparisons, slices, filters, tests and calls. Jinja's
constant folding is off, so that nothing is computed uncounted while a template is compiled. Only methods with a known
cost can be called.
"""

import types
from collections.abc import Callable, Iterable
from typing import Any

from jinja2 import Environment, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Cycler, Joiner
from markupsafe import Markup

from dpad.runtime.text.template_budget import CHARACTERS, Exhausted
from dpad.runtime.text.template_costs import binary, method, padding
from dpad.runtime.text.template_filters import counted_filters, counted_tests, now, settled, written
from dpad.runtime.text.template_globals import GLOBALS, TemplateDict
from dpad.runtime.text.template_meter import metered

SOURCE = 200_000  # most characters of a template; so many take seconds to compile
_SCOPE = ("_block_vars", "_loop_vars")  # arguments that Jinja's generated code adds to a call


class GenerationTag(Extension):
    """The tags `{% generation %}` ... `{% endgeneration %}`, which mark an assistant's text for training.

    Here their contents are written unchanged. As in transformers, the block has its own scope: variables set inside are
    not visible behind it.
    """

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the block into a call that writes its contents."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Callable[[], str]) -> str:
        return caller()


def _concat(parts: Iterable[str]) -> str:
    """Join the pieces that a template, a macro or a block has written."""
    pieces = list(parts)
    now().budget.spend(sum(map(len, pieces)) // CHARACTERS)
    return "".join(pieces)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """An environment with the filters, tests, globals and tags of transformers' chat templates, all counted."""

    concat = staticmethod(_concat)
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
            optimized=False,
            finalize=written,
            cache_size=0,
        )
        self.filters = counted_filters(self.filters)
        self.tests = counted_tests(self.tests)
        self.globals = {"range": self.globals["range"], **GLOBALS}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(metered(source), *args, **kwargs)

    def _parse(self, source: str, *args: Any, **kwargs: Any) -> nodes.Template:
        if len(source) > SOURCE:
            raise Exhausted(f"it is {len(source):,} characters long, over the limit of {SOURCE:,}")
        return super()._parse(source, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`obj[argument]`; counts the argument, which may be hashed, or written into an error."""
        run = now()
        run.budget.spend(run.budget.weigh(argument))
        if run.disguise is not None and isinstance(argument, str):
            argument = run.disguise.show(argument)
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left operator right`, counted before it runs."""
        budget = now().budget
        budget.spend(binary(budget, operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a macro, a loop, a function of `GLOBALS` or a method with a known cost; refuse anything else."""
        run = now()
        run.budget.spend(10)
        if isinstance(__obj, (Macro, LoopContext, BlockReference)):
            run.budget.enter()
            try:
                return super().call(__context, __obj, *args, **kwargs)
            finally:
                run.budget.leave()
        args = tuple(map(settled, args))
        given = {name: value for name, value in kwargs.items() if name not in _SCOPE}
        run.budget.spend(__self._cost(__obj, args, given))
        owner = getattr(__obj, "__self__", None)
        if run.disguise is not None and type(owner) is str:
            return run.disguise.method(__obj.__name__, owner, args, given)
        return super().call(__context, __obj, *args, **kwargs)

    def _cost(self, called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        budget = now().budget
        values = (*args, *kwargs.values())
        if isinstance(called, (types.MethodType, types.BuiltinMethodType)):
            owner = called.__self__
            if isinstance(owner, (Cycler, LoopContext, GenerationTag, TemplateDict)):
                return sum(map(budget.weigh, values))
            steps = method(budget, owner, called.__name__, args, kwargs)
            if steps is None:
                raise SecurityError(f"templates may not call {type(owner).__name__}.{called.__name__}")
            return steps
        if isinstance(called, (Undefined, Joiner, _Format)) or any(called is known for known in self.globals.values()):
            return sum(map(budget.weigh_text, values))
        raise SecurityError(f"a value of type {type(called).__name__} cannot be called")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """The method `format` of a text, sandboxed as in Jinja, with its widths counted."""
        return None if super().wrap_str_format(value) is None else _Format(self, value)


class _Format:
    """A counted `text.format` or `text.format_map`, made from the bound method."""

    def __init__(self, environment: TemplateEnvironment, method: Any) -> None:
        self._environment, self._text, self._mapped = environment, method.__self__, method.__name__ == "format_map"

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        if self._mapped:
            (kwargs,), args = args, ()
        if isinstance(self._text, Markup):
            escaping = _CountedEscaping(self._environment, escape=self._text.escape)
            return type(self._text)(escaping.vformat(self._text, args, kwargs))
        return _Counted(self._environment).vformat(self._text, args, kwargs)


class _Counted(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        budget = now().budget
        budget.spend(budget.weigh_text(value) + padding(format_spec) // CHARACTERS)
        return super().format_field(value, format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        budget = now().budget
        budget.spend(12 * budget.weigh_text(value))
        return super().convert_field(value, conversion)


class _CountedEscaping(_Counted, SandboxedEscapeFormatter):
    pass
