"""The trace's shared key/value state, as versions that can no longer change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol, assert_never

import msgspec

from tinyllm.errors import ValueMismatch, ValueNotStorable
from tinyllm.graph.definition import Reducer
from tinyllm.graph.redact import Redaction
from tinyllm.graph.tags import short
from tinyllm.graph.values import capture, reads, restore

Order = tuple[int, tuple[int, ...], int, str, int]
"""By which items are presented: depth of cause, fan-out path, place of the node in the graph, activation id,
ordinal. What caused comes before what it caused; what is concurrent is ordered the same way in every execution."""

_decode_order = msgspec.json.Decoder(Order).decode


class StoredRow(Protocol):
    """What a store keeps of one change of a variable: its full value, or an item with its `Order` as JSON."""

    @property
    def seq(self) -> int: ...
    @property
    def body(self) -> bytes: ...
    @property
    def order(self) -> bytes | None: ...


def capture_variables(values: Mapping[str, Any], path: str, redaction: Redaction | None = None) -> dict[str, bytes]:
    """Variables as they are recorded.

    :raises ValueNotStorable: a value cannot be, or a name is no text.
    """
    for key in values:
        if not isinstance(key, str):
            raise ValueNotStorable(f"{path}[{key!r}]", f"the name of a variable must be text, not {type(key).__name__}")
        capture(key, f"{path}[{key!r}]")
    captured = {key: capture(value, f"{path}[{key!r}]") for key, value in values.items()}
    return captured if redaction is None else redaction.variables(captured)


class Version:
    """One version of one variable: a full value and the items appended to it since. It is presented as the list with
    the items at its end, or as the dict updated by each of the items, which are dicts then.

    All versions of a chain share one growing list of items, of which each sees the first `count`: appending costs the
    item, not the list. The object is decoded once, when first read, and lent to all readers.
    """

    __slots__ = ("_items", "_value", "base", "body", "count", "seqs")

    def __init__(
        self,
        base: int,
        body: bytes,
        items: list[tuple[Order, bytes]] | None = None,
        count: int = 0,
        seqs: int | None = None,
    ) -> None:
        self.base = base
        """The seq of the row that holds the full value."""
        self.seqs = base if seqs is None else seqs
        """The sum of the seqs of all its rows."""
        self.body = body
        self._items = [] if items is None else items
        self.count = count
        self._value: Any = _UNREAD

    @classmethod
    @reads("a variable with its items")
    def stored(cls, rows: Sequence[StoredRow]) -> Version:
        """The version that a store keeps as `rows`: first the full value, then its items."""
        full, *items = rows
        version = cls(full.seq, full.body)
        for item in items:
            assert item.order is not None
            version = version.appended(item.seq, _decode_order(item.order), item.body)
        return version

    def appended(self, seq: int, order: Order, item: bytes) -> Version:
        """The next version, by the row `seq`. Only the newest version of a chain may be appended to; one that was made
        from it before, and given up, is overwritten."""
        self._items[self.count :] = [(order, item)]
        return Version(self.base, self.body, self._items, self.count + 1, self.seqs + seq)

    @property
    def value(self) -> Any:
        if self._value is _UNREAD:
            self._value = self._read()
        return self._value

    @reads("a variable with its items")
    def _read(self) -> Any:
        value = restore(self.body)
        items = (restore(item) for _, item in sorted(self._items[: self.count]))
        if isinstance(value, list):
            value.extend(items)
        else:
            for item in items:
                value.update(item)
        return value

    @property
    def captured(self) -> bytes:
        """The whole value as one."""
        return capture(self.value) if self.count else self.body

    def fresh(self) -> Version:
        """The same bytes, with an object of its own."""
        return Version(self.base, self.body, self._items, self.count, self.seqs)

    def __reduce__(self) -> tuple[Any, ...]:
        return Version, (self.base, self.body, self._items[: self.count], self.count, self.seqs)


_UNREAD = object()


def reduced(key: str, reducer: Reducer, present: Version | None, body: bytes) -> tuple[bytes | None, bytes | None]:
    """What a write of `body` records: a new full value, or None where the present one stays; then an item that is
    appended to it, or None. `present` is None for a variable that is not there yet.

        last     what is written
        append   a list; what is written is one more item
        add      a number; what is written is added to it
        merge    a dict; the keys of what is written replace its own

    :raises ValueMismatch: what is written, or what is there, does not fit the reducer.
    """
    match reducer:
        case "last":
            return body, None
        case "append":
            if present is not None and not present.body.startswith(b"["):
                raise _misfit(key, reducer, "holds", present.body, "a list")
            return (b"[]" if present is None else None), body
        case "merge":
            if not _is_dict(body):
                raise _misfit(key, reducer, "was given", body, "a dict")
            if present is not None and not _is_dict(present.body):
                raise _misfit(key, reducer, "holds", present.body, "a dict")
            return (b"{}" if present is None else None), body
        case "add":
            if not _is_number(number := restore(body)):
                raise _misfit(key, reducer, "was given", body, "a number")
            if present is None:
                return body, None
            if not _is_number(present.value):
                raise _misfit(key, reducer, "holds", present.captured, "a number")
            try:
                return capture(present.value + number, f"variables[{key!r}]"), None
            except (TypeError, ArithmeticError, ValueNotStorable) as error:  # a Decimal and a float, or too large
                raise ValueMismatch(f"variables[{key!r}]", f"has the reducer add, which failed: {error}") from None
        case _:
            assert_never(reducer)


def _is_dict(body: bytes) -> bool:
    """By how it was captured: other kinds than JSON's are objects whose only key begins with `$`."""
    return body.startswith(b"{") and (not body.startswith(b'{"$') or body.startswith(b'{"$dict"'))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _misfit(key: str, reducer: Reducer, verb: str, body: bytes, wanted: str) -> ValueMismatch:
    value = restore(body)
    reason = f"has the reducer {reducer}, but {verb} {short.repr(value)} of type {type(value).__name__}, not {wanted}"
    return ValueMismatch(f"variables[{key!r}]", reason)


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
