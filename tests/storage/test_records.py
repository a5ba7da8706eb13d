"""What a `CheckpointRecord` shows, and when it reads it; what a program asks of any store directly."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import anyio
import attrs
import pytest

from tests.storage.backends import admit, commit_one, fork, run_steps
from tests.storage.deltas import Item, Writer
from tinyllm import (
    ConfigError,
    InMemoryCheckpointStorage,
    Message,
    MessagePayload,
    SQLiteCheckpointStorage,
    StorageNotOpen,
    UnknownSetting,
)
from tinyllm.persistence.interface import CheckpointRecord
from tinyllm.storage.contract import CheckpointStorage, Owner, Prune, Reads, Status

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture
def reads(storage: CheckpointStorage, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what records read of the store, as they read it."""
    names: list[str] = []

    class Counted:
        def __init__(self, store: Reads) -> None:
            self._store = store

        def __getattr__(self, name: str) -> Any:
            names.append(name)
            return getattr(self._store, name)

    read_now = storage.read_now

    def counted(question: Callable[[Reads], T]) -> T:
        return read_now(lambda store: question(Counted(store)))

    monkeypatch.setattr(storage, "read_now", counted)
    return names


async def spoken(storage: CheckpointStorage, steps: int = 5, **first: Any) -> Writer:
    """A trace `t`: the task, then one message of node `a` with each step."""
    writer = await admit(storage, body=b'"task"', set=[("x", b"0"), ("list", b"[1]")], **first)
    for number in range(1, steps + 1):
        await commit_one(
            storage,
            writer.append(end=min(writer.live), plan=["a"], body=b'"said %d"' % number, set=[("x", b"%d" % number)]),
        )
    return writer


# -- a record --------------------------------------------------------------------------------------------------


async def test_a_record_is_made_as_the_promise_says() -> None:
    said = [Message("trace-123", "node1", payload=MessagePayload(content="hello"))]
    state = {
        "current_node": "node5",
        "visited_nodes": ["node1", "node2", "node3", "node4", "node5"],
        "variables": {"key": "value"},
        "step_count": 5,
        "total_tokens_in": 100,
        "total_tokens_out": 150,
        "start_time": "2025-12-19T10:00:00",
    }
    given: dict[str, Any] = {
        "id": "checkpoint-uuid",
        "graph_id": "my-graph",
        "trace_id": "trace-123",
        "step": 5,
        "state": state,
        "messages": said,
        "node_id": "node5",
        "status": "pending",
    }
    record = CheckpointRecord(**given)
    assert {name: getattr(record, name) for name in given} == given
    assert record.state is state
    assert (record.message_count, record.metadata, record.rev, record.label, record.frontier_count) == (
        1,
        {},
        0,
        None,
        0,
    )
    assert record.created_at == record.updated_at
    assert record.created_at.utcoffset() == timedelta(0)
    when = datetime(2026, 1, 1, tzinfo=UTC)
    assert CheckpointRecord(**given, created_at=when) == CheckpointRecord(**given, created_at=when)
    assert CheckpointRecord(**given, created_at=when) != CheckpointRecord(**{**given, "step": 6}, created_at=when)
    assert len({record, CheckpointRecord(**given)}) == 2
    assert repr(record) == "<CheckpointRecord checkpoint-uuid: step 5, node 'node5', pending, 1 messages>"


async def test_a_stores_record_shows_the_state_at_its_checkpoint(storage: CheckpointStorage) -> None:
    writer = await spoken(storage)
    await commit_one(storage, writer.append(end=min(writer.live), plan=["b"], set=[("list", Item(b"2"))]))
    newest, *_, third, _, _ = await storage.checkpoints("t")
    assert (third.rev, third.step, third.node_id, third.message_count) == (2, 2, "a", 3)
    assert [message.payload.value for message in third.messages] == ["task", "said 1", "said 2"]
    assert [message.source_node for message in third.messages] == ["", "a", "a"]
    assert {message.trace_id for message in third.messages} == {"t"}
    assert [message.message_id for message in third.messages] == ["t#1", "t#2", "t#3"]
    snapshot = await storage.load("t", 2)
    assert third.state == {
        "current_node": "a",
        "visited_nodes": ["a", "a"],
        "variables": {"x": 2, "list": [1]},
        "step_count": 2,
        "total_tokens_in": snapshot.tokens_in,
        "total_tokens_out": snapshot.tokens_out,
        "start_time": datetime.fromtimestamp(snapshot.record.created_at, UTC).isoformat(),
    }
    assert type(third.state) is dict
    assert third.state is third.state
    assert newest.state["variables"] == {"x": 5, "list": [1, 2]}
    assert (newest.created_at - datetime.now(UTC)) < timedelta(minutes=1)


async def test_listing_reads_nothing_of_a_long_trace(storage: CheckpointStorage, reads: list[str]) -> None:
    await spoken(storage, 120)
    statements: list[str] = []
    if isinstance(storage, SQLiteCheckpointStorage):
        assert storage._reading is not None
        storage._reading.set_trace_callback(statements.append)
    records = await storage.checkpoints("t", limit=100)
    assert [len(record.messages) for record in records] == [121 - at for at in range(100)]
    assert [record.message_count for record in records] == [121 - at for at in range(100)]
    assert len(await storage.list_checkpoints("g", "t")) == 121
    assert records[:2] == await storage.list(limit=2)
    assert reads == []
    assert (not statements) == isinstance(storage, InMemoryCheckpointStorage)
    assert [at for at in statements if "messages WHERE" in at or "FROM messages" in at or "FROM steps" in at] == []
    assert repr(records[0].messages) == "<121 items, read when they are looked at>"


async def test_what_is_looked_at_is_read_and_no_more(storage: CheckpointStorage, reads: list[str]) -> None:
    await spoken(storage, 20)
    (record,) = await storage.checkpoints("t", limit=1)
    assert record.messages[-1].payload.value == "said 20"
    assert [message.payload.value for message in record.messages[3:5]] == ["said 3", "said 4"]
    assert reads == ["messages", "messages"]
    reads.clear()
    visited = record.state["visited_nodes"]
    assert (len(visited), record.state["variables"]["x"]) == (20, 20)
    assert reads == ["load"]
    assert visited[-1] == "a"
    assert reads == ["load", "steps"]


async def test_messages_that_are_no_part_of_the_history_are_not_shown(storage: CheckpointStorage) -> None:
    writer = await admit(storage, body=b'"task"')
    await commit_one(storage, writer.append(end=min(writer.live), plan=["b"], body=b'"edge"', history=False))
    for said in (b'"one"', b'"two"'):
        await commit_one(storage, writer.append(end=min(writer.live), plan=["c"], body=said))
    (record,) = await storage.checkpoints("t", limit=1)
    assert [message.payload.value for message in record.messages] == ["task", "one", "two"]
    assert [record.messages[at].payload.value for at in (0, 1, 2, -1)] == ["task", "one", "two", "two"]


async def test_of_a_history_with_a_window_the_last_messages_are_shown(storage: CheckpointStorage) -> None:
    writer = Writer("t")
    admission = attrs.evolve(writer.admit(body=b'"task"'), history=2)
    writer.admitted(await commit_one(storage, admission))
    await run_steps(storage, writer, 5)
    newest, *_, first = await storage.checkpoints("t")
    assert (newest.message_count, [message.payload.value for message in newest.messages]) == (2, [3, 4])
    assert newest.messages[-1].payload.value == 4
    assert [message.payload.value for message in first.messages] == ["task"]


async def test_a_forks_record_shows_what_it_shares(storage: CheckpointStorage) -> None:
    parent = await spoken(storage, 3)
    child = await fork(storage, parent, 2)
    await run_steps(storage, child, 1)
    (record,) = await storage.checkpoints("child", limit=1)
    assert [message.payload.value for message in record.messages] == ["task", "said 1", "said 2", 3]
    assert record.state["visited_nodes"] == ["a", "a", "a"]


async def test_two_records_of_one_checkpoint_are_equal_and_reading_them_changes_nothing(
    storage: CheckpointStorage, reads: list[str]
) -> None:
    await spoken(storage, 3)
    (one, older), (other, _) = await storage.checkpoints("t", limit=2), await storage.checkpoints("t", limit=2)
    assert one == other
    assert one != older
    assert reads == []
    list(one.messages)
    one.state["mine"] = 1
    assert hash(one) == hash(other)
    assert one.messages == other.messages
    made = CheckpointRecord(
        id="i", graph_id="g", trace_id="t", step=3, state=other.state, messages=list(other.messages)
    )
    assert made.messages == other.messages


async def test_a_record_is_read_in_a_cancelled_scope(storage: CheckpointStorage) -> None:
    await spoken(storage, 3)
    (record,) = await storage.checkpoints("t", limit=1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        assert (len(list(record.messages)), record.state["step_count"]) == (4, 3)


async def test_after_the_store_was_closed_a_record_keeps_what_it_has_read(storage: CheckpointStorage) -> None:
    await spoken(storage, 3)
    newest, older, *_ = await storage.checkpoints("t")
    assert newest.state["step_count"] == 3
    await storage.close()
    assert (newest.state["step_count"], newest.step, len(newest.messages)) == (3, 3, 4)
    for look in (lambda: older.state, lambda: newest.messages[0], lambda: newest.state["visited_nodes"][0]):
        with pytest.raises(StorageNotOpen):
            look()


# -- what a program asks ---------------------------------------------------------------------------------------


async def test_a_checkpoint_is_found_by_its_id(storage: CheckpointStorage) -> None:
    writer = await admit(storage, "a@1")
    await run_steps(storage, writer, 5)
    await commit_one(storage, Prune(writer.key, 2))
    records = await storage.checkpoints("a@1")
    assert [await storage.get(record.id) for record in records] == records
    for missing in ("a@1@1", "a@1@6", "a@1", "a", "b@0", "", "@", "a@1@-1", "a@1@x", "a@1@٣"):
        assert await storage.get(missing) is None


async def test_listings_begin_with_the_newest(storage: CheckpointStorage) -> None:
    first, second = await admit(storage, "one"), await admit(storage, "two", graph_id="h")
    for writer in (first, second, second, first):
        await run_steps(storage, writer, 1)
    ids = ["one@2", "two@2", "two@1", "one@1", "two@0", "one@0"]
    assert [record.id for record in await storage.list()] == ids
    assert [record.id for record in await storage.list(limit=2, offset=3)] == ids[3:5]
    assert [record.id for record in await storage.list_checkpoints("g")] == ["one@2", "one@1", "one@0"]
    assert [record.id for record in await storage.list_checkpoints("g", "one")] == ["one@2", "one@1", "one@0"]
    assert await storage.list_checkpoints("g", "two") == []
    assert await storage.list_checkpoints("g", "three") == []


async def test_listings_go_beyond_the_page_of_a_backend(storage: CheckpointStorage) -> None:
    for number in range(103):
        await admit(storage, f"t{number}")
    await run_steps(storage, await admit(storage, "long"), 250)
    assert len(await storage.list_checkpoints("g", "long")) == 251
    assert len(await storage.list_checkpoints("g")) == 251 + 103
    assert len(await storage.list()) == 100
    assert [record.id for record in await storage.list(limit=10, offset=350)] == ["t3@0", "t2@0", "t1@0", "t0@0"]


async def test_the_newest_checkpoint_of_a_trace_is_found(storage: CheckpointStorage) -> None:
    await run_steps(storage, await admit(storage), 2)
    latest = await storage.get_latest_checkpoint(graph_id="g", trace_id="t")
    assert latest is not None
    assert latest.id == "t@2"
    assert await storage.get_latest_checkpoint("other", "t") is None
    assert await storage.get_latest_checkpoint("g", "other") is None


async def test_a_listing_is_filtered(storage: CheckpointStorage, owner: Owner) -> None:
    ends: dict[str, Status] = {"done": "completed", "bad": "failed"}
    for trace_id, status in ends.items():
        writer = await admit(storage, trace_id, owner, graph_id=f"g-{trace_id}")
        await commit_one(storage, writer.append(end=1, status=status))

    async def ids(**filters: str) -> list[str]:
        return [record.id for record in await storage.list(filters=filters)]

    assert await ids() == ["bad@1", "bad@0", "done@1", "done@0"]
    assert await ids(trace_id="bad") == ["bad@1", "bad@0"]
    assert await ids(graph_id="g-done", status="running") == ["done@0"]
    assert await ids(node_id="a") == ["bad@1", "done@1"]
    assert await ids(status="failed", node_id="a") == ["bad@1"]
    assert await ids(trace_id="bad", graph_id="g-done") == []
    with pytest.raises(UnknownSetting, match="no setting 'node'; did you mean 'node_id'"):
        await ids(node="a")
    with pytest.raises(ConfigError, match="known are graph_id, trace_id, status, node_id"):
        await ids(zzz="a")
