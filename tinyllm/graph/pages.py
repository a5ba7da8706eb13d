"""Sequences whose items stay where they are kept until they are looked at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from typing import Any, TypeVar, overload

from tinyllm.errors import ValueNotReadable

T = TypeVar("T")

PAGE = 1000
"""How many items are read at a time by whoever goes through all of them."""


class Pages(Sequence[T]):
    """A sequence that knows its length, and reads what it is asked for: one item, a slice, or page after page."""

    __slots__ = ("_length",)

    def __init__(self, length: int) -> None:
        self._length = length

    @abstractmethod
    def read(self, start: int, count: int) -> list[T]:
        """The items from index `start` on, `count` of them; all of those are there."""

    @property
    @abstractmethod
    def place(self) -> object:
        """What is read: two that have the same place are equal without reading anything."""

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            wanted = range(self._length)[index]
            if not wanted:
                return []
            low, high = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
            return self._whole(low, high - low + 1)[:: wanted.step]
        (item,) = self._whole(range(self._length)[index], 1)
        return item

    def __iter__(self) -> Iterator[T]:
        for start in range(0, self._length, PAGE):
            yield from self._whole(start, min(PAGE, self._length - start))

    def _whole(self, start: int, count: int) -> list[T]:
        items = self.read(start, count)
        if len(items) != count:  # else one that was told a wrong length would be gone through for ever
            raise ValueNotReadable(f"of {self._length:,} items, number {start + len(items) + 1:,} is missing")
        return items

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Pages) and other.place == self.place:
            return True
        return _same(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self._length:,} items, read when they are looked at>"


class Editable(MutableSequence[T]):
    """A sequence that may be changed, over one that stays as it is: the first change makes a list of its own."""

    __slots__ = ("_items", "_own")

    def __init__(self, items: Sequence[T]) -> None:
        self._items = items
        self._own: list[T] | None = None

    def _changing(self) -> list[T]:
        if self._own is None:
            self._items = self._own = list(self._items)
        return self._own

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> MutableSequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | MutableSequence[T]:
        return list(self._items[index]) if isinstance(index, slice) else self._items[index]

    @overload
    def __setitem__(self, index: int, value: T) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[T]) -> None: ...
    def __setitem__(self, index: Any, value: Any) -> None:
        self._changing()[index] = value

    def __delitem__(self, index: int | slice) -> None:
        del self._changing()[index]

    def insert(self, index: int, value: T) -> None:
        self._changing().insert(index, value)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        return self._items == other._items if isinstance(other, Editable) else _same(self._items, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._items)


def _same(items: Sequence[Any], other: object) -> bool:
    """Whether `other` is a sequence of the same items. (Text is none: it would be one of characters.)"""
    if not isinstance(other, Sequence) or isinstance(other, str | bytes):
        return False
    return len(items) == len(other) and all(one == another for one, another in zip(items, other, strict=True))
