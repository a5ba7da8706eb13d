"""A restored value becomes the class of an annotation, strictly, or is refused with the place of the misfit."""

from __future__ import annotations

import enum
import inspect
import typing
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Optional,
    TypedDict,
    TypeVar,
    Union,
)
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.errors import ValueMismatch
from tinyllm.graph.structure import structure, structurer
from tinyllm.graph.values import capture, restore

T = TypeVar("T")
UserId = NewType("UserId", int)


class Colour(enum.Enum):
    RED = "red"
    BOX = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class Mode(str, enum.Enum):  # noqa: UP042 - the mixin is what is tested
    FAST = "fast"


class Flags(enum.Flag):
    A = 1
    B = 2


class Name(str):
    pass


class Point(NamedTuple):
    x: int
    label: str = "none"


class Options(TypedDict):
    depth: int
    colour: NotRequired[Colour]


@attrs.frozen
class Tree:
    size: int
    _private: str = "p"
    children: list[Tree] = attrs.field(factory=list)
    parent: Optional[Tree] = None  # noqa: UP045 - both spellings are tested
    seen: int = attrs.field(default=0, init=False)


@dataclass
class Cat:
    name: str
    kind: Literal["cat"] = "cat"
    age: int = field(default=1, init=False)


@dataclass
class Dog:
    name: str
    kind: Literal["dog"] = "dog"


@attrs.frozen
class Left:
    a: int


@attrs.frozen
class Right:
    b: int


@attrs.define
class Box(Generic[T]):
    item: T


@attrs.frozen
class Checked:
    x: int = attrs.field(validator=attrs.validators.gt(0))


@typing.runtime_checkable
class Sized(typing.Protocol):
    def __len__(self) -> int: ...


class Unchecked(typing.Protocol):
    def fly(self) -> None: ...


NOW = datetime(2025, 1, 2, 3, 4)
UUID_1 = UUID(int=1)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, 1),
        (1, float, 1.0),
        (1.5, float, 1.5),
        (True, bool, True),
        ("a", str, "a"),
        (b"a", bytes, b"a"),
        (None, None, None),
        (NOW, datetime, NOW),
        (NOW.date(), date, NOW.date()),
        (NOW.time(), time, NOW.time()),
        (timedelta(1), timedelta, timedelta(1)),
        (Decimal("1.5"), Decimal, Decimal("1.5")),
        (UUID_1, UUID, UUID_1),
        (Path("a"), Path, Path("a")),
        ("a", Name, Name("a")),
        ("red", Colour, Colour.RED),
        ((1, 2), Colour, Colour.BOX),
        (1, Level, Level.LOW),
        ("fast", Mode, Mode.FAST),
        (3, Flags, Flags.A | Flags.B),
        (1, Literal[1, "x"], 1),
        ("red", Literal[Colour.RED], Colour.RED),
        ([1], list, [1]),
        ([1], list[int], [1]),
        ((1,), list[int], [1]),
        ([1], tuple[int, ...], (1,)),
        ((1,), tuple, (1,)),
        ((1, "a"), tuple[int, str], (1, "a")),
        ((), tuple[()], ()),
        ([1, 2.5], Sequence[float], [1.0, 2.5]),
        ([1], Iterable[int], [1]),
        ({1}, set[int], {1}),
        (frozenset([1]), frozenset[int], frozenset([1])),
        (frozenset([1]), Set[int], frozenset([1])),
        ({"a": 1}, dict, {"a": 1}),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"red": 1}, dict[Colour, int], {Colour.RED: 1}),
        ({"a": {"size": 1}}, Mapping[str, Tree], {"a": Tree(1)}),
        ({"a": 1}, OrderedDict[str, int], OrderedDict(a=1)),
        ({"a": 1}, Counter[str], Counter("a")),
        ({"a": [1]}, defaultdict[str, list[int]], defaultdict(list, {"a": [1]})),
        ((1, "a"), Point, Point(1, "a")),
        ([1], Point, Point(1)),
        ({"depth": 1, "colour": "red"}, Options, {"depth": 1, "colour": Colour.RED}),
        ({"size": 1, "_private": "q", "parent": {"size": 2}}, Tree, Tree(1, "q", parent=Tree(2))),
        ({"item": {"size": 1}}, Box[Tree], Box(Tree(1))),
        ({"item": 1}, Box, Box(1)),
        (None, int | None, None),
        (1, Optional[int], 1),  # noqa: UP045
        (1, int | float, 1),
        (1, str | float, 1.0),
        ("x", int | str | None, "x"),
        ({"name": "m", "kind": "dog"}, Cat | Dog, Dog("m")),
        ({"b": 1}, Union[Left, Right], Right(1)),  # noqa: UP007
        ([{"a": 1}, {"b": 1}], list[Left | Right], [Left(1), Right(1)]),
        (1, Annotated[int, "unit"], 1),
        (1, UserId, 1),
        (1, Hashable, 1),
        ([1], Sized, [1]),
        (1, Unchecked, 1),
        ([1, {"a": (None,)}], list[Any], [1, {"a": (None,)}]),
    ],
)
def test_what_fits(value: Any, annotation: Any, expected: Any) -> None:
    result = structure(value, annotation)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize("annotation", [Any, object, inspect.Parameter.empty, T, Annotated[Any, 1]])
def test_what_passes_unchanged(annotation: Any) -> None:
    assert structurer(annotation) is None
    value = [object()]
    assert structure(value, annotation) is value


@pytest.mark.parametrize(
    ("value", "annotation", "path", "words"),
    [
        ("7", int, "value", "is '7' of type str, not int"),
        (1.9, int, "value", "not int"),
        (1.0, int, "value", "not int"),
        (True, int, "value", "not int"),
        (True, float, "value", "not float"),
        (1, bool, "value", "not bool"),
        ("no", bool, "value", "not bool"),
        (1, str, "value", "not str"),
        ("a", bytes, "value", "not bytes"),
        (10**400, float, "value", "too large"),
        (1, None, "value", "not NoneType"),
        (None, int, "value", "not int"),
        (NOW, date, "value", "not date"),
        ("2025-01-01", date, "value", "not date"),
        ("a", Path, "value", "not Path"),
        (1, Name, "value", "not str"),
        ("blue", Colour, "value", 'one of "red"'),
        (True, Level, "value", "one of 1"),
        (1.0, Level, "value", "one of 1"),
        ("3", Flags, "value", "not int"),
        (8, Flags, "value", "refused by its class: ValueError"),
        (True, Literal[1], "value", "one of 1"),
        ([], Literal[1], "value", "one of 1"),
        (object(), Literal[1], "value", "one of 1"),
        ("ab", list[str], "value", "not list[str]"),
        ({1}, list[int], "value", "not list[int]"),
        ([1], set[int], "value", "not set[int]"),
        ([1, "2"], list[int], "value[1]", "not int"),
        ({"a": {"b": "1"}}, dict[str, dict[str, int]], "value['a']['b']", "not int"),
        ({1: 1}, dict[str, int], "value", "has the key 1, which is 1 of type int, not str"),
        ({"1"}, set[int], "value", "has the element '1', which is '1'"),
        ((1,), tuple[int, str], "value", "has 1 items, not the 2"),
        ((1, 2), tuple[int, str], "value[1]", "not str"),
        ([], Point, "value", "has 0 items"),
        ((1, 2), Point, "value[1]", "not str"),
        ([["depth", 1]], Options, "value", "not Options"),
        ({"depth": "1"}, Options, "value['depth']", "not int"),
        ({"depth": 1, "more": 1}, Options, "value", "has 'more', which Options does not know"),
        ({"colour": "red"}, Options, "value", "has no 'depth', which Options needs"),
        ("text", Tree, "value", "not Tree"),
        ({}, Tree, "value", "has no 'size', which Tree needs"),
        ({"size": 1, "private": "p"}, Tree, "value", "has 'private', which Tree does not know"),
        ({"size": 1, "children": [{"size": "1"}]}, Tree, "value.children[0].size", "not int"),
        ({"size": "1", "seen": 1, "parent": 3}, Tree, "value.size", "(also wrong: value.parent)"),
        ({"size": 1, "seen": "1"}, Tree, "value.seen", "not int"),
        ({"x": 0}, Checked, "value", "is refused by its class: ValueError"),
        ({"item": "1"}, Box[int], "value.item", "not int"),
        ("x", int | None, "value", "not int"),
        ([], int | str, "value", "not int | str"),
        ({"name": "m", "kind": "cow"}, Cat | Dog, "value.kind", 'one of "'),
        ({"name": "m"}, Cat | Dog, "value", "fits Cat and Dog"),
        ({"a": 1}, Left | dict[str, int], "value", "fits Left and dict[str, int]"),
        ({"a": 1, "b": 1}, Left | Right, "value", "not"),
        ({}, Sequence, "value", "not Sequence"),
        ([], Hashable, "value", "not Hashable"),
        (1, Sized, "value", "not Sized"),
    ],
)
def test_what_does_not_fit(value: Any, annotation: Any, path: str, words: str) -> None:
    with pytest.raises(ValueMismatch) as caught:
        structure(value, annotation)
    assert caught.value.path == path
    assert words in caught.value.reason


def test_the_path_begins_with_the_one_given() -> None:
    with pytest.raises(ValueMismatch, match=r"^nodes\.rank: value\[0\]: is 'x'"):
        structure(["x"], list[int], "nodes.rank: value")


def test_fields_that_init_does_not_take_come_back() -> None:
    tree = Tree(1)
    object.__setattr__(tree, "seen", 5)
    cat = Cat("m")
    cat.age = 9
    assert structure(restore(capture(tree)), Tree) == tree
    assert structure(restore(capture([cat])), list[Cat]) == [cat]
    assert structure({"size": 1}, Tree).seen == 0


def test_a_list_keeps_no_hold_on_the_value() -> None:
    value = [1]
    structure(value, list).append(2)
    assert value == [1]


@pytest.mark.parametrize("annotation", ["Tree", list["Missing"], typing.ParamSpec("P"), 3])  # type: ignore[name-defined]  # noqa: F821
def test_what_nothing_fits_is_refused_at_once(annotation: Any) -> None:
    with pytest.raises(TypeError, match="cannot be"):
        structurer(annotation)


def test_a_class_with_an_unknown_annotation_is_refused_at_once() -> None:
    @attrs.define
    class Broken:
        x: Nowhere  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TypeError, match="Nowhere"):
        structurer(Broken)


def test_too_deep_a_value_is_refused() -> None:
    value: Any = {"size": 1}
    for _ in range(5000):
        value = {"size": 1, "parent": value}
    with pytest.raises(ValueMismatch, match="nested too deeply"):
        structure(value, Tree)


@attrs.define
class Everything:
    number: int
    ratio: float
    text: str | None
    flags: set[bool]
    pairs: dict[int, tuple[str, ...]]
    when: datetime
    colour: Colour
    point: Point
    nested: list[Everything]


def everything(inner: st.SearchStrategy[list[Everything]]) -> st.SearchStrategy[Everything]:
    return st.builds(
        Everything,
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.none() | st.text(),
        st.sets(st.booleans()),
        st.dictionaries(st.integers(), st.lists(st.text()).map(tuple)),
        st.datetimes(),
        st.sampled_from(Colour),
        st.builds(Point, st.integers(), st.text()),
        inner,
    )


@given(everything(st.lists(everything(st.just([])), max_size=2)))
def test_what_was_captured_comes_back_in_its_class(value: Everything) -> None:
    assert structure(restore(capture(value)), Everything) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["size", "parent", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KINDS = st.sampled_from([int, float, str, bool, Tree, Options, Point, Colour, Left | Right, list[Tree], dict[str, int]])


@given(JSON, KINDS)
def test_any_value_fits_or_is_refused_and_what_fits_lost_nothing(value: Any, annotation: Any) -> None:
    try:
        result = structure(value, annotation)
    except ValueMismatch:
        return
    given = restore(capture(value))
    back = restore(capture(result))
    if isinstance(given, dict):
        assert given.keys() <= back.keys()
    elif isinstance(given, list):
        assert len(given) <= len(back)
    else:
        assert given == back
