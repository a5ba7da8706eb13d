"""`record`: the decorator of what is made with every node, and then never changed. `unguarded`: how many instances of
what is guarded against changes are made at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

if TYPE_CHECKING:
    from attrs import frozen as record
else:

    def record(cls: type | None = None, *, eq: bool = True, **options: Any) -> Any:
        """A frozen attrs class to the type checker, which nothing here gets past; at run time one that is not guarded.

        attrs makes a frozen instance with a call for each field, which takes three to four times as long; a node makes
        a dozen of them.
        """
        return attrs.define(cls, eq=eq, unsafe_hash=eq or None, **options)


T = TypeVar("T")


class Referable:
    """A base of classes that `unguarded` makes a twin of. Were the slot for weak references their own, the two would
    not have one layout."""

    __slots__ = ("__weakref__",)


def unguarded(cls: type[T]) -> Callable[..., T]:
    """A twin of `cls`, a frozen attrs class: called with the values of all its fields, in order, it makes what is to be
    made one of `cls` at once, by `made.__class__ = cls`.

    That takes a third of the time of `cls(...)`, where attrs makes a call for each field.
    """
    names = [field.name for field in attrs.fields(cls)]  # type: ignore[arg-type]
    return attrs.make_class(
        f"_{cls.__name__}", names, cls.__bases__, slots=True, weakref_slot=False, eq=False, repr=False
    )


__all__ = ["Referable", "record", "unguarded"]
