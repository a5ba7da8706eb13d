"""The trace's shared key/value state, as versions that can no longer change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tinyllm.errors import ValueNotStorable
from tinyllm.graph.values import capture, restore

Order = tuple[int, tuple[int, ...], int, str, int]
"""By which appended items are presented: depth of cause, fan-out path, place of the node in the graph, activation id,
ordinal. What caused comes before what it caused; what is concurrent is ordered the same way in every execution."""


def capture_variables(values: Mapping[str, Any], path: str) -> dict[str, bytes]:
    """Variables as they are recorded.

    :raises ValueNotStorable: a value cannot be, or a name is no text.
    """
    for key in values:
        if not isinstance(key, str):
            raise ValueNotStorable(f"{path}[{key!r}]", f"the name of a variable must be text, not {type(key).__name__}")
        capture(key, f"{path}[{key!r}]")
    return {key: capture(value, f"{path}[{key!r}]") for key, value in values.items()}


class Version:
    """One version of one variable: a full value and the items appended to it since.

    All versions of a chain share one growing list of items, of which each sees the first `count`: appending costs the
    item, not the list. The object is decoded once, when first read, and lent to all readers.
    """

    __slots__ = ("_items", "_value", "base", "body", "count")

    def __init__(self, base: int, body: bytes, items: list[tuple[Order, bytes]] | None = None, count: int = 0) -> None:
        self.base = base
        """The seq of the row that holds the full value."""
        self.body = body
        self._items = [] if items is None else items
        self.count = count
        self._value: Any = _UNREAD

    def appended(self, order: Order, item: bytes) -> Version:
        """The next version. Only the newest version of a chain may be appended to; one that was made from it before,
        and given up, is overwritten."""
        self._items[self.count :] = [(order, item)]
        return Version(self.base, self.body, self._items, self.count + 1)

    @property
    def value(self) -> Any:
        if self._value is _UNREAD:
            value = restore(self.body)
            if self.count:
                value.extend(restore(item) for _, item in sorted(self._items[: self.count]))
            self._value = value
        return self._value

    def fresh(self) -> Version:
        """The same bytes, with an object of its own."""
        return Version(self.base, self.body, self._items, self.count)

    def __reduce__(self) -> tuple[Any, ...]:
        return Version, (self.base, self.body, self._items[: self.count], self.count)


_UNREAD = object()


class Variables(Mapping[str, Any]):
    """Read access by key to a set of versions; decodes only what is read."""

    __slots__ = ("versions",)

    def __init__(self, versions: Mapping[str, Version]) -> None:
        self.versions = versions

    def __getitem__(self, key: str) -> Any:
        return self.versions[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.versions)

    def __len__(self) -> int:
        return len(self.versions)

    def __contains__(self, key: object) -> bool:
        return key in self.versions

    def __repr__(self) -> str:
        return f"Variables({', '.join(sorted(self.versions))})"
