"""Inserts counting filters into a parsed chat template.

    metered(environment.parse(source))      # the same template, which counts every cost that depends on data

`TICK`, with the steps of the code, begins every body that can run more than once. `READ` surrounds values that are
compared or become keys, `WRITTEN` operands of `~`, and `MADE` slices. Each name ends with a space, so that a template
cannot use these filters itself.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from dpad.runtime.text.template_budget import Exhausted

TICK, READ, WRITTEN, MADE = "tick ", "read ", "written ", "made "
_DEAR: dict[type[nodes.Node], int] = {
    nodes.Getattr: 20,
    nodes.NSRef: 20,
    nodes.Getitem: 10,
    nodes.Call: 40,
    nodes.Filter: 20,
    nodes.Test: 20,
}
_COMPILING = 300_000  # limit of `metered`, about a second of compiling; large published templates take a tenth
_BODIES = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)

N = TypeVar("N", nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)


def metered(template: nodes.Template) -> nodes.Template:
    """Change `template` in place; raises `Exhausted` for one that takes too long to compile.

    The time is estimated from the nodes, and from branches times names, because the compiler copies the names to each
    branch.
    """
    count, branches, names = 0, 0, set()
    for node in template.find_all(nodes.Node):
        count += 1
        branches += isinstance(node, (nodes.If, nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block, nodes.With))
        if isinstance(node, (nodes.Name, nodes.NSRef)):
            names.add(node.name)
    if count * 20 + branches * len(names) > _COMPILING:
        raise Exhausted(f"it is too large to compile: {count:,} nodes, {branches:,} branches and {len(names):,} names")
    _Meter().visit(template)
    return template


class _Meter(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        if node.test is not None:  # the test also runs for elements that it keeps from the body
            node.test = nodes.And(_tick([node.test], node.lineno), node.test, lineno=node.lineno)
        return self._with_tick(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filtered(node.expr, READ)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, READ)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:  # noqa: N802
        self.generic_visit(node)
        node.nodes = [_filtered(part, WRITTEN) for part in node.nodes]
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:  # noqa: N802
        self.generic_visit(node)
        node.key = _filtered(node.key, READ)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, MADE) if isinstance(node.arg, nodes.Slice) else node

    def _with_tick(self, node: N) -> N:
        tick = nodes.ExprStmt(_tick(node.body, node.lineno), lineno=node.lineno)
        self.generic_visit(node)
        node.body.insert(0, tick)
        return node

    visit_Macro = visit_CallBlock = visit_Block = _with_tick  # noqa: N815


def _filtered(node: nodes.Expr, name: str) -> nodes.Expr:
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _tick(body: Sequence[nodes.Node], line: int) -> nodes.Expr:
    return nodes.Filter(nodes.Const(1 + _steps(body), lineno=line), TICK, [], [], None, None, lineno=line)


def _steps(body: Iterable[nodes.Node]) -> int:
    """Least steps, of 0.1 µs, of code that runs once; bodies with a `TICK` of their own are left out."""
    total = 0
    for node in body:
        total += _DEAR.get(type(node), 2)
        if isinstance(node, nodes.TemplateData):
            total += len(node.data) // 4
        elif isinstance(node, nodes.If):
            branches = [node.body, *(branch.body for branch in node.elif_), node.else_]
            total += _steps([node.test, *(branch.test for branch in node.elif_)]) + max(map(_steps, branches))
        elif isinstance(node, _BODIES):
            total += _steps(node.iter_child_nodes(exclude=("body",)))
        else:
            total += _steps(node.iter_child_nodes())
    return total
