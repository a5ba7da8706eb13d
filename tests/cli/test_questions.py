"""How questions are shown and how answers are written: no executor, no store."""

from __future__ import annotations

import json
import shlex
from typing import Any, Literal

import attrs
import click
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.cli.options import parse_answers
from tinyllm.cli.questions import SHOWN, describe, question_lines
from tinyllm.graph.questions import Question, check_answer

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keywords = ["type", "enum", "const", "anyOf", "items", "properties", "required", "$ref", "minimum", "maxLength"]
words_of_schemas = st.sampled_from(["object", "array", "string", "integer", "#", "#/properties", "#/items"])


def ask(name: str = "approve", activation: int = 1, schema: Any = None, prompt: str = "Publish?") -> Question:
    identity = bytes([activation]).hex() * 16
    return Question(trace_id="demo", node_id="review", activation_id=identity, name=name, prompt=prompt, schema=schema)


def command(*words: str) -> str:
    return shlex.join(["tinyllm", *words])


@attrs.define
class Verdict:
    good: bool
    note: str | None = None
    after: list[Verdict] = attrs.field(factory=list)


# -- words -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "words", "example"),
    [
        (None, "any value", "JSON"),
        (msgspec.json.schema(bool), "true or false", "true"),
        (msgspec.json.schema(Literal["a", "b", "c"]), '"a", "b" or "c"', '"a"'),
        (msgspec.json.schema(int), "a whole number", "NUMBER"),
        (msgspec.json.schema(str | None), "a text or null", '"TEXT"'),
        (msgspec.json.schema(list[float]), "a list, each item a number", "[NUMBER]"),
        ({"type": "integer", "minimum": 1, "maximum": 5}, "a whole number from 1 to 5", "NUMBER"),
        ({"type": "number", "exclusiveMinimum": 0}, "a number, above 0", "NUMBER"),
        ({"type": "string", "maxLength": 20}, "a text of at most 20 characters", '"TEXT"'),
        ({"type": ["string", "null"]}, "a text or null", '"TEXT"'),
        ({"const": "yes"}, '"yes"', '"yes"'),
        ({"type": "object"}, "an object", "{}"),
        ({"title": "Anything"}, "any value", "JSON"),
        ({"not": {"type": "null"}}, 'what fits the schema {"not": {"type": "null"}}', "JSON"),
        ({"$ref": "#/nowhere"}, 'what fits the schema {"see": "#/nowhere"}', "JSON"),
    ],
)
def test_a_schema_is_said_in_plain_words(schema: Any, words: str, example: str) -> None:
    assert describe(schema) == (words, example)


def test_an_object_names_what_it_needs_and_what_it_may_have() -> None:
    words, example = describe(msgspec.json.schema(Verdict))
    assert words.startswith("an object with good (true or false), if you like note (a text or null), after (a list")
    assert example == '{"good": true}'


@given(st.recursive(json_values, lambda inner: st.dictionaries(st.sampled_from(keywords), inner | words_of_schemas)))
def test_no_schema_is_too_strange_to_be_shown(schema: Any) -> None:
    words, example = describe(schema if isinstance(schema, dict) else {"items": schema})
    assert words
    assert example


@pytest.mark.parametrize("schema", [bool, Literal["a", "b"], dict[str, int], None])
def test_an_example_without_capitals_is_an_answer(schema: Any) -> None:
    question = ask(schema=None if schema is None else msgspec.json.schema(schema))
    example = describe(question.schema)[1]
    if example != "JSON":
        check_answer(question, json.loads(example))


# -- lines -----------------------------------------------------------------------------------------------------


def test_a_question_is_shown_with_the_line_that_answers_it() -> None:
    question = ask(schema={"type": "boolean"}, prompt="Publish?\nIt is long.")
    assert list(question_lines([question], command=command)) == [
        "node review asks: Publish?",
        "  It is long.",
        "  (it takes true or false)",
        "  tinyllm resume demo --answer approve=true",
    ]
    assert list(question_lines([question], live=True, command=command))[-1] == (
        f"  tinyllm answer demo true --question {question.id}"
    ), "others of that name may follow"


def test_questions_of_the_same_name_are_told_apart_by_their_ids() -> None:
    lines = list(question_lines([ask(activation=1), ask(activation=2), ask("other")], command=command))
    assert [line for line in lines if "tinyllm" in line] == [
        "  tinyllm resume demo --answer review.01010101.approve=JSON",
        "  tinyllm resume demo --answer review.02020202.approve=JSON",
        "  tinyllm resume demo --answer other=JSON",
    ]


def test_of_thousands_of_questions_the_first_are_shown() -> None:
    lines = list(question_lines([ask(f"q{number}") for number in range(1000)], command=command))
    assert lines[-2:] == [f"and {1000 - SHOWN} questions more, all of them in:", "  tinyllm show demo --json"]
    assert len(lines) == 3 * SHOWN + 2


# -- answers ---------------------------------------------------------------------------------------------------


@given(json_values)
def test_json_alone_is_never_taken_for_a_name(value: Any) -> None:
    assert parse_answers((json.dumps(value, ensure_ascii=False),)) == [(None, value)]


@given(st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters='"[{'), min_size=1), json_values)
def test_a_name_may_have_any_letter(name: str, value: Any) -> None:
    text = f"{name}={json.dumps(value, ensure_ascii=False)}"
    ((found, answer),) = parse_answers((text,))
    assert answer == value
    assert found == name


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("yes", "--answer '\"yes\"'"),
        ("approve=yes", "--answer 'approve=\"yes\"'"),
        ("=yes", "--answer '\"=yes\"'"),
        ("n=NaN", "--answer 'n=\"NaN\"'"),
    ],
)
def test_an_answer_that_is_not_json_shows_how_it_is_written(text: str, remedy: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        parse_answers((text,))
    assert refused.value.message.endswith(f"for this text write {remedy}")


@pytest.mark.parametrize("texts", [("1", "2"), ("a=1", "a=2")])
def test_one_question_is_not_answered_twice(texts: tuple[str, ...]) -> None:
    with pytest.raises(click.BadParameter, match="twice"):
        parse_answers(texts)
