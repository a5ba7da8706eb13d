"""The shape of a graph definition: which keys it may have, and which values they take.

A definition is plain data, as a graph file holds it and as `GraphBuilder` collects it. A rule is a function that yields
what is wrong with a value. Nothing is coerced: "yes" is not true and 1.0 is not "1.0".
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from keyword import iskeyword
from typing import Any, get_args

import attrs

from tinyllm.graph.definition import Edge, Limits, Node, Reducer, Retry
from tinyllm.graph.durations import duration_text, parse_duration
from tinyllm.graph.findings import Finding, Path, did_you_mean, listed, near, quoted, shown
from tinyllm.graph.ids import LONGEST

Rule = Callable[[Any, Path], Iterable[Finding]]

_GRAPH_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NODE_ID = re.compile(rf"[a-z][a-z0-9_\.]{{0,{LONGEST - 1}}}")
_WINDOW = re.compile(r"window\(([1-9][0-9]{0,17})\)")
_MAX_DEPTH = 32

UNKNOWN = ""
"""Stands for an id or a type that cannot be read; what it should be is left open."""


def _text(value: Any, path: Path) -> Iterator[Finding]:
    if not isinstance(value, str):
        yield Finding(path, f"must be text, not {shown(value)}{_quote(value)}")
    else:
        yield from _whole(value, path)


def _whole(text: str, path: Path) -> Iterator[Finding]:
    """Half a character (a lone surrogate) can be in Python's texts, but in no file and no store."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        yield Finding(path, f"has the lone surrogate {text[error.start]!a} in it, at index {error.start}; remove it")


def _word(value: Any, path: Path) -> Iterator[Finding]:
    yield from _text(value, path)
    if value == "":
        yield Finding(path, "must not be empty")


def _graph_id(value: Any, path: Path) -> Iterator[Finding]:
    yield from _text(value, path)
    if isinstance(value, str) and not _GRAPH_ID.fullmatch(value):
        rule = "it takes up to 64 letters, digits, `.`, `_` and `-`, and begins with a letter or a digit"
        yield Finding(path, f"{quoted(value)} cannot be a graph's id: {rule}")


def _node_id(value: Any, path: Path) -> Iterator[Finding]:
    yield from _text(value, path)
    if isinstance(value, str) and not _NODE_ID.fullmatch(value):
        better = re.sub(r"[^a-z0-9_.]+", "_", value[:LONGEST].lower()).strip("_.").lstrip("0123456789_.")
        hint = f"; try `{better}`" if better else ""
        rule = f"it takes up to {LONGEST} of a-z, 0-9, `_` and `.`, and begins with a letter"
        yield Finding(path, f"{quoted(value)} cannot be a node's id: {rule}{hint}")


def _flag(value: Any, path: Path) -> Iterator[Finding]:
    if not isinstance(value, bool):
        yield Finding(path, f"must be true or false, not {shown(value)}")


def _count(value: Any, path: Path) -> Iterator[Finding]:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        yield Finding(path, f"must be a whole number from 1, not {shown(value)}")


def _number(least: float, most: float = sys.float_info.max) -> Rule:
    bounds = f"from {least:g}" if most == sys.float_info.max else f"from {least:g} to {most:g}"

    def rule(value: Any, path: Path) -> Iterator[Finding]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            yield Finding(path, f"must be a number {bounds}, not {shown(value)}")

    return rule


def _wait(value: Any, path: Path) -> Iterator[Finding]:
    """A length of time, which may be none."""
    try:
        parse_duration(value)
    except ValueError as error:
        yield Finding(path, str(error))


def _time(value: Any, path: Path) -> Iterator[Finding]:
    """A length of time in which something can happen."""
    yield from (wrong := list(_wait(value, path)))
    if not wrong and not parse_duration(value):
        yield Finding(path, f"must be longer than {value}; leave it out where nothing is to be limited")


def _history(value: Any, path: Path) -> Iterator[Finding]:
    if not isinstance(value, str) or (value not in ("all", "none") and not _WINDOW.fullmatch(value)):
        hint = f"; write `window({value})`" if re.fullmatch("[1-9][0-9]*", str(value)) else ""
        yield Finding(path, f"must be `all`, `none` or `window(N)` with N from 1, not {shown(value)}{hint}")


def _exceptions(value: Any, path: Path) -> Iterator[Finding]:
    yield from (wrong := list(_names(value, path)))
    for index, name in enumerate([] if wrong else value):
        if not all(part.isidentifier() and not iskeyword(part) for part in name.split(".")):
            rule = "write it as in Python, `ValueError` or `httpx.HTTPError`"
            yield Finding((*path, index), f"{quoted(name)} cannot be the name of an exception class; {rule}")


def _retry(value: Any, path: Path) -> Iterator[Finding]:
    if isinstance(value, dict):
        yield from (wrong := RETRY.check(value, path))
        if not wrong and (retry := _retry_of(value)).initial > retry.max:
            longest = "" if "max" in value else f", which is {duration_text(retry.max)} by default"
            yield Finding((*path, "initial"), f"is longer than `max`{longest}; make that longer as well")
    elif any(_count(value, path)):
        need = "must be a whole number of attempts from 1, or a mapping with `max_attempts`"
        yield Finding(path, f"{need}, not {shown(value)}")


def _weight(value: Any, path: Path) -> Iterator[Finding]:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != 1:
        yield Finding(path, f"a weight has no meaning yet and must be 1, not {shown(value)}; leave it out")


def _one_of(*choices: str) -> Rule:
    *most, last = (f"`{choice}`" for choice in choices)
    names = f"{', '.join(most)} or {last}"

    def rule(value: Any, path: Path) -> Iterator[Finding]:
        if value not in choices:
            guess = did_you_mean(near(value, choices)) if isinstance(value, str) else ""
            given = quoted(value) if isinstance(value, str) else shown(value)
            yield Finding(path, f"must be {names}, not {given}{guess}")

    return rule


def _names(value: Any, path: Path) -> Iterator[Finding]:
    """A list of texts, none of them twice."""
    if not isinstance(value, list):
        hint = f"; write [{value}]" if isinstance(value, str) else ""
        yield Finding(path, f"must be a list, not {shown(value)}{hint}")
        return
    if not value:
        yield Finding(path, "is an empty list; give it an entry, or leave it out")
    seen: set[str] = set()
    for index, item in enumerate(value):
        yield from _word(item, (*path, index))
        if isinstance(item, str):
            if item in seen:
                yield Finding((*path, index), f"{quoted(item)} is listed twice")
            seen.add(item)


def _reducers(value: Any, path: Path) -> Iterator[Finding]:
    if not isinstance(value, dict):
        yield Finding(path, f"must be a mapping of names to reducers, not {shown(value)}")
        return
    rule = _one_of(*get_args(Reducer))
    for key, item in value.items():
        yield from _key(key, (*path, key))
        yield from rule(item, (*path, key))


def _data(value: Any, path: Path) -> Iterator[Finding]:
    """What JSON can say."""
    if len(path) > _MAX_DEPTH:
        yield Finding(path[:3], f"is nested more than {_MAX_DEPTH} levels deep")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _key(key, (*path, key))
            yield from _data(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _data(item, (*path, index))
    elif isinstance(value, float) and not math.isfinite(value):
        yield Finding(path, f"must be a finite number, not {value!r}")
    elif isinstance(value, str):
        yield from _whole(value, path)
    elif not isinstance(value, str | int | float | None):
        yield Finding(path, f"must be text, a number, true, false, a list or a mapping, not {shown(value)}")


def _mapping(value: Any, path: Path) -> Iterator[Finding]:
    if isinstance(value, dict):
        yield from _data(value, path)
    else:
        yield Finding(path, f"must be a mapping, not {shown(value)}")


def _key(key: Any, path: Path) -> Iterator[Finding]:
    for finding in _text(key, path):
        yield attrs.evolve(finding, message=f"a key {finding.message}", on_key=True)


def _quote(value: Any) -> str:
    """YAML guesses a type for bare words; whoever meant text must be told which word it was."""
    match value:
        case bool():
            return "; quote it (yes, no, on and off also mean true and false in YAML)"
        case int() | float():
            return f'; quote it: "{value}"'
        case _:
            return ""


@attrs.frozen
class Keys:
    """The keys that one kind of mapping takes."""

    noun: str
    rules: Mapping[str, Rule]
    required: tuple[str, ...] = ()

    def read(self, value: Any, path: Path, findings: list[Finding]) -> dict[str, Any]:
        """Check a mapping, note what is wrong, and return the part of it that is right."""
        if not isinstance(value, dict):
            need = " and ".join(f"`{key}`" for key in self.required)
            takes = f"a mapping with {need}" if need else "a mapping"
            findings.append(Finding(path, f"{self.noun} must be {takes}, not {shown(value)}"))
            return {}
        right = {}
        for key, item in value.items():
            at = (*path, key)
            if rule := self.rules.get(key):
                wrong = list(rule(item, at))
                findings.extend(wrong)
                if not wrong:
                    right[key] = item
            elif isinstance(key, str):
                known = did_you_mean(near(key, self.rules)) or f"; {self.noun} takes {self._takes()}"
                findings.append(Finding(at, f"unknown key{known}", on_key=True))
            else:
                findings.extend(_key(key, at))
        findings.extend(
            Finding(path, f"{self.noun} needs `{key}`, which is missing") for key in self.required if key not in value
        )
        return right

    def check(self, value: Any, path: Path) -> list[Finding]:
        """All that is wrong with a mapping."""
        findings: list[Finding] = []
        self.read(value, path, findings)
        return findings

    def _takes(self) -> str:
        return listed(self.rules, len(self.rules)) if self.rules else "none"


def _unchecked(value: Any, path: Path) -> Iterator[Finding]:  # noqa: ARG001 - read piece by piece
    yield from ()


LIMITS = Keys("the limits of a graph", {"max_steps": _count, "timeout": _time, "max_concurrency": _count})
RETRY = Keys(
    "the retry of a node",
    {
        "max_attempts": _count,
        "initial": _wait,
        "max": _wait,
        "factor": _number(1),
        "jitter": _number(0, 1),
        "on": _exceptions,
    },
    required=("max_attempts",),
)
GRAPH = Keys(
    "a graph",
    {
        "id": _graph_id,
        "version": _word,
        "name": _text,
        "description": _text,
        "metadata": _mapping,
        "nodes": _unchecked,
        "edges": _unchecked,
        "entry_points": _names,
        "exit_points": _names,
        "allow_cycles": _flag,
        "functions": _names,
        "variables": _reducers,
        "history": _history,
        "limits": LIMITS.check,
        "protected": _names,
    },
    required=("id", "nodes"),
)
NODE = Keys(
    "a node",
    {
        "id": _node_id,
        "type": _one_of("function", "entry", "exit"),
        "name": _text,
        "description": _text,
        "config": _unchecked,
        "join": _one_of("any", "all"),
        "process": _flag,
        "max_concurrency": _count,
        "effects": _flag,
        "targets": _names,
        "retry": _retry,
        "timeout": _time,
        "on_error": _word,
    },
    required=("id",),
)
CONFIG = {
    "function": Keys("the config of a function node", {"call": _word}),
    "entry": Keys("the config of an entry node", {}),
    "exit": Keys("the config of an exit node", {}),
}
EDGE = Keys(
    "an edge",
    {"from_node": _word, "to_node": _word, "condition": _text, "weight": _weight, "for_each": _flag},
    required=("from_node", "to_node"),
)


def _history_of(text: str) -> int | None:
    window = _WINDOW.fullmatch(text)
    return int(window[1]) if window else {"all": None, "none": 0}[text]


def _retry_of(value: Any) -> Retry:
    keys = value if isinstance(value, dict) else {"max_attempts": value}
    return Retry(**_parsed(keys, {"initial": parse_duration, "max": parse_duration, "on": tuple}))


def _limits_of(value: dict[str, Any]) -> Limits:
    return Limits(**_parsed(value, {"timeout": parse_duration}))


_Parsers = Mapping[str, Callable[[Any], Any]]
_GRAPH_VALUES: _Parsers = {"history": _history_of, "limits": _limits_of, "protected": tuple}
_NODE_VALUES: _Parsers = {"targets": tuple, "retry": _retry_of, "timeout": parse_duration}


def _parsed(keys: Mapping[str, Any], parsers: _Parsers) -> dict[str, Any]:
    """Well-formed keys, with what their values stand for."""
    return {key: parsers[key](value) if key in parsers else value for key, value in keys.items()}


@attrs.frozen
class Shape:
    """A definition as far as its shape is right, with the places its parts came from."""

    keys: Mapping[str, Any]
    """The graph's own well-formed keys, without `nodes` and `edges`."""
    malformed: frozenset[str]
    """The graph's keys that are there, but not well-formed."""
    nodes: tuple[tuple[Path, Node], ...]
    """Those with a usable id. A malformed type is `UNKNOWN`."""
    edges: tuple[tuple[Path, Edge], ...]
    """A missing or malformed end is `UNKNOWN`."""
    findings: tuple[Finding, ...]


def read(definition: Any) -> Shape:
    """Check the shape of a whole definition; never raises."""
    findings: list[Finding] = []
    keys = GRAPH.read(definition, (), findings)
    malformed = frozenset(definition if isinstance(definition, dict) else ()) - keys.keys()
    nodes = []
    for path, item in _items(keys.pop("nodes", []), ("nodes",), "`- id: ...`", findings):
        right = NODE.read(item, path, findings)
        if not isinstance(item, dict):
            continue
        if "type" in item and "type" not in right:
            right |= {"type": UNKNOWN, "config": {}}
        elif "config" in right:
            at = (*path, "config")
            right["config"] = CONFIG[right.get("type", "function")].read(right["config"], at, findings)
        # An id against the pattern is a fault, but edges can name it: to report these as well would be noise.
        if isinstance(item.get("id"), str) and item["id"]:
            right["id"] = item["id"]
            nodes.append((path, Node(**_parsed(right, _NODE_VALUES))))
    if isinstance(definition, dict) and definition.get("nodes") == []:
        findings.append(Finding(("nodes",), "a graph needs at least one node"))
    edges = []
    for path, item in _items(keys.pop("edges", []), ("edges",), "`- {from_node: a, to_node: b}`", findings):
        right = EDGE.read(item, path, findings)
        right.pop("weight", None)
        edges.append((path, Edge(**{"from_node": UNKNOWN, "to_node": UNKNOWN} | right)))
    return Shape(_parsed(keys, _GRAPH_VALUES), malformed, tuple(nodes), tuple(edges), tuple(findings))


def _items(value: Any, path: Path, example: str, findings: list[Finding]) -> Iterator[tuple[Path, Any]]:
    if not isinstance(value, list):
        findings.append(Finding(path, f"must be a list, each item like {example}, not {shown(value)}"))
        return
    for index, item in enumerate(value):
        yield (*path, index), item
