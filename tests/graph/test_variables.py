"""Versions of variables, and what the reducers make of a write."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.errors import ValueMismatch
from tinyllm.graph.definition import Reducer
from tinyllm.graph.values import capture
from tinyllm.graph.variables import Order, Version, reduced

Item = tuple[Order, Any]

orders: st.SearchStrategy[Order] = st.tuples(
    st.integers(0, 3),
    st.lists(st.integers(0, 3), max_size=2).map(tuple),
    st.integers(0, 2),
    st.text("0123456789abcdef", min_size=2, max_size=2),
    st.integers(0, 2),
)
keys = st.sampled_from(["a", "b", "$c", ""]) | st.integers(0, 2)
values = st.none() | st.integers(-3, 3) | st.text(max_size=2) | st.lists(st.integers(0, 2), max_size=2)
dicts = st.dictionaries(keys, values, max_size=3)


def items_of(item: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Item]]:
    return st.lists(st.tuples(orders, item), max_size=6, unique_by=lambda each: each[0])


@attrs.frozen
class Row:
    seq: int
    body: bytes
    order: bytes | None = None


def chain(full: Any, items: Sequence[Item]) -> Version:
    version = Version(1, capture(full))
    for order, item in items:
        version = version.appended(1, order, capture(item))
    return version


def rows(full: Any, items: Sequence[Item]) -> list[Row]:
    added = [Row(2 + n, capture(item), msgspec.json.encode(order)) for n, (order, item) in enumerate(items)]
    return [Row(1, capture(full)), *added]


@given(st.lists(values, max_size=3), items_of(values), st.randoms())
def test_a_list_ends_with_its_items_in_causal_order(full: list[Any], items: list[Item], random: Any) -> None:
    expected = full + [item for _, item in sorted(items, key=lambda each: each[0])]
    random.shuffle(items)
    assert chain(full, items).value == expected


@given(dicts, items_of(dicts), st.randoms())
def test_a_dict_is_updated_by_its_items_in_causal_order(full: Any, items: list[Item], random: Any) -> None:
    expected = dict(full)
    for _, item in sorted(items, key=lambda each: each[0]):
        expected |= item
    random.shuffle(items)
    value = chain(full, items).value
    assert value == expected
    assert list(value) == list(expected)


@given(
    st.tuples(st.lists(values, max_size=3), items_of(values)) | st.tuples(dicts, items_of(dicts)),
)
def test_what_is_stored_or_sent_elsewhere_is_the_same_value(given: tuple[Any, list[Item]]) -> None:
    version = chain(*given)
    stored = Version.stored(rows(*given))
    for other in (stored, version.fresh(), pickle.loads(pickle.dumps(version)), Version(1, version.captured)):
        assert other.value == version.value
    assert (stored.base, stored.count) == (1, len(given[1]))
    assert version.captured == capture(version.value)


@given(dicts, items_of(dicts))
def test_earlier_versions_stay_as_they_were(full: Any, items: list[Item]) -> None:
    versions = [version := chain(full, [])]
    for order, item in items:
        versions.append(version := version.appended(1, order, capture(item)))
    for count, version in enumerate(versions):
        assert version.value == chain(full, items[:count]).value


def test_a_version_that_was_given_up_is_overwritten() -> None:
    first = chain({"a": 1}, [])
    first.appended(1, (0, (), 0, "00", 0), capture({"a": 2}))
    assert first.appended(1, (0, (), 0, "01", 0), capture({"b": 3})).value == {"a": 1, "b": 3}


# -- reducers --------------------------------------------------------------------------------------------------


def write(reducer: Reducer, present: Version | None, value: Any, order: Order) -> Version:
    """As a plan does it."""
    full, item = reduced("key", reducer, present, capture(value))
    version = present if full is None else Version(1, full)
    assert version is not None
    return version if item is None else version.appended(1, order, item)


def run(reducer: Reducer, present: Version | None, writes: Sequence[Item]) -> Any:
    for order, value in writes:
        present = write(reducer, present, value, order)
    return None if present is None else present.value


@given(items_of(dicts), st.none() | dicts, st.randoms())
def test_merges_end_the_same_in_any_order_of_execution(writes: list[Item], first: Any, random: Any) -> None:
    present = None if first is None else Version(1, capture(first))
    in_order = run("merge", present, writes)
    random.shuffle(writes)
    assert run("merge", None if first is None else Version(1, capture(first)), writes) == in_order


@given(st.lists(st.integers() | st.sampled_from([2**64, -(2**70)]), min_size=1), st.none() | st.integers())
def test_numbers_are_added(numbers: list[int], first: int | None) -> None:
    present = None if first is None else Version(1, capture(first))
    writes: list[Item] = [((0, (), 0, "", n), number) for n, number in enumerate(numbers)]
    assert run("add", present, writes) == sum(numbers) + (first or 0)


def test_all_kinds_of_numbers_are_added() -> None:
    at = (0, (), 0, "", 0)
    assert write("add", chain(0.5, []), 1, at).value == 1.5
    assert write("add", chain(Decimal("0.1"), []), Decimal("0.2"), at).value == Decimal("0.3")


def test_what_is_written_is_all_that_is_recorded() -> None:
    assert reduced("key", "last", chain([1], []), b"2") == (b"2", None)
    assert reduced("key", "append", None, b"2") == (b"[]", b"2")
    assert reduced("key", "append", chain([1], []), b"2") == (None, b"2")
    assert reduced("key", "merge", None, b'{"a":1}') == (b"{}", b'{"a":1}')
    assert reduced("key", "merge", chain({"b": 1}, []), b'{"a":1}') == (None, b'{"a":1}')
    assert reduced("key", "add", None, b"2") == (b"2", None)
    assert reduced("key", "add", chain(1, []), b"2") == (b"3", None)


@pytest.mark.parametrize(
    ("reducer", "present", "value", "message"),
    [
        ("append", {"a": 1}, 1, "holds {'a': 1} of type dict, not a list"),
        ("append", (1,), 1, "holds (1,) of type tuple, not a list"),
        ("append", None, 1, "holds None of type NoneType, not a list"),
        ("merge", {}, [1], "was given [1] of type list, not a dict"),
        ("merge", {}, {1, 2}, "was given {1, 2} of type set, not a dict"),
        ("merge", [], {"a": 1}, "holds [] of type list, not a dict"),
        ("merge", b"", {"a": 1}, "holds b'' of type bytes, not a dict"),
        ("add", 1, "1", "was given '1' of type str, not a number"),
        ("add", 1, True, "was given True of type bool, not a number"),
        ("add", False, 1, "holds False of type bool, not a number"),
        ("add", None, 1, "holds None of type NoneType, not a number"),
        ("add", [1], 1, "holds [1] of type list, not a number"),
    ],
)
def test_what_does_not_fit_the_reducer_is_refused(reducer: Reducer, present: Any, value: Any, message: str) -> None:
    with pytest.raises(ValueMismatch) as caught:
        reduced("key", reducer, Version(1, capture(present)), capture(value))
    assert str(caught.value) == f"variables['key']: has the reducer {reducer}, but {message}"


@pytest.mark.parametrize(
    ("present", "value", "reason"),
    [
        (0.5, Decimal("0.5"), "unsupported operand"),
        (1e308, 1e308, "is inf"),
        (2**2000, 0.5, "int too large to convert to float"),
        (Decimal("9e999999"), Decimal("9e999999"), "Overflow"),
    ],
)
def test_numbers_that_cannot_be_added_are_refused(present: Any, value: Any, reason: str) -> None:
    with pytest.raises(ValueMismatch) as caught:
        reduced("key", "add", Version(1, capture(present)), capture(value))
    assert "has the reducer add, which failed: " in str(caught.value)
    assert reason in str(caught.value)


@given(st.sampled_from(["append", "add", "merge"]), st.none() | values | dicts, values | dicts | st.booleans())
def test_a_write_is_recorded_or_refused(reducer: Reducer, first: Any, value: Any) -> None:
    present = None if first is None else Version(1, capture(first))
    try:
        version = write(reducer, present, value, (0, (), 0, "", 0))
    except ValueMismatch:
        return
    assert type(version.value) is {"append": list, "add": int, "merge": dict}[reducer]
