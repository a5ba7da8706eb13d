"""Names that users' code relies on: what each takes, by position and by keyword, and what it has."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest

from tinyllm import (
    CheckpointManager,
    CheckpointStorage,
    ErrorInfo,
    ExecutionContext,
    ExecutionError,
    Executor,
    GraphBuilder,
    InMemoryCheckpointStorage,
    Message,
    MessagePayload,
    TaskPayload,
    TaskResponse,
)


def taken(function: Any) -> list[str]:
    """The parameters of a method, those that may also be given by position first; `*` stands before the others."""
    names = list[str]()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        if name not in ("self", "storage"):
            names.append(name)
    return names


def test_an_executor_takes_its_parts_by_position() -> None:
    assert taken(Executor.__init__)[:4] == ["graph", "config", "checkpoint_storage", "deps"]
    store = InMemoryCheckpointStorage()
    executor = Executor(GraphBuilder("g").node(str.upper, id="a").build(), None, store, {"deps": 1})
    assert repr(store) in repr(executor) or store.name in repr(executor)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("save_checkpoint", ["graph_id", "trace_id", "step", "state", "messages", "node_id"]),
        ("get", ["checkpoint_id"]),
        ("delete", ["checkpoint_id"]),
        ("list", ["limit", "offset", "filters"]),
        ("list_checkpoints", ["graph_id", "trace_id"]),
        ("get_latest_checkpoint", ["graph_id", "trace_id"]),
    ],
)
def test_a_storage_has_the_promised_methods(name: str, parameters: list[str]) -> None:
    assert [each for each in taken(getattr(CheckpointStorage, name)) if each != "*"] == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("__init__", ["config"]),
        ("initialize", []),
        ("close", []),
        ("save_checkpoint", ["context", "current_node_id", "force"]),
        ("load_checkpoint", ["graph_id", "trace_id"]),
        ("restore_context", ["checkpoint", "context"]),
        ("list_checkpoints", ["graph_id", "trace_id"]),
        ("clear_checkpoints", ["graph_id", "trace_id"]),
        ("get_checkpoint", ["checkpoint_id"]),
        ("delete_checkpoint", ["checkpoint_id"]),
        ("should_checkpoint", ["force"]),
    ],
)
def test_a_manager_has_the_promised_methods(name: str, parameters: list[str]) -> None:
    assert taken(getattr(CheckpointManager, name)) == parameters


def test_a_task_payload_is_its_text() -> None:
    assert TaskPayload("text") == TaskPayload(content="text")


def test_a_response_has_the_promised_fields() -> None:
    response = TaskResponse(trace_id="t", status="completed", value=[1], content="[\n  1\n]")
    fields = ["trace_id", "status", "success", "content", "value", "error", "questions", "nodes_executed"]
    counters = ["total_latency_ms", "total_tokens_in", "total_tokens_out"]
    assert [name for name in (*fields, *counters) if not hasattr(response, name)] == []
    assert response.success
    assert not attrs.evolve(response, status="paused").success


def test_a_message_needs_its_trace_and_source_and_gets_an_id() -> None:
    message = Message("t", "a", payload=MessagePayload(content="said"))
    assert message == attrs.evolve(message, target_node=None, parent_id=None)
    assert message.message_id != Message("t", "a").message_id
    named = Message(
        trace_id="t", source_node="a", target_node="b", payload=message.payload, message_id="m", parent_id="before"
    )
    assert (named.target_node, named.message_id, named.parent_id) == ("b", "m", "before")


def test_a_payload_has_the_promised_fields() -> None:
    error = ErrorInfo(type="ValueError", message="no")
    given: dict[str, Any] = {
        "task": "t",
        "content": "c",
        "structured": {"a": 1},
        "route": "left",
        "confidence": 0.5,
        "tool_call": {"name": "search"},
        "tool_result": [1],
        "error": error,
        "metadata": {"k": "v"},
    }
    payload = MessagePayload(**given)
    assert {name: getattr(payload, name) for name in given} == given


def test_a_context_has_the_promised_fields_and_methods() -> None:
    began = datetime(2026, 1, 2, tzinfo=UTC)
    context = ExecutionContext(trace_id="t", graph_id="g", start_time=began, config=object())
    fields = ["current_node", "visited_nodes", "variables", "messages", "step_count", "total_tokens_in"]
    assert [name for name in (*fields, "total_tokens_out", "start_time") if not hasattr(context, name)] == []
    context.visit_node("a")
    context.set_variable("key", "value")
    context.add_message(Message("t", "a", payload=MessagePayload(content="said")))
    context.add_tokens(1, 2)
    assert (context.get_variable("key"), context.get_variable("other", 5)) == ("value", 5)
    assert (context.has_variable("key"), context.has_visited("a"), context.visit_count("a")) == (True, True, 1)
    assert context.get_latest_message() == context.get_messages_from_node("a")[0]
    assert (context.total_tokens_in, context.total_tokens_out, context.step_count) == (1, 2, 1)


@pytest.mark.anyio
async def test_a_failure_has_the_promised_fields() -> None:
    def fail(task: str) -> None:
        raise ValueError("no")

    executor = Executor(GraphBuilder("g").node(fail).build())
    with pytest.raises(ExecutionError) as raised:
        await executor.execute("task", trace_id="t")
    error = raised.value
    assert (error.trace_id, error.node_id, error.step) == ("t", "fail", 0)
    assert error.response.status == "failed"
    assert isinstance(error.__cause__, ValueError)
