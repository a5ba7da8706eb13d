"""From a restored value to the class that a parameter's annotation names.

Strict: nothing is coerced (`"7"` is no int, `True` is no int, `1.9` is no int) and nothing is dropped (unknown keys are
refused). Only what loses nothing is allowed: an `int` for a `float`, and a list for a tuple and the reverse, as values
that come from JSON text have only lists.

    None, bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID, paths    themselves
    list, tuple, set, frozenset, dict, their abstract kinds, NamedTuple                      member by member
    attrs classes, dataclasses, TypedDict, pydantic models                                   from a dict of fields
    Enum, Literal                                                                            from their values
    unions                                                                                   by what one arm fits
    any other class                                                                          an `isinstance` check
    Any, object, no annotation, type variables                                               unchanged, unchecked
"""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any

from cattrs.errors import StructureHandlerNotFoundError

import tinyllm.graph.models  # noqa: F401 - registers its hook
from tinyllm.errors import ValueMismatch
from tinyllm.graph.hooks import converter, passes
from tinyllm.graph.misfit import misfits_of, name_of


def structure(value: Any, annotation: Any, path: str = "value") -> Any:
    """`value` as an instance of `annotation`.

    :raises ValueMismatch: it does not fit; its `path` begins with the one given here and leads to the fault.
    :raises TypeError: `annotation` is nothing that a value could be structured into.
    """
    convert = structurer(annotation)
    return value if convert is None else convert(value, path)


def structurer(annotation: Any) -> Callable[[Any, str], Any] | None:
    """What `structure` does for one annotation, with everything looked up; None if values pass unchanged.

    :raises TypeError: `annotation` is nothing that a value could be structured into.
    """
    if passes(annotation):
        return None
    kind = NoneType if annotation is None else annotation
    try:
        hook = converter.get_structure_hook(kind)
    except (NameError, StructureHandlerNotFoundError) as error:
        raise TypeError(f"the annotation {name_of(kind)} cannot be resolved: {error}") from None

    def convert(value: Any, path: str) -> Any:
        try:
            return hook(value, kind)
        except Exception as error:
            (first, reason), *others = misfits_of(error)
            also = f" (also wrong: {', '.join(path + other for other, _ in others)})" if others else ""
            raise ValueMismatch(path + first, reason + also) from error

    return convert
