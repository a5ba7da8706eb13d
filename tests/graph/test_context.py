"""What an `ExecutionContext` keeps, how it is changed, and what it refuses."""

from __future__ import annotations

import pickle
import weakref
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from tinyllm import ConfigError, ErrorInfo, ExecutionContext, Message, MessagePayload, UnknownSetting
from tinyllm.graph.pages import PAGE, Editable, Pages
from tinyllm.graph.payload import decode_messages, decode_payload, encode_message, encode_payload


@attrs.frozen
class Row:
    seq: int
    node: str
    body: bytes


class Numbers(Pages[int]):
    """0, 1, 2, ...; it notes what is read of it."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.reads: list[tuple[int, int]] = []

    @property
    def place(self) -> object:
        return "numbers", len(self)

    def read(self, start: int, count: int) -> list[int]:
        self.reads.append((start, count))
        return list(range(start, start + count))


def message(node: str, text: str) -> Message:
    return Message("t", node, payload=MessagePayload(content=text))


# -- contexts --------------------------------------------------------------------------------------------------


def test_a_new_context_is_empty_and_started_now() -> None:
    context = ExecutionContext(trace_id="t", graph_id="g")
    assert (context.current_node, context.visited_nodes, context.variables, context.messages) == (None, [], {}, [])
    assert (context.step_count, context.total_tokens_in, context.total_tokens_out) == (0, 0, 0)
    assert abs((datetime.now(UTC) - context.start_time).total_seconds()) < 60


def test_variables_nodes_messages_and_tokens_are_noted() -> None:
    context = ExecutionContext(trace_id="t", graph_id="g")
    context.set_variable("key", None)
    assert (context.get_variable("key", 1), context.get_variable("other", 1), context.get_variable("other")) == (
        None,
        1,
        None,
    )
    assert context.has_variable("key")
    assert not context.has_variable("other")
    for name in ("a", "b", "a"):
        context.visit_node(name)
    assert (context.current_node, context.visited_nodes, context.step_count) == ("a", ["a", "b", "a"], 3)
    assert (context.visit_count("a"), context.visit_count("c"), context.has_visited("b")) == (2, 0, True)
    assert not context.has_visited("c")
    assert context.get_latest_message() is None
    first, second = message("a", "1"), message("b", "2")
    context.add_message(first)
    context.add_message(second)
    assert context.get_latest_message() is second
    assert context.get_messages_from_node("a") == [first]
    context.add_tokens(10, 20)
    context.add_tokens(tokens_out=1)
    assert (context.total_tokens_in, context.total_tokens_out) == (10, 21)


def test_steps_are_counted_from_the_nodes_that_were_visited() -> None:
    assert ExecutionContext(trace_id="t", graph_id="g", visited_nodes=["a", "b"]).step_count == 2
    assert ExecutionContext(trace_id="t", graph_id="g", visited_nodes=["a", "b"], step_count=5).step_count == 5


def test_a_config_is_accepted_and_means_nothing() -> None:
    given: Any = {"trace_id": "t", "graph_id": "g", "start_time": datetime(2026, 1, 1, tzinfo=UTC)}
    assert ExecutionContext(config=object(), **given) == ExecutionContext(**given)


@pytest.mark.parametrize("error", [UnknownSetting, ConfigError, TypeError])
def test_an_unknown_argument_is_refused_and_the_nearest_one_named(error: type[Exception]) -> None:
    given: Any = {"trace_id": "t", "graph_id": "g", "visited_node": []}
    with pytest.raises(error, match="no setting 'visited_node'; did you mean 'visited_nodes'"):
        ExecutionContext(**given)


def test_an_unknown_argument_that_is_near_none_gets_the_list() -> None:
    given: Any = {"trace_id": "t", "graph_id": "g", "zzz": 1}
    with pytest.raises(UnknownSetting, match="no setting 'zzz'; known are trace_id, graph_id, config, "):
        ExecutionContext(**given)


def test_a_missing_argument_is_pythons_own_error() -> None:
    given: Any = {"graph_id": "g"}
    with pytest.raises(TypeError, match="trace_id"):
        ExecutionContext(**given)


def test_a_notebook_shows_a_context_without_reading_its_messages() -> None:
    kept = Numbers(12_345)
    context = ExecutionContext(trace_id="t", graph_id="g", messages=kept, variables={"key": 1, "a|b": 2})
    shown = context._repr_markdown_()
    for text in ("| trace | t |", "| messages | 12,345 |", r"| key, a\|b |", "| steps | 0 |"):
        assert text in shown
    assert "12,345" in repr(context)
    assert kept.reads == []


# -- sequences that are kept elsewhere -------------------------------------------------------------------------


def test_what_is_kept_elsewhere_is_read_where_it_is_looked_at() -> None:
    kept = Numbers(3 * PAGE + 1)
    context = ExecutionContext(trace_id="t", graph_id="g", messages=kept)
    numbers: Any = context.messages
    assert len(numbers) == 3 * PAGE + 1
    assert kept.reads == []
    assert (numbers[0], numbers[-1], numbers[5:8]) == (0, 3 * PAGE, [5, 6, 7])
    assert kept.reads == [(0, 1), (3 * PAGE, 1), (5, 3)]
    kept.reads.clear()
    assert list(numbers) == list(range(3 * PAGE + 1))
    assert kept.reads == [(0, PAGE), (PAGE, PAGE), (2 * PAGE, PAGE), (3 * PAGE, 1)]
    with pytest.raises(IndexError):
        numbers[3 * PAGE + 1]


@pytest.mark.parametrize(
    "index", [slice(None), slice(2, 7, 2), slice(None, None, -1), slice(-3, None), slice(9, 20), slice(5, 5)]
)
def test_slices_are_those_of_a_list(index: slice) -> None:
    assert Numbers(10)[index] == list(range(10))[index]


def test_sequences_are_equal_by_their_items_and_without_reading_by_their_place() -> None:
    one, other = Numbers(5), Numbers(5)
    assert one == other
    assert one.reads == other.reads == []
    assert one == [0, 1, 2, 3, 4]
    assert one == (0, 1, 2, 3, 4)
    assert one != [0, 1, 2, 3]
    assert one != [0, 1, 2, 3, 5]
    assert one != "01234"
    assert one != 5
    assert Editable(one) == [0, 1, 2, 3, 4]
    assert Editable(one) == Editable([0, 1, 2, 3, 4])


def test_the_first_change_makes_a_list_of_its_own() -> None:
    kept = Numbers(3)
    numbers = Editable(kept)
    numbers.append(7)
    kept.reads.clear()
    assert numbers == [0, 1, 2, 7]
    assert len(kept) == 3
    numbers[0], numbers[1:2] = 9, [5, 6]
    del numbers[-1]
    assert list(numbers) == [9, 5, 6, 2]
    assert numbers[1:] == [5, 6, 2]
    assert kept.reads == []


# -- messages as bytes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        MessagePayload(content="text"),
        MessagePayload(structured={"$payload": (1, None)}),
        MessagePayload(route="r", metadata={"k": 1}),
    ],
)
def test_a_message_that_is_saved_comes_back_whole(payload: MessagePayload) -> None:
    sent = Message("t", "a", "b", payload=payload, parent_id="p")
    body = encode_message(sent)
    assert decode_messages([Row(1, "a", body)], "other", datetime.now(UTC)) == [sent]
    assert decode_payload(body) == payload


@pytest.mark.parametrize(
    "value",
    [
        "text",
        {"a": [1]},
        None,
        datetime(2026, 1, 1, tzinfo=UTC),
        MessagePayload(route="r", error=ErrorInfo(type="ValueError", message="m")),
    ],
)
def test_a_message_that_is_read_is_as_one_that_is_made(value: object) -> None:
    began = datetime.now(UTC)
    payload = value if isinstance(value, MessagePayload) else MessagePayload.of(value)
    made = Message("t", "a", payload=payload, message_id="t#7", created_at=began)
    (read,) = decode_messages([Row(7, "a", encode_payload(value))], "t", began)
    assert type(read) is Message
    assert type(read.payload) is MessagePayload
    assert (read, repr(read), attrs.asdict(read)) == (made, repr(made), attrs.asdict(made))
    assert attrs.evolve(read, parent_id="p") == attrs.evolve(made, parent_id="p")
    assert pickle.loads(pickle.dumps(read)) == deepcopy(read) == made
    assert weakref.ref(read)() is read
    for instance, name in ((read, "trace_id"), (read.payload, "content")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(instance, name, "changed")


def test_messages_that_are_read_share_nothing_that_can_be_changed() -> None:
    one, other = decode_messages([Row(1, "a", b"{}"), Row(2, "a", b"{}")], "t", datetime.now(UTC))
    one.payload.metadata["k"] = one.payload.structured["k"] = 1  # type: ignore[index]
    assert (other.payload.metadata, other.payload.structured) == ({}, {})
