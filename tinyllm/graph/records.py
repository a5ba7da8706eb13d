"""`record`: the decorator of what is made with every node, and then never changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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


__all__ = ["record"]
