"""Why a restored value does not fit an annotation, and where: what the hooks of `hooks.py` raise."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from cattrs.errors import AttributeValidationNote, ClassValidationError, ForbiddenExtraKeysError

from tinyllm.graph.tags import short


@attrs.define(eq=False)
class Misfit(Exception):
    """A mismatch; `path` is relative to what the hook was given, each container puts its part in front."""

    path: str
    reason: str


def misfits_of(error: Exception) -> Iterator[tuple[str, str]]:
    """What does not fit, each with its relative path: cattrs collects the errors of a class's fields in a group."""
    if isinstance(error, Misfit):
        yield error.path, error.reason
    elif isinstance(error, ClassValidationError):
        for inner in error.exceptions:
            note = next((n for n in getattr(inner, "__notes__", ()) if isinstance(n, AttributeValidationNote)), None)
            if note is None:
                yield from misfits_of(inner)
            elif isinstance(inner, KeyError):
                yield "", f"has no {note.name!r}, which {name_of(error.cl)} needs"
            else:
                yield from ((f".{note.name}{path}", reason) for path, reason in misfits_of(inner))
    elif isinstance(error, ForbiddenExtraKeysError):
        yield "", unknown_keys(error.extra_fields, error.cl)
    elif isinstance(error, RecursionError):
        yield "", "is nested too deeply"
    else:  # a validator of the class's own
        yield "", f"is refused by its class: {type(error).__name__}: {error}"


def at(part: str, error: Exception) -> Misfit:
    """The first misfit in `error`, in the member that `part` leads to."""
    path, reason = next(misfits_of(error))
    return Misfit(part + path, reason)


def inside(what: str, member: Any, error: Exception) -> Misfit:
    """The same for a member that no path leads to: a key, an element of a set."""
    path, reason = next(misfits_of(error))
    return Misfit("", f"has the {what} {short.repr(member)}, which{path} {reason}")


def wrong(value: Any, expected: str) -> Misfit:
    return Misfit("", f"is {short.repr(value)} of type {type(value).__name__}, not {expected}")


def unknown_keys(keys: Iterable[Any], cls: Any) -> str:
    return f"has {', '.join(sorted(map(short.repr, keys)))}, which {name_of(cls)} does not know"


def name_of(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
