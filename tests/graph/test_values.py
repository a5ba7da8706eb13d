"""The capture codec: what can be stored comes back equal and of the same type; the rest is refused with its place."""

from __future__ import annotations

import enum
import math
import os
import subprocess
import sys
import types
import uuid
from collections import Counter, OrderedDict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.errors import ValueNotReadable, ValueNotStorable
from tinyllm.graph import values
from tinyllm.graph.values import MAX_DEPTH, capture, digest, restore

BERLIN = ZoneInfo("Europe/Berlin")


def same(left: Any, right: Any) -> bool:
    """Equal, of the same types all through, in the same order where there is one."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (set, frozenset)):
        return left == right and {(type(x), x) for x in left} == {(type(x), x) for x in right}
    if isinstance(left, float):
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    if isinstance(left, (datetime, time)):
        return bool(left == right) and left.fold == right.fold and left.utcoffset() == right.utcoffset()
    return bool(left == right)


ZONES = st.one_of(st.none(), st.just(UTC), st.just(timezone(timedelta(hours=-3, minutes=30))), st.just(BERLIN))
FOLDS = st.sampled_from([0, 1])
HASHABLE_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["$", "$tuple", '"$', "$5.00", '{"$set":[]}']),
    st.binary(max_size=20),
    st.builds(lambda at, fold: at.replace(fold=fold), st.datetimes(timezones=ZONES), FOLDS),
    st.builds(lambda at, fold: at.replace(fold=fold), st.times(timezones=st.sampled_from([None, UTC])), FOLDS),
    st.dates(),
    st.timedeltas(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.uuids(),
    st.sampled_from([Path("a/b"), PurePosixPath("/x"), PureWindowsPath("c:/y"), Path("ü")]),
)
HASHABLE = st.recursive(
    HASHABLE_SCALARS, lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)), max_leaves=4
)
LONG_LISTS = st.one_of(  # of one type: they have a walk of their own
    st.lists(st.integers(), min_size=17, max_size=18),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=17, max_size=18),
    st.lists(st.text(max_size=3), min_size=17, max_size=18),
)
VALUES = st.recursive(
    HASHABLE_SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        LONG_LISTS,
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=5), st.sampled_from(["$", "$tuple"])), inner, max_size=3),
        st.dictionaries(HASHABLE, inner, max_size=3),
        st.sets(HASHABLE, max_size=3),
    ),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_captured_comes_back_the_same(value: Any) -> None:
    body = capture(value)
    assert same(restore(body), value)
    assert capture(restore(body)) == body


@given(VALUES)
def test_both_walks_write_the_same(value: Any) -> None:
    if values._is_plain(value):
        assert capture(value) == msgspec.json.encode(values._Capture().run(value, ""))


def test_plain_values_are_plain_json() -> None:
    assert capture({"a": [1, 1.0, None, True, "ü"]}) == '{"a":[1,1.0,null,true,"ü"]}'.encode()
    assert capture((1, {2})) == b'{"$tuple":[1,{"$set":[2]}]}'
    assert capture(2**64) == b'{"$int":"0x10000000000000000"}'


def test_a_restored_value_is_new_each_time() -> None:
    body = capture([[1]])
    restore(body)[0].append(2)
    assert restore(body) == [[1]]


def test_a_set_has_the_same_bytes_in_every_process() -> None:
    """Whatever the hash seed: the order of a set of strings differs from process to process."""
    program = (
        "from tinyllm.graph.values import capture;"
        "print(capture({'a', 'b', 'c', 'd', 1, 2.5, None, (1, 'x'), frozenset({'p', 'q', 'r'})}))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_an_int_of_any_size() -> None:
    assert restore(capture(-(7**20000))) == -(7**20000)  # far beyond the digits that int(str) takes


# -- what loses its class --------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BOX = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Text(str):
    def __str__(self) -> str:
        return "no"


class Ratio(float):
    pass


Pair = namedtuple("Pair", "x y")


@attrs.frozen
class Measure:
    path: str
    _private: int
    when: Any = None
    derived: int = attrs.field(default=7, init=False)


@attrs.define(slots=False)
class Loose:
    x: int


@dataclass
class Point:
    x: int
    y: Any


@pytest.mark.parametrize(
    ("value", "back"),
    [
        (Colour.RED, "red"),
        (Colour.BOX, (1, 2)),
        ([Level.LOW], [1]),
        (Text("a"), "a"),
        ({Text("a"): Text("b")}, {"a": "b"}),
        (Ratio(0.5), 0.5),
        (Pair(1, [2]), (1, [2])),
        (OrderedDict(a=1), {"a": 1}),
        (Counter("aa"), {"a": 2}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (Measure("p", 1, (2,)), {"path": "p", "_private": 1, "when": (2,), "derived": 7}),
        ([Point(1, Point(2, {3}))], [{"x": 1, "y": {"x": 2, "y": {3}}}]),
        ({Colour.RED: 1}, {"red": 1}),
        ({Colour.BOX: 1}, {(1, 2): 1}),
        ({Colour.RED}, {"red"}),
    ],
)
def test_what_becomes_plain(value: Any, back: Any) -> None:
    assert same(restore(capture(value)), back)


def test_pydantic_models_become_the_dict_of_their_fields() -> None:
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("M", x=(int, ...), y=(Any, None))
    assert restore(capture([model(x=1, y=model(x=2, y={3}))])) == [{"x": 1, "y": {"x": 2, "y": {3}}}]
    assert restore(capture(pydantic.RootModel[list[int]]([1]))) == [1]
    extra = pydantic.create_model("E", __config__={"extra": "allow"})
    assert restore(capture(extra(**{"$a": 1}))) == {"$a": 1}
    with pytest.raises(ValueNotStorable, match=r"^value\.y\.x: is nan"):
        capture(model(x=1, y=model.model_construct(x=NAN)))


# -- what is refused -------------------------------------------------------------------------------------------


def iter_nothing() -> Iterator[int]:
    yield from ()


class Zone(tzinfo):
    def utcoffset(self, _at: datetime | None) -> timedelta:
        return timedelta(hours=1)

    dst = utcoffset

    def tzname(self, _at: datetime | None) -> str:
        return "Somewhere"


NAN = float("nan")
SELF: list[Any] = [1]
SELF.append({"again": SELF})


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        (NAN, "value", "is nan"),
        ([1, float("inf")], "value[1]", "is inf"),
        ([1.0] * 20 + [NAN], "value[20]", "is nan"),
        ({"a": [0, (NAN,)]}, "value['a'][1][0]", "is nan"),
        ({"a": Point(1, [NAN])}, "value['a'].y[0]", "is nan"),
        ([0, 0, 0, Measure("p", 1, object())], "value[3].when", "builtins.object"),
        ({1: NAN}, "value[1]", "is nan"),
        ([Decimal("NaN")], "value[0]", "NaN"),
        (Decimal("-Infinity"), "value", "-Infinity"),
        ("a\ud800", "value", r"lone surrogate '\ud800' at index 1"),
        (["x", {"k": "\udfff"}], "value[1]['k']", "lone surrogate"),
        (["x"] * 20 + ["\udfff"], "value[20]", "lone surrogate"),
        ({"k": {"\ud800": 1}}, "value['k']", r"has '\ud800' in it, which has the lone surrogate"),
        (Path("a\udc80"), "value", "lone surrogate"),
        ({(1, NAN): 1}, "value", "in it, which[1] is nan"),
        ({1, NAN}, "value", "has nan in it, which is nan"),
        (SELF, "value[1]['again']", "contains itself"),
        (object(), "value", "plain data"),
        (len, "value", "builtin_function_or_method"),
        (Point, "value", "builtins.type"),
        (iter_nothing(), "value", "return a list"),
        (bytearray(b"x"), "value", "return bytes"),
        (deque([1]), "value", "return a list"),
        (range(3), "value", "return a list"),
        (1j, "value", "complex"),
        (ValueError("x"), "value", "ValueError"),
        (datetime(2025, 1, 1, tzinfo=Zone()), "value.tzinfo", "Zone"),
        ({Measure("p", 1)}, "value", "come back as dicts"),
        ({Measure("p", 1): 1}, "value", "come back as dicts"),
        ({Colour.RED: 1, "red": 2}, "value", "become equal"),
        ({Colour.RED, "red"}, "value", "become equal"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_place(value: Any, path: str, words: str) -> None:
    with pytest.raises(ValueNotStorable) as caught:
        capture(value)
    assert caught.value.path == path
    assert words in caught.value.reason
    str(caught.value).encode()  # it can be printed anywhere


def test_an_unset_field_is_refused() -> None:
    value = Loose(1)
    del value.x
    with pytest.raises(ValueNotStorable, match=r"^value\.x: is not set"):
        capture(value)


def test_the_path_begins_with_the_one_given() -> None:
    with pytest.raises(ValueNotStorable, match=r"^nodes\.measure: set\['k'\]\[0\]: is nan"):
        capture([NAN], "nodes.measure: set['k']")


WRAPPERS: list[Callable[[Any], Any]] = [
    lambda x: [x],
    lambda x: (x,),
    lambda x: {"k": x},
    lambda x: {1: x},
    lambda x: {"$k": x},
    lambda x: frozenset([x]),
    lambda x: Point(0, x),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_depth_is_bounded(wrap: Any) -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = wrap(value)
    restore(capture(value))
    for deeper in (wrap(value), [value]):
        with pytest.raises(ValueNotStorable, match="nested more than 200 levels"):
            capture(deeper)


@pytest.mark.parametrize("wrap", WRAPPERS[:5])
def test_very_deep_values_are_refused(wrap: Any) -> None:
    value: Any = 1
    for _ in range(100_000):
        value = wrap(value)
    with pytest.raises(ValueNotStorable):
        capture(value)
    while value != 1:  # freed level by level: the tuples' own destructor is not what is tested
        (value,) = value.values() if isinstance(value, dict) else value


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "wrap", [lambda x: [x, x], lambda x: (x, x), lambda x: {"a": x, "b": x}, lambda x: Point(x, x)]
)
def test_a_small_value_that_unfolds_to_a_huge_one_is_refused_at_once(wrap: Any) -> None:
    value: Any = 1
    for _ in range(100):
        value = wrap(value)
    with pytest.raises(ValueNotStorable, match="larger than 64 MiB"):
        capture(value)


@pytest.mark.parametrize("wrap", [lambda x: x, *WRAPPERS[:3], lambda x: {x: 1}])
@pytest.mark.parametrize("piece", ["x", b"x"])
def test_size_is_bounded(monkeypatch: pytest.MonkeyPatch, wrap: Any, piece: Any) -> None:
    monkeypatch.setattr(values, "MAX_BYTES", 1000)
    capture(wrap(piece * 700))
    with pytest.raises(ValueNotStorable, match="larger than"):
        capture(wrap(piece * 1000))


def test_size_counts_what_escapes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "MAX_BYTES", 1000)
    with pytest.raises(ValueNotStorable, match="larger than"):
        capture("\0" * 900)


def test_the_least_size_is_never_above_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    small: list[Any] = [[[], [], {}], {"a": "", "": []}, [0] * 20, [""] * 20, [True, None, 0.0], [[[[]]]], {"a": {}}]
    for value in small:
        monkeypatch.setattr(values, "MAX_BYTES", len(msgspec.json.encode(value)))
        assert restore(capture(value)) == value


def test_a_shared_part_is_written_each_time() -> None:
    part = {"a": (1,)}
    assert restore(capture([part, part, {"x": part}])) == [part, part, {"x": part}]


def test_a_shared_part_counts_as_deep_wherever_it_is() -> None:
    tall: Any = 1
    for _ in range(150):
        tall = [tall]
    part: Any = [tall, [1]]
    below = part
    for _ in range(48):
        below = (below,)
    assert restore(capture([part, below])) == [part, below]
    with pytest.raises(ValueNotStorable, match="nested more than 200 levels"):
        capture([part, (below,)])


def test_near_the_end_of_the_stack_it_is_refused() -> None:
    def descend() -> bool:
        try:
            capture([{"a": [(1,)]}])
        except ValueNotStorable:
            return True
        try:
            return descend()
        except RecursionError:
            return True

    assert descend()


# -- what cannot be read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nope",
        b"1 2",
        b"NaN",
        b"\xff",
        b'"\xff"',
        b'"\\ud800"',
        b"[" * 10**6,
        b"[" * 10**6 + b"]" * 10**6,
        b'{"$tuple":[' * 10**6 + b"]}" * 10**6,
        b'{"$pickle":"x"}',
        b'[{"$":1}]',
        b'{"$tuple":[1],"a":2}',
        b'{"a":2,"$tuple":[1]}',
        b'{"$tuple":1}',
        b'{"$tuple":{"$tuple":[1]}}',
        b'{"$set":[1,1]}',
        b'{"$set":[1,1.0]}',
        b'{"$set":[[1]]}',
        b'{"$dict":[[1]]}',
        b'{"$dict":["ab"]}',
        b'{"$dict":[[1,2],[1,3]]}',
        b'{"$dict":[[[],2]]}',
        b'{"$dict":[{"$tuple":[1,2]}]}',
        b'{"$int":"12"}',
        b'{"$int":"0x_1"}',
        b'{"$int":1}',
        b'{"$bytes":"a"}',
        b'{"$bytes":"YW Jj"}',
        b'{"$bytes":"\\u00fc"}',
        b'{"$datetime":"today"}',
        b'{"$datetime":"2025-01-01T00:00:00[fold=2]"}',
        b'{"$datetime":"2025-01-01T00:00:00+00:00[No/Where]"}',
        b'{"$datetime":"2025-01-01T00:00:00+00:00[../../etc/passwd]"}',
        b'{"$date":"20250101"}',
        b'{"$time":"25:00"}',
        b'{"$timedelta":[1]}',
        b'{"$timedelta":[0,0,-1]}',
        b'{"$timedelta":[0.0,0,1]}',
        b'{"$timedelta":[99999999999,0,0]}',
        b'{"$decimal":"NaN"}',
        b'{"$decimal":"x"}',
        b'{"$uuid":"{00000000-0000-0000-0000-000000000000}"}',
        b'{"$path":1}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_what_was_not_captured_is_refused(body: bytes) -> None:
    with pytest.raises(ValueNotReadable):
        restore(body)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        value = restore(body)
    except ValueNotReadable:
        return
    assert restore(capture(value)) == value


TAGS = st.sampled_from(["$tuple", "$set", "$frozenset", "$dict", "$int", "$bytes", "$datetime", "$date", "$time"])
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(0, 1), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(TAGS, st.sampled_from(["$timedelta", "$decimal", "$uuid", "$path"])), inner, max_size=2
        ),
    ),
    max_leaves=8,
)


@given(JUNK)
def test_any_tags_are_read_or_refused(value: Any) -> None:
    try:
        restored = restore(msgspec.json.encode(value))
    except ValueNotReadable:
        return
    assert same(restore(capture(restored)), restored)


def test_a_zone_whose_rules_have_changed_keeps_the_instant() -> None:
    restored = restore(b'{"$datetime":"2025-06-01T12:00:00+05:00[Europe/Berlin]"}')
    assert restored == datetime(2025, 6, 1, 7, tzinfo=UTC)
    assert restored.tzinfo is BERLIN


def test_digest() -> None:
    assert digest(b"1") == digest(b"1") != digest(b"2")
    assert len(digest(b"")) == 32


def test_registry_is_closed() -> None:
    for value in (uuid.uuid4(), date.today(), timedelta(1)):
        assert type(restore(capture(value))) is type(value)
