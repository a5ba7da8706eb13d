"""pydantic models as annotations; skipped where pydantic is not installed."""

from __future__ import annotations

import enum
import types
from dataclasses import dataclass
from typing import Any

import pytest

from tinyllm.errors import ValueMismatch
from tinyllm.graph.structure import structure
from tinyllm.graph.values import capture, restore

pydantic = pytest.importorskip("pydantic")


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Inner:
    x: int


Part: Any = pydantic.create_model("Part", colour=(Colour, Colour.RED), inner=(Inner | None, None))
Parts = types.GenericAlias(list, (Part,))
Whole: Any = pydantic.create_model("Whole", size=(int, ...), parts=(Parts, []), tags=(set[str], set()))
Aliased: Any = pydantic.create_model("Aliased", size=(int, pydantic.Field(alias="SIZE")))
Numbers: Any = pydantic.RootModel[list[int]]
Open: Any = pydantic.create_model("Open", __config__={"extra": "allow"}, size=(int, 1))


@pytest.mark.parametrize(
    "model",
    [
        Whole(size=1, parts=[Part(inner=Inner(2)), Part()], tags={"a"}),
        Aliased(SIZE=3),
        Numbers([1, 2]),
        Open(size=2, more=[1]),
    ],
)
def test_a_captured_model_comes_back(model: Any) -> None:
    assert structure(restore(capture(model)), type(model)) == model
    assert structure(restore(capture([model])), types.GenericAlias(list, (type(model),))) == [model]


def test_an_alias_is_taken_too() -> None:
    assert structure({"SIZE": 1}, Aliased) == Aliased(SIZE=1)


@pytest.mark.parametrize(
    ("value", "annotation", "path", "words"),
    [
        ("text", Whole, "value", "not Whole"),
        ({"size": "1"}, Whole, "value.size", "not int"),
        ({}, Whole, "value.size", "required"),
        ({"size": 1, "more": 1}, Whole, "value", "does not know"),
        ({"size": 1, "parts": [{"colour": "blue"}]}, Whole, "value.parts[0].colour", "one of"),
        ({"size": 1, "parts": [{"inner": {"x": "1"}}]}, Whole, "value.parts[0].inner.x", "not int"),
        ([1, "2"], Numbers, "value[1]", "not int"),
    ],
)
def test_what_does_not_fit(value: Any, annotation: Any, path: str, words: str) -> None:
    with pytest.raises(ValueMismatch) as caught:
        structure(value, annotation)
    assert caught.value.path == path
    assert words in caught.value.reason
