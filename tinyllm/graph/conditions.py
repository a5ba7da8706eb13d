"""Conditions on edges: a small language, read as a Python expression and interpreted here, never run as Python.

It has the names of the message and the trace, literals, comparisons, `and or not`, `+ - * / // % **`, indexing and
slices, `in`, conditional expressions, some built-in functions, and the methods of texts and dicts that change nothing.
Everything else is refused when the condition is compiled. There are no loops, so what an evaluation costs is bounded
by the length of its source and of the values it meets; what could still blow up (powers, repetition, padding) is
checked before it is done.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import attrs

from tinyllm.errors import ConditionError
from tinyllm.graph.evaluate import (
    FUNCTIONS,
    MAX_BITS,
    METHODS,
    NUMBERS,
    SIGNS,
    Evaluation,
    column_of,
    near_names,
    offset_of,
    text_of,
)
from tinyllm.graph.messages import MessagePayload
from tinyllm.graph.tags import short

FIELDS = ("content", "structured", "route", "confidence", "matched_condition", "metadata", "error")
"""The names that every message has; `variables`, `step` and the keys of its metadata come with them."""

MAX_SOURCE = 4096
"""Characters."""

MAX_DEPTH = 100
"""Operations inside each other; each costs the interpreter two frames."""


@attrs.frozen
class Condition:
    """A compiled condition: `holds` may be asked any number of times, from any thread."""

    source: str
    tree: ast.expr = attrs.field(repr=False, eq=False)

    def holds(self, names: Mapping[str, Any]) -> bool:
        """Whether it is true (as in `if`) of these names.

        :raises ConditionError: it cannot be told: a name or key is missing, types do not fit, a result is too large.
        """
        return Evaluation(self.source, names).run(self.tree)


def compile_condition(source: str) -> Condition:
    """Read and check a condition.

    :raises ConditionError: it does not parse or holds what conditions may not; with the column, from 1.
    """
    if len(source) > MAX_SOURCE:
        raise ConditionError(source[:40] + "...", f"is longer than {MAX_SOURCE} characters; decide it in a node")
    text = source.strip()
    if not text:
        raise ConditionError(source, "is empty; leave it out for an edge that is always taken")
    start = source.index(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "\d" and the like are mistakes, and arrive as SyntaxError
            tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        if not error.offset:  # the parser's way to say that it wanted more
            raise ConditionError(source, "does not parse: it ends too early", start + len(text) + 1) from None
        column = offset_of(text, error.lineno or 1, error.offset - 1)
        raise ConditionError(source, f"does not parse: {error.msg}", start + column + 1) from None
    except (RecursionError, MemoryError):
        raise ConditionError(source, "is nested too deeply; decide it in a node") from None
    except ValueError as error:  # a null character
        raise ConditionError(source, f"does not parse: {error}") from None
    _Check(source).check(tree, 1)
    return Condition(source, tree)


@attrs.frozen(eq=False)
class _Environment(Mapping[str, Any]):
    payload: MessagePayload
    variables: Mapping[str, Any]
    step: int

    def __getitem__(self, name: str) -> Any:
        if name == "variables":
            return self.variables
        if name == "step":
            return self.step
        if name == "error":
            return None if self.payload.error is None else attrs.asdict(self.payload.error)
        if name == "matched_condition":
            return self.payload.metadata.get(name)
        return getattr(self.payload, name) if name in FIELDS else self.payload.metadata[name]

    def __iter__(self) -> Iterator[str]:
        yield from FIELDS
        yield from ("variables", "step")
        yield from (key for key in self.payload.metadata if key not in (*FIELDS, "variables", "step"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def environment(payload: MessagePayload, variables: Mapping[str, Any], step: int) -> Mapping[str, Any]:
    """The names that a condition sees. Nothing is read before it is asked for; `error` is a dict, or None."""
    return _Environment(payload, variables, step)


# -- what is refused -------------------------------------------------------------------------------------------

_NAMES = {
    ast.Lambda: "functions",
    ast.NamedExpr: "assignments",
    ast.ListComp: "comprehensions",
    ast.SetComp: "comprehensions",
    ast.DictComp: "comprehensions",
    ast.GeneratorExp: "generators",
    ast.JoinedStr: "f-strings",
    ast.Starred: "starred arguments",
    ast.Await: "await",
    ast.Yield: "yield",
    ast.YieldFrom: "yield",
}


@attrs.frozen
class _Check:
    source: str

    def refuse(self, node: ast.AST, reason: str) -> NoReturn:
        raise ConditionError(self.source, reason, column_of(self.source, node))

    def check(self, node: ast.AST, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.refuse(node, f"is nested more than {MAX_DEPTH} levels deep; decide it in a node")
        match node:
            case ast.Constant(value=value):
                if not (value is None or isinstance(value, (bool, int, float, str))):
                    self.refuse(node, f"{short.repr(value)} is no text, number, True, False or None")
                if isinstance(value, int) and value.bit_length() > MAX_BITS:
                    self.refuse(node, "the number is too large")
            case ast.Tuple(elts=items) if any(isinstance(item, ast.Slice) for item in items):
                self.refuse(node, "texts and lists have one index")
            case ast.Name() | ast.List() | ast.Tuple() | ast.Set() | ast.BoolOp() | ast.IfExp():
                pass
            case ast.Subscript() | ast.Slice():
                pass
            case ast.Dict(keys=keys):
                if None in keys:
                    self.refuse(node, "`**` is not available in conditions")
            case ast.UnaryOp(op=sign):
                if type(sign) not in SIGNS:
                    self.refuse(node, "bitwise operators are not available in conditions; use and, or, not")
            case ast.BinOp(op=op):
                if type(op) not in NUMBERS:
                    self.refuse(node, "bitwise operators are not available in conditions; use and, or, not")
            case ast.Compare():
                self.comparison(node)
            case ast.Call():
                self.call(node)
            case ast.Attribute(value=base, attr=name):
                key = f"{text_of(self.source, base)}[{name!r}]"
                self.refuse(node, f"attributes are not available; write {key} for a key of a dict")
            case _:
                what = _NAMES.get(type(node), type(node).__name__)
                self.refuse(node, f"{what} are not available in conditions; decide it in a node")
        for child in _children(node):
            self.check(child, depth + 1)

    def comparison(self, node: ast.Compare) -> None:
        sides = [node.left, *node.comparators]
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
            if isinstance(op, (ast.Is, ast.IsNot)) and not (_is_singleton(left) or _is_singleton(right)):
                self.refuse(left, "`is` compares only with None, True or False; use ==")

    def call(self, node: ast.Call) -> None:
        match node.func:
            case ast.Name(id=name):
                if name not in FUNCTIONS:
                    near = near_names(name, FUNCTIONS)
                    self.refuse(node, f"there is no function {name!r}{near}; there are: {', '.join(FUNCTIONS)}")
                taken = FUNCTIONS[name]
            case ast.Attribute(attr=name):
                if name not in METHODS:
                    reason = f"there is no method {name!r}{near_names(name, METHODS)}"
                    self.refuse(node, f"{reason}; only methods of texts and dicts that change nothing can be called")
                taken = METHODS[name]
            case _:
                self.refuse(node, "only functions and methods can be called")
        for keyword in node.keywords:
            if keyword.arg not in taken:
                self.refuse(keyword, f"{name}() takes no argument {keyword.arg or '**'!r} here")


def _children(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions in `node`, without the name of a function or method."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword):
            yield child.value
        elif isinstance(node, ast.Call) and child is node.func:
            if isinstance(child, ast.Attribute):
                yield child.value
        elif isinstance(child, ast.expr):
            yield child


def _is_singleton(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool))
