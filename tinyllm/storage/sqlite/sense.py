"""Whether what was read makes sense: SQLite keeps a text in an INTEGER column if somebody puts one there.

Checked once, where records leave the database, by the annotations of their own classes. Behind it a record has the
types that it says, its numbers are not negative (but a priority, which whoever reads it sees to, may be), and its times
are ones that a calendar has.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, ParamSpec, TypeVar

import attrs

from tinyllm.errors import CheckpointDamaged, ValueNotStorable
from tinyllm.graph.values import NONSENSE
from tinyllm.storage.contract import TraceRecord
from tinyllm.storage.sqlite.library import sqlite3

P = ParamSpec("P")
T = TypeVar("T")

LATEST = 2.5e11
"""Seconds since 1970 (in the year 9892), or of a duration."""

Check = Callable[[Any], bool]
"""Whether all of a column's values are as they should be."""


class Nonsense(Exception):
    """A row holds what no tinyllm wrote. Where it is not known to be a trace's, `translated` says it of the file."""


def sensible(read: Callable[P, T]) -> Callable[P, T]:
    """Have a method that reads raise, for what makes no sense, `CheckpointDamaged` if its first argument names a trace
    (or is the record of one), else `Nonsense`."""
    of = read.__code__.co_varnames[1]

    @functools.wraps(read)
    def checked(*args: P.args, **options: P.kwargs) -> T:
        try:
            found = read(*args, **options)
            check(found)
        except UnicodeEncodeError as error:  # a lone surrogate in what was asked for
            raise ValueNotStorable("what was looked for", "has a lone surrogate in it, which nothing has") from error
        except (*NONSENSE, Nonsense, sqlite3.OperationalError) as error:
            if isinstance(error, sqlite3.OperationalError) and not str(error).startswith("Could not decode to UTF-8"):
                raise
            what = f"its rows make no sense ({str(error) or type(error).__name__})"
            if of == "trace_id":
                raise CheckpointDamaged(str(args[1]), None, what) from error
            if isinstance(args[1], TraceRecord):
                raise CheckpointDamaged(args[1].trace_id, None, what) from error
            raise Nonsense(what) from error
        return found

    return checked


@contextmanager
def legible(connection: sqlite3.Connection) -> Iterator[None]:
    """Within it, a text that is none is read all the same, with other characters in place of what is wrong."""
    connection.text_factory = lambda text: text.decode(errors="replace")
    try:
        yield
    finally:
        connection.text_factory = str


def check(found: Any) -> None:
    """:raises Nonsense: a record, or one in a list of records of one kind, has a value that it cannot have."""
    records = found if type(found) is list else [found]
    kind: Any = type(records[0]) if records else None
    for name, is_well in _checks(kind):
        if not is_well(list(map(attrgetter(name), records))):
            raise Nonsense(f"{kind.__name__}.{name}")


@functools.cache
def _checks(cls: Any) -> list[tuple[str, Check]]:
    if not attrs.has(cls):
        return []
    hints = typing.get_type_hints(cls)
    return [
        (field.name, is_well)
        for field in attrs.fields(cls)
        if field.name != "priority" and (is_well := _check_of(hints[field.name])) is not None
    ]


def _check_of(hint: Any) -> Check | None:
    """What checks the values of a field; None for those of other kinds, that the code makes itself."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType and parts[1:] == (types.NoneType,):
        return _behind(_check_of(parts[0]), lambda inner, values: inner([v for v in values if v is not None]))
    if origin is typing.Literal:
        return lambda values: _are(values, str) and set(values) <= set(parts)
    if hint is int:
        return lambda values: not values or (_are(values, int) and min(values) >= 0)
    if hint is float:
        return lambda values: not values or (_are(values, float, int) and min(values) >= 0 and max(values) < LATEST)
    if hint is str or hint is bytes:
        return lambda values: _are(values, hint)
    if origin is tuple:
        known = set if parts[0] is int else list  # paths, which are mostly the same; but not whole rows
        return _behind(_check_of(parts[0]), lambda inner, values: all(inner(list(value)) for value in known(values)))
    if origin is Mapping:
        return _behind(_check_of(parts[1]), lambda inner, values: all(inner(list(v.values())) for v in values))
    return _are_well if isinstance(hint, type) and attrs.has(hint) else None


def _behind(inner: Check | None, apply: Callable[[Check, list[Any]], bool]) -> Check | None:
    return None if inner is None else functools.partial(apply, inner)


def _are(values: list[Any], *kinds: type) -> bool:
    return set(map(type, values)) <= set(kinds)


def _are_well(records: list[Any]) -> bool:
    check(records)
    return True
