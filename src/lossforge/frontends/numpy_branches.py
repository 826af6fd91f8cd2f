"""Branches within loops, as choices: ``if margin > 0: loss += margin`` in each turn, and ``a if x > y else b``.

Python asks for the truth of a value at each turn, and would go one way only. So the text of a function is rewritten before
it is recorded: where the condition is an array of one truth value, both ways are gone, and what they leave in the names that
they assign is chosen by it. Anything else is as Python has it. Ways that leave the turn or the function (`break`, `return`,
`raise`), that append to lists, or call something for what it does, are left alone; `continue` is what follows in the other way.
"""

from __future__ import annotations
import __future__

import ast
import collections
import copy
import dis
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lossforge.frontends.decisions import GROWING, SAYING
from lossforge.frontends.numpy_recorder import DECISION, Recorder, refuse

_LEAVING = (
    ast.Return, ast.Break, ast.Continue, ast.Raise, ast.Yield, ast.YieldFrom, ast.Await, ast.Delete, ast.FunctionDef,
    ast.ClassDef, ast.Assert, ast.Global, ast.Nonlocal, ast.Try, ast.With, ast.Import, ast.ImportFrom,
)  # fmt: skip
"""What a way may not do."""


@functools.lru_cache(4096)
def branched(code: types.CodeType, everywhere: bool = False) -> types.CodeType:
    """The code of a function with its branches within loops, or everywhere, as choices; its own code if there are none, or no text."""
    if code.co_name == "<lambda>" or any(n.startswith("_") and "__" in n[1:] for n in code.co_names if n[-2:] != "__"):
        return code  # a part of a line, and names that depend on a class
    if not _has(_BRANCHES if everywhere else _LOOPS, code):  # which is told sooner than by its text
        return code
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):
        return code
    (found,) = tree.body[:1] or (None,)
    if not isinstance(found, ast.FunctionDef):
        return code
    rewriter = _Rewriter(found)
    if everywhere and _depth(found) <= _DEEPEST:
        rewriter.loops = 1
        found.body = _with_one_return(found.body) or found.body
    found.body = rewriter.block(found.body)
    if not rewriter.changed:
        return code
    found.decorator_list, found.returns, found.args.defaults = [], None, []
    found.args.kw_defaults = [None for _ in found.args.kwonlyargs]
    for argument in ast.walk(found.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    module = ast.parse(f"def around({', '.join(code.co_freevars)}): pass")
    module.body[0].body = [found]  # type: ignore[attr-defined]
    ast.fix_missing_locations(module)
    ast.increment_lineno(module, code.co_firstlineno - 1)
    flags = code.co_flags & sum(getattr(__future__, n).compiler_flag for n in __future__.all_feature_names)
    around = _inner(compile(module, code.co_filename, "exec", flags, dont_inherit=True), "around")
    return _inner(around, code.co_name)


def _has(operations: frozenset[int], code: types.CodeType) -> bool:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return not operations.isdisjoint(code.co_code[::2]) or any(_has(operations, c) for c in inner)


_LOOPS = frozenset({dis.opmap["FOR_ITER"]})
_BRANCHES = frozenset(code for name, code in dis.opmap.items() if "IF_TRUE" in name or "IF_FALSE" in name)
_DEEPEST = 6
"""Of branches in branches, each of which is written twice."""


def _depth(node: ast.AST) -> int:
    below = max(map(_depth, ast.iter_child_nodes(node)), default=0)
    return below + isinstance(node, ast.If)


def _with_one_return(body: Sequence[ast.stmt]) -> list[ast.stmt] | None:
    """A function's statements with one `return`, at their end; None if a loop or the like is left by one."""
    found = _assigned(body)
    return None if found is None else [*found, ast.copy_location(ast.Return(_load(_RESULT)), body[-1])]


def _assigned(body: Sequence[ast.stmt]) -> list[ast.stmt] | None:
    """Statements that assign a result in place of returning it, on every way."""
    for i, statement in enumerate(body):
        before, rest = list(body[:i]), list(body[i + 1 :])
        if isinstance(statement, ast.Return):
            result = statement.value or ast.Constant(None)
            return [*before, ast.copy_location(ast.Assign([_store(_RESULT)], result), statement)]
        if isinstance(statement, ast.Raise):
            return [*before, statement]
        if not any(isinstance(n, ast.Return) for n in _within_function([statement])):
            continue
        if not isinstance(statement, ast.If) or not (_ends(statement.body) or _ends(statement.orelse)):
            return None
        one = _assigned(statement.body if _ends(statement.body) else [*statement.body, *rest])
        other = _assigned(statement.orelse if _ends(statement.orelse) else [*statement.orelse, *rest])
        if one is None or other is None:
            return None
        return [*before, ast.copy_location(ast.If(statement.test, one, other), statement)]
    return (
        [*body, ast.copy_location(ast.Assign([_store(_RESULT)], ast.Constant(None)), body[-1])]
        if body
        else [ast.Assign([_store(_RESULT)], ast.Constant(None))]
    )


def _ends(body: Sequence[ast.stmt]) -> bool:
    """Whether nothing follows after these statements."""
    last = body[-1] if body else None
    return isinstance(last, ast.Return | ast.Raise) or (
        isinstance(last, ast.If) and _ends(last.body) and _ends(last.orelse)
    )


def _within_function(statements: Sequence[ast.AST]) -> list[ast.AST]:
    """All that stands in statements, but for functions and classes that are defined there."""
    found: list[ast.AST] = []
    pending = list(statements)
    while pending:
        node = pending.pop()
        found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return found


def _inner(code: types.CodeType, name: str) -> types.CodeType:
    return next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)


def _call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(_PREFIX + name, ast.Load()), list(args), [])


def _later(value: ast.expr) -> ast.Lambda:
    none = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.Lambda(none, value)


_PREFIX = "_lossforge_"
_ADDED = _PREFIX + "added"
_RESULT, _APPENDED = "result_of_lossforge", "appended_by_lossforge"


class _Rewriter(ast.NodeTransformer):
    """Rewrites the branches of a function."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self.loads = collections.Counter(
            n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
        )
        given = {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)}
        self.own = given | {
            n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        """The names that are not looked up outside of the function."""
        self.loops = 0
        self.count = 0
        self.changed = False

    def block(self, body: Sequence[ast.stmt]) -> list[ast.stmt]:
        """A list of statements."""
        result: list[ast.stmt] = []
        for i, statement in enumerate(body):
            rest = list(body[i + 1 :])
            if self.loops and isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Continue) and rest:
                skipped = statement.body[:-1] or [ast.copy_location(ast.Pass(), statement)]
                whole = ast.If(statement.test, skipped, [*statement.orelse, *rest])
                return [*result, *self._listed(ast.copy_location(whole, statement))]
            result += self._listed(statement)
        return result

    def _listed(self, statement: ast.stmt) -> list[ast.stmt]:
        found = self.visit(statement)
        return found if isinstance(found, list) else [found]

    def visit_For(self, node: ast.For) -> ast.For:
        """A loop."""
        self.loops += 1
        node.body = self.block(node.body)
        self.loops -= 1
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """A function within, whose loops are its own."""
        loops, self.loops = self.loops, 0
        node.body = self.block(node.body)
        self.loops = loops
        return node

    def _within(self, node: Any) -> Any:
        self.loops += 1
        self.generic_visit(node)
        self.loops -= 1
        return node

    visit_ListComp = visit_GeneratorExp = _within

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        """``a if condition else b``."""
        self.generic_visit(node)
        if not self.loops:
            return node
        self.changed = True
        return ast.copy_location(_call("either", _condition(node.test), _later(node.body), _later(node.orelse)), node)

    def visit_If(self, node: ast.If) -> ast.If | list[ast.stmt]:
        """A branch."""
        if self.loops and (appended := _appending(node)) is not None:
            chosen, name = appended
            value = ast.Expr(ast.Call(ast.Attribute(_load(name), "append", ast.Load()), [_load(_APPENDED)], []))
            return [*self._listed(chosen), ast.copy_location(value, node)]
        node.body, node.orelse = self.block(node.body), self.block(node.orelse)
        ways = _nodes((*node.body, *node.orelse))
        if not self.loops or any(isinstance(n, _LEAVING) or _grows(n) for n in _acting((*node.body, *node.orelse))):
            return node
        if not _written(ways) <= self.own:
            return node
        usual = copy.deepcopy((node.body, node.orelse))
        self.count += 1
        kinds = _totals(ways)
        totals = [_Name(n, f"{_ADDED}{self.count}_to_{n}") for n in kinds]
        for n in ways:
            if isinstance(n, ast.Name):
                n.id = next((t.added for t in totals if t.name == n.id), n.id)
        stored = {n.id for n in ways if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} | _written(ways)
        stored = {n for n in stored if not n.startswith(_PREFIX) and not self._is_local(n, node, ways)}
        names = sorted(stored | {t.added for t in totals})
        if not names:
            return node
        self.changed = True
        condition, before, one, other = (f"{_PREFIX}{k}{self.count}" for k in ("condition", "before", "one", "other"))
        held = _call("held", _call("locals"), ast.Tuple([ast.Constant(n) for n in names], ast.Load()))
        targets = ast.Tuple([_store(n) for n in names], ast.Store())
        both: list[ast.stmt] = [
            *(ast.Assign([_store(t.added)], ast.Constant(0)) for t in totals),
            ast.Assign([_store(before)], held), *node.body, ast.Assign([_store(one)], held),
            ast.Assign([targets], _call("back", _load(before))), *node.orelse, ast.Assign([_store(other)], held),
            ast.Assign([targets], _call("chosen", _load(condition), _load(one), _load(other))),
            *(_plus(t, kinds[t.name]) for t in totals),
        ]  # fmt: skip
        found = [
            ast.Assign([_store(condition)], _condition(node.test)),
            ast.If(_call("is_open", _load(condition)), both, [ast.If(_load(condition), *usual)]),
        ]
        return [ast.copy_location(s, node) for s in found]

    def _is_local(self, name: str, node: ast.If, ways: Sequence[ast.AST]) -> bool:
        """Whether a name is asked for in the ways alone, and not before it is assigned there."""
        if name in (_RESULT, _APPENDED) or self.loads[name] > sum(_is_load(n, name) for n in ways):
            return False
        return all(_begins_with(name, way) for way in (node.body, node.orelse))


def _is_load(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)


def _begins_with(name: str, way: Sequence[ast.stmt]) -> bool:
    """Whether a way does not name something before it assigns it."""
    for statement in way:
        named = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == name]
        if named:
            return isinstance(statement, ast.Assign) and named == [t for t in statement.targets if t in named]
    return True


class _Name(NamedTuple):
    """The name of a total, and of what the ways add to it."""

    name: str
    added: str


def _plus(total: _Name, kind: type[ast.stmt]) -> ast.stmt:
    if kind is ast.AugAssign:
        return ast.AugAssign(_store(total.name), ast.Add(), _load(total.added))
    return ast.Assign([_store(total.name)], ast.BinOp(_load(total.name), ast.Add(), _load(total.added)))


def _load(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _store(name: str) -> ast.Name:
    return ast.Name(name, ast.Store())


def _nodes(statements: Sequence[ast.stmt]) -> list[ast.AST]:
    return [n for s in statements for n in ast.walk(s)]


def _appending(node: ast.If) -> tuple[ast.If, str] | None:
    """A branch whose ways all end in appending to one list, with names for what is appended; and the list."""
    ways = []
    names = set[str]()
    for way in (node.body, node.orelse):
        last = way[-1] if way else None
        if isinstance(last, ast.If):
            if (inner := _appending(last)) is None:
                return None
            ways.append([*way[:-1], inner[0]])
            names.add(inner[1])
            continue
        call = last.value if isinstance(last, ast.Expr) else None
        if not isinstance(call, ast.Call) or _called(call) != "append" or len(call.args) != 1 or call.keywords:
            return None
        of = getattr(call.func, "value", None)
        if not isinstance(of, ast.Name):
            return None
        ways.append([*way[:-1], ast.copy_location(ast.Assign([_store(_APPENDED)], call.args[0]), node)])
        names.add(of.id)
    if len(names) != 1:
        return None
    return ast.copy_location(ast.If(node.test, *ways), node), names.pop()


def _acting(statements: Sequence[ast.stmt]) -> list[ast.AST]:
    """What stands in statements, but for checks: branches that end in an exception."""
    found: list[ast.AST] = []
    pending: list[ast.AST] = list(statements)
    while pending:
        node = pending.pop()
        found.append(node)
        is_check = isinstance(node, ast.If) and isinstance(node.body[-1], ast.Raise)
        pending += [node.test, *node.orelse] if is_check else ast.iter_child_nodes(node)  # type: ignore[attr-defined]
    return found


def _total(node: ast.AST) -> str | None:
    """The name that a statement adds to, or takes from: ``x += y``, or ``x = x + y - z``."""
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub):
        return node.target.id if isinstance(node.target, ast.Name) else None
    if not isinstance(node, ast.Assign) or len(node.targets) > 1 or not isinstance(node.value, ast.BinOp):
        return None
    (target,), first = node.targets, node.value
    while isinstance(first, ast.BinOp) and isinstance(first.op, ast.Add | ast.Sub):
        first = first.left  # type: ignore[assignment]
    same = isinstance(target, ast.Name) and isinstance(first, ast.Name) and first.id == target.id
    return first.id if same else None  # type: ignore[attr-defined]


def _totals(ways: Sequence[ast.AST]) -> dict[str, type[ast.stmt]]:
    """Names that are added to, in one way of writing it, and not asked for."""
    found: dict[str, list[type[Any]]] = {}
    for node in ways:
        if (name := _total(node)) is not None:
            found.setdefault(name, []).append(type(node))
    named = collections.Counter(n.id for n in ways if isinstance(n, ast.Name))
    times = {n: sum(1 if k is ast.AugAssign else 2 for k in kinds) for n, kinds in found.items()}
    return {n: kinds[0] for n, kinds in found.items() if len(set(kinds)) == 1 and times[n] == named[n]}


def _condition(test: ast.expr) -> ast.expr:
    """A condition, of which no part is asked for its truth."""
    if isinstance(test, ast.BoolOp):
        name = "all_of" if isinstance(test.op, ast.And) else "any_of"
        return ast.copy_location(_call(name, *(_later(_condition(v)) for v in test.values)), test)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return ast.copy_location(_call("opposite", _condition(test.operand)), test)
    if isinstance(test, ast.Compare) and len(test.ops) > 1:
        terms = [test.left, *test.comparators]
        pairs = [ast.Compare(a, [op], [b]) for a, op, b in zip(terms, test.ops, terms[1:], strict=False)]
        return ast.copy_location(_call("all_of", *(_later(ast.copy_location(p, test)) for p in pairs)), test)
    return test


def _grows(node: ast.AST) -> bool:
    """Whether it changes a list, or is a call for what else that does."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call) and _called(node.value) not in SAYING
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in GROWING


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _written(nodes: Sequence[ast.AST]) -> set[str]:
    """The names of arrays whose entries are assigned."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            base: ast.expr = node
            while isinstance(base, ast.Subscript | ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name):
                found.add(base.id)
    return found


# ------------------------------------------------------------------------------------- while it runs

_Held = dict[str, tuple[Any, Any]]
"""By name: a value, and what it was then, if it is an array that may be written to."""
_UNSET = object()


def is_open(condition: Any) -> bool:
    """Whether both ways are gone: the condition is a truth value that is worked out from the arguments."""
    return type(condition) is Recorder and condition.array.size == 1 and not condition.constant


def held(names: Mapping[str, Any], wanted: Sequence[str]) -> _Held:
    """What names hold now."""
    found = {n: names.get(n, _UNSET) for n in wanted}
    return {n: (v, v.fresh() if type(v) is Recorder and not v.is_argument else v) for n, v in found.items()}


def back(before: _Held) -> tuple[Any, ...]:
    """What names held before, arrays as they were."""
    for value, then in before.values():
        if value is not then:
            value.become(then)
    return tuple(value for value, _ in before.values())


def chosen(condition: Recorder, one: _Held, other: _Held) -> tuple[Any, ...]:
    """For each name, what one way leaves in it where the condition holds, else what the other leaves."""
    return tuple(_choice(condition, one[n], other[n], n.startswith(_ADDED)) for n in one)


def _choice(condition: Recorder, one: tuple[Any, Any], other: tuple[Any, Any], is_added: bool) -> Any:
    (a, x), (b, y) = one, other
    if x is y or b is _UNSET or a is _UNSET:
        return b if a is _UNSET else a
    if type(x) is Recorder and type(y) is Recorder and x.ref == y.ref:
        return b
    if type(x) is type(y) and type(x) in (int, float, bool, str) and x == y:
        return b
    result = _selected(condition, x, y, is_added)
    if a is b and type(a) is Recorder:
        a.become(result)
        return a
    return result


def _selected(condition: Recorder, x: Any, y: Any, broadcast: bool = False) -> Any:
    numbers = int | float | np.generic | np.ndarray
    if not (isinstance(x, numbers) and isinstance(y, numbers)) or not (broadcast or np.shape(x) == np.shape(y)):
        refuse(DECISION)
    return np.where(_truth(condition), x, y)


def _truth(condition: Any) -> Any:
    return np.reshape(condition if condition.dtype.kind == "b" else condition != 0, ())


def either(condition: Any, one: Callable[[], Any], other: Callable[[], Any]) -> Any:
    """``one() if condition else other()``."""
    if not is_open(condition):
        return one() if condition else other()
    return _selected(condition, one(), other())


def all_of(*conditions: Callable[[], Any]) -> Any:
    """``a and b and …``."""
    return _joined(conditions, np.logical_and, True)


def any_of(*conditions: Callable[[], Any]) -> Any:
    """``a or b or …``."""
    return _joined(conditions, np.logical_or, False)


def _joined(conditions: Sequence[Callable[[], Any]], join: Callable[..., Any], neutral: bool) -> Any:
    result: Any = neutral
    for condition in conditions:
        value = condition()
        if is_open(value):
            result = join(result, _truth(value)) if is_open(result) else _truth(value)
        elif bool(value) is not neutral:
            return value
    return result


def opposite(condition: Any) -> Any:
    """``not condition``."""
    return np.logical_not(_truth(condition)) if is_open(condition) else not condition


HELPERS: Mapping[str, Any] = {
    _PREFIX + f.__name__: f for f in (is_open, held, back, chosen, either, all_of, any_of, opposite, locals)
}
"""What the rewritten text calls."""
