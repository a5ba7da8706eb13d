"""How messages and responses show themselves, at a prompt and in a notebook."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tinyllm import ErrorInfo, Message, MessagePayload, Question, TaskPayload, TaskResponse

markdown = MarkdownIt("commonmark").enable("table")


def cells(text: str) -> list[str]:
    """The text of every table cell below the heads, as a reader sees it."""
    tokens = markdown.parse(text)
    return [
        "".join(child.content for child in tokens[at + 1].children or ())
        for at, token in enumerate(tokens)
        if token.type == "td_open"
    ]


def fences(text: str) -> list[tuple[str, str]]:
    return [(token.info, token.content) for token in markdown.parse(text) if token.type == "fence"]


@pytest.mark.parametrize(
    ("instance", "wanted"),
    [
        (TaskPayload("a"), "TaskPayload(content='a')"),
        (TaskPayload("a", metadata={"b": 1}), "TaskPayload(content='a', metadata={'b': 1})"),
        (MessagePayload(), "MessagePayload()"),
        (MessagePayload.of(""), "MessagePayload(content='')"),
        (MessagePayload.of([0]), "MessagePayload(structured=[0])"),
        (MessagePayload(confidence=0.0, route="x"), "MessagePayload(route='x', confidence=0.0)"),
        (
            Message("t", "a", payload=MessagePayload.of("hi"), message_id="m"),
            "Message(trace_id='t', source_node='a', payload=MessagePayload(content='hi'), message_id='m')",
        ),
        (
            ErrorInfo(type="ValueError", message="no", traceback="Traceback\n ..."),
            "ErrorInfo(type='ValueError', message='no')",
        ),
    ],
)
def test_what_is_not_set_is_not_shown(instance: object, wanted: str) -> None:
    assert repr(instance) == wanted


def test_a_long_text_is_shortened_and_two_that_look_alike_still_differ() -> None:
    one, other = MessagePayload.of("x" * 10_000), MessagePayload.of("x" * 5_000 + "y" + "x" * 4_999)
    assert repr(one) == repr(other)
    assert len(repr(one)) < 120
    assert one != other
    assert one == MessagePayload.of("x" * 10_000)


ERROR = ErrorInfo(type="ValueError", message="no | such `thing`", node_id="a")
QUESTION = Question(trace_id="t", node_id="a", activation_id="0" * 32, name="sure", prompt="Are you |sure|?")


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        (
            TaskResponse(trace_id="t", status="completed", value="hi", content="hi", nodes_executed=1),
            "<TaskResponse 't' completed, 1 step: 'hi'>",
        ),
        (
            TaskResponse(trace_id="t", status="failed", error=ERROR, nodes_executed=1_200),
            "<TaskResponse 't' failed, 1,200 steps: ValueError in 'a', 'no | such `thing`'>",
        ),
        (
            TaskResponse(trace_id="t", status="paused", questions=(QUESTION,)),
            "<TaskResponse 't' paused, 0 steps: asks sure>",
        ),
        (TaskResponse(trace_id="t", status="interrupted", nodes_executed=2), "<TaskResponse 't' interrupted, 2 steps>"),
    ],
)
def test_a_response_says_in_one_line_what_became_of_the_trace(response: TaskResponse, wanted: str) -> None:
    assert repr(response) == wanted


def test_a_text_is_shown_as_markdown_and_anything_else_as_json() -> None:
    text = TaskResponse(trace_id="t", status="completed", value="# Title", content="# Title", total_latency_ms=1_234)
    assert [token.tag for token in markdown.parse(text._repr_markdown_()) if token.type == "heading_open"] == ["h1"]
    assert cells(text._repr_markdown_()) == ["t", "completed", "0", "1.2 s"]

    data = attrs.evolve(text, value={"a": 1}, content='{"a": 1}', total_tokens_in=1_000, total_tokens_out=2)
    assert fences(data._repr_markdown_()) == [("json", '{"a": 1}\n')]
    assert cells(data._repr_markdown_())[-1] == "1,000 in, 2 out"

    nothing = attrs.evolve(text, value=None, content="")
    assert fences(nothing._repr_markdown_()) == []


def test_an_error_is_shown_with_its_traceback_and_a_question_with_its_prompt() -> None:
    failed = TaskResponse(trace_id="t", status="failed", error=ERROR)
    assert fences(failed._repr_markdown_()) == [("text", "ValueError: no | such `thing`\n")]
    traced = attrs.evolve(failed, error=attrs.evolve(ERROR, traceback="Traceback:\n  line\n"))
    assert fences(traced._repr_markdown_()) == [("text", "Traceback:\n  line\n")]

    paused = TaskResponse(trace_id="t", status="paused", questions=(QUESTION,))
    assert cells(paused._repr_markdown_())[-2:] == ["sure", "Are you |sure|?"]


LINES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp", "Zs"]) | st.sampled_from("`|*_\\<&[ ")
)


@given(name=LINES, prompt=LINES)
def test_nothing_in_a_cell_is_taken_for_markdown(name: str, prompt: str) -> None:
    question = attrs.evolve(QUESTION, name=name, prompt=prompt)
    response = TaskResponse(trace_id="t", status="paused", questions=(question,))
    assert cells(response._repr_markdown_())[-2:] == [" ".join(name.split()), " ".join(prompt.split())]


@given(text=st.text(st.sampled_from("`~ab \n\t")))
def test_nothing_ends_a_fence_before_its_end(text: str) -> None:
    response = TaskResponse(trace_id="t", status="failed", error=ErrorInfo(type="E", message=text))
    ((language, content),) = fences(response._repr_markdown_())
    assert (language, content) == ("text", f"E: {text}".rstrip() + "\n")
