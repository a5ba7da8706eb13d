"""The interpreter of conditions: what each operation does, and how much of it is too much."""

from __future__ import annotations

import ast
import difflib
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import attrs

from tinyllm.errors import ConditionError
from tinyllm.graph.tags import short

MAX_BITS = 4096
"""Of an integer that is calculated with."""

MAX_GROWTH = 2**20
"""Characters or items by which a result may be longer than the longest part it is made of."""

NUMBERS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_SYMBOLS = dict(zip(NUMBERS, ("+", "-", "*", "/", "//", "%", "**"), strict=True))

COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}

SIGNS: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}

FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    "len": (),
    "int": (),
    "float": (),
    "str": (),
    "bool": (),
    "min": ("default",),
    "max": ("default",),
    "abs": (),
    "round": ("ndigits",),
    "sum": (),
    "any": (),
    "all": (),
    "sorted": ("reverse",),
}
"""With the keyword arguments they take."""

_BUILTINS: Mapping[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (len, int, float, str, bool, min, max, abs, round, sum, any, all, sorted)
}

_TEXT_METHODS = """
capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii isdecimal isdigit isidentifier
islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix
replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill
"""
_TEXT = frozenset(_TEXT_METHODS.split())
_DICT = frozenset({"get", "keys", "values", "items"})

METHODS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(sorted(_TEXT | _DICT), ()),
    "split": ("sep", "maxsplit"),
    "rsplit": ("sep", "maxsplit"),
    "splitlines": ("keepends",),
}
"""Likewise. Without `format`, which reads attributes, and `encode` and `translate`, which leave plain text."""

_EXPECTED = (TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError)
"""What operations on plain data raise."""


# -- places in the source --------------------------------------------------------------------------------------
# A tree's positions count from the stripped source, since Python takes no leading space for an expression.


_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|$)")
"""What Python takes for a line; `str.splitlines` knows more line ends, which may be inside of a string."""


def offset_of(text: str, line: int, column: int) -> int:
    """Where a line (from 1) and a column (from 0) are in the whole text, from 0."""
    return sum(len(part) for part in _LINE.findall(text)[: line - 1]) + column


def column_of(source: str, node: ast.AST) -> int | None:
    """Where `node` begins in `source`, in characters from 1."""
    if not isinstance(node, (ast.expr, ast.keyword)):
        return None
    text = source.strip()
    before = _LINE.findall(text)[node.lineno - 1].encode()[: node.col_offset]  # the parser counts UTF-8 bytes
    return source.index(text) + offset_of(text, node.lineno, len(before.decode())) + 1


def text_of(source: str, node: ast.expr) -> str:
    """The part of `source` that `node` was parsed from, shortened."""
    text = ast.get_source_segment(source.strip(), node) or ""
    return text if len(text) <= 80 else f"{text[:40]} ... {text[-35:]}"


def near_names(name: str, known: Iterable[Any]) -> str:
    """The end of a message that tells what was likely meant."""
    near = difflib.get_close_matches(name, [key for key in known if isinstance(key, str)], 2)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


# -- the interpreter -------------------------------------------------------------------------------------------


@attrs.frozen
class Evaluation:
    """One evaluation of a tree that was checked."""

    source: str
    names: Mapping[str, Any]

    def run(self, tree: ast.expr) -> bool:
        return bool(self.value(tree))

    def value(self, node: ast.expr) -> Any:
        try:
            return _RULES[type(node)](self, node)
        except _EXPECTED as error:
            reason = error.args[-1] if error.args else type(error).__name__  # an OverflowError has a number first
            self.fail(node, f"`{text_of(self.source, node)}`: {reason}")

    def fail(self, node: ast.expr, reason: str) -> NoReturn:
        known = list(self.names)
        shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        raise ConditionError(self.source, f"{reason} (names: {shown})", column_of(self.source, node)) from None

    def name(self, node: ast.Name) -> Any:
        try:
            return self.names[node.id]
        except KeyError:
            self.fail(node, f"there is no name {node.id!r}{near_names(node.id, self.names)}")

    def logic(self, node: ast.BoolOp) -> Any:
        decisive = isinstance(node.op, ast.Or)
        result: Any = None
        for part in node.values:
            result = self.value(part)
            if bool(result) is decisive:
                break
        return result

    def comparison(self, node: ast.Compare) -> Any:
        left = self.value(node.left)
        result: Any = True
        for op, side in zip(node.ops, node.comparators, strict=True):
            right = self.value(side)
            result = COMPARISONS[type(op)](left, right)
            if not result:
                break
            left = right
        return result

    def choice(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.value(node.test) else node.orelse)

    def sign(self, node: ast.UnaryOp) -> Any:
        operand = self.value(node.operand)
        if not (isinstance(node.op, ast.Not) or _is_number(operand)):
            raise TypeError(f"a {type(operand).__name__} has no sign")
        return SIGNS[type(node.op)](operand)

    def calculation(self, node: ast.BinOp) -> Any:
        return _calculate(type(node.op), self.value(node.left), self.value(node.right))

    def subscript(self, node: ast.Subscript) -> Any:
        base = self.value(node.value)
        if isinstance(node.slice, ast.Slice):
            bounds = node.slice.lower, node.slice.upper, node.slice.step
            return base[slice(*[None if bound is None else self.value(bound) for bound in bounds])]
        key = self.value(node.slice)
        try:
            return base[key]
        except KeyError:
            text, shown = text_of(self.source, node.value), short.repr(key)
            near = near_names(key, base) if isinstance(key, str) else ""
            self.fail(node, f"{text} has no key {shown}{near}; write {text}.get({shown}) where it may be missing")

    def call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute):
            method = _method(self.value(node.func.value), node.func.attr)
        else:
            method = _function(node.func.id)  # type: ignore[attr-defined]  # the check left only names
        return method(
            [self.value(item) for item in node.args], {str(k.arg): self.value(k.value) for k in node.keywords}
        )

    def dict(self, node: ast.Dict) -> Any:
        return {
            self.value(key): self.value(item)
            for key, item in zip(node.keys, node.values, strict=True)
            if key is not None
        }


_RULES: Mapping[type[ast.expr], Callable[[Evaluation, Any], Any]] = {
    ast.Constant: lambda _, node: node.value,
    ast.Name: Evaluation.name,
    ast.Subscript: Evaluation.subscript,
    ast.Compare: Evaluation.comparison,
    ast.BoolOp: Evaluation.logic,
    ast.Call: Evaluation.call,
    ast.UnaryOp: Evaluation.sign,
    ast.BinOp: Evaluation.calculation,
    ast.IfExp: Evaluation.choice,
    ast.List: lambda self, node: [self.value(item) for item in node.elts],
    ast.Tuple: lambda self, node: tuple([self.value(item) for item in node.elts]),
    ast.Set: lambda self, node: {self.value(item) for item in node.elts},
    ast.Dict: Evaluation.dict,
}


# -- operations ------------------------------------------------------------------------------------------------

Call = Callable[[list[Any], dict[str, Any]], Any]


def _check_growth(size: int) -> None:
    if size > MAX_GROWTH:
        raise ValueError(f"the result would grow by more than {MAX_GROWTH} characters or items")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _calculate(kind: type[ast.operator], left: Any, right: Any) -> Any:
    if kind is ast.Add and type(left) is type(right) and isinstance(left, (str, list, tuple)):
        _check_growth(min(len(left), len(right)))
        return left + right
    if kind is ast.Mult and isinstance(left, (str, int)) and isinstance(right, (str, int)):
        # Text only: lists of lists, repeated, soon unfold to more than any comparison gets through.
        text, times = (left, right) if isinstance(left, str) else (right, left)
        if isinstance(text, str) and isinstance(times, int):
            _check_growth(len(text) * times)
            return text * times
    if not (_is_number(left) and _is_number(right)):
        raise TypeError(f"{_SYMBOLS[kind]} is not available for {type(left).__name__} and {type(right).__name__}")
    if isinstance(left, int) and isinstance(right, int):
        bits = max(left.bit_length(), right.bit_length())
        if kind is ast.Pow:
            bits = max(bits, left.bit_length() * abs(right))
        elif kind is ast.Mult:
            bits = left.bit_length() + right.bit_length()
        if bits > MAX_BITS:
            raise ValueError(f"the number would have more than {MAX_BITS} bits")
    result = NUMBERS[kind](left, right)
    if isinstance(result, complex):
        raise ValueError("a negative number has no such power")
    return result


def _function(name: str) -> Call:
    function = _BUILTINS[name]

    def call(args: list[Any], named: dict[str, Any]) -> Any:
        match name, args:
            case (("int" | "float"), [str(text), *_]) if len(text) > 1000:
                raise ValueError("the text is too long for a number")
            case "str", [value] if isinstance(value, str) or not isinstance(value, Iterable):
                pass
            case "str", _:
                raise TypeError("str() takes one value, which is no list or dict")
            case "sum", [items, *start] if not all(map(_is_number, [*items, *start])):
                raise TypeError("only numbers can be summed")
            case "round", _ if any(isinstance(n, int) and abs(n) > 400 for n in (*args[1:], *named.values())):
                raise ValueError("a number cannot be rounded to so many digits")
        return function(*args, **named)

    return call


def _method(value: Any, name: str) -> Call:
    if isinstance(value, str) and name in _TEXT:
        method = getattr(str, name)

        def call(args: list[Any], named: dict[str, Any]) -> Any:
            match name, args:
                case (("center" | "ljust" | "rjust" | "zfill"), [int(width), *_]):
                    _check_growth(width - len(value))
                case "expandtabs", [int(size)]:
                    _check_growth(value.count("\t") * size)
                case "replace", [str(old), str(new), *_]:
                    _check_growth(value.count(old) * (len(new) - len(old)))
                case "join", [items]:
                    args = [list(items)]
                    sizes = list(map(len, args[0]))
                    _check_growth(sum(sizes) + len(value) * len(sizes) - max(sizes, default=0))
            return method(value, *args, **named)

        return call
    if isinstance(value, Mapping) and name in _DICT:
        return lambda args, named: getattr(value, name)(*args, **named)
    raise TypeError(f"{type(value).__name__} has no method {name}()")
