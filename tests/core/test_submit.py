"""A trace that is submitted is durable, waits in its order, and is told to those who would execute it."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

import tinyllm.core.submit as module
from tinyllm import (
    CheckpointConfig,
    CheckpointStorage,
    ConfigError,
    DatabaseLocked,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    Result,
    SQLiteCheckpointStorage,
    StorageUnavailable,
    TraceEnded,
    TraceMismatch,
    ValueNotStorable,
    submit,
)
from tinyllm.actors.events import Event, TraceStarted
from tinyllm.core import outside
from tinyllm.core.wake import address, supervisors
from tinyllm.storage.contract import Claim, Claimed, Outcome, Wanted

pytestmark = pytest.mark.anyio


def upper(task: str) -> str:
    return task.upper()


def greet(task: str, context: Any) -> Any:
    return Result(f"{context.variables.get('greeting', 'hello')} {task}", set={"greeted": True})


GRAPH = GraphBuilder("g").chain(upper, greet).build()


def other_graph() -> Graph:
    return GraphBuilder("other").node(upper).build()


async def claim(store: CheckpointStorage, limit: int = 10) -> list[str]:
    (outcome,) = await store.commit([Claim((Wanted("g", "an-owner"),), limit)])
    assert isinstance(outcome, Claimed)
    return [held.trace_id for held in outcome.traces]


async def test_it_waits_and_is_executed_by_its_id(store: CheckpointStorage) -> None:
    record = await submit(GRAPH, "ann", store, trace_id="t", variables={"greeting": "hi"}, priority=3)
    assert (record.trace_id, record.status, record.step, record.rev) == ("t", "queued", 0, 0)
    assert (record.owner, record.priority, record.not_before, record.graph_path) == (None, 3, None, None)
    assert [each.trace_id for each in await store.traces(status="queued")] == ["t"]
    assert [point.status for point in await store.checkpoints("t")] == ["queued"]
    events: list[Event] = []
    async with Executor(GRAPH, checkpoint_storage=store, on_event=events.append) as executor:
        response = await executor.execute("ann", trace_id="t", variables={"greeting": "hi"})
        assert (response.content, response.nodes_executed) == ("hi ANN", 2)
    (started,) = [event for event in events if isinstance(event, TraceStarted)]
    assert (started.resumed, started.kept, started.again, started.lost) == (False, 0, 0, 0)
    assert await store.traces(status="queued") == []


async def test_the_same_id_and_task_are_one_trace_whatever_became_of_it(store: CheckpointStorage) -> None:
    first = await submit(GRAPH, "ann", store, trace_id="t")
    again = await submit(GRAPH, "ann", store, trace_id="t", priority=5)
    assert (again.trace, again.status, again.priority, again.rev) == (first.trace, "queued", 0, 0)
    async with Executor(GRAPH, checkpoint_storage=store) as executor:
        await executor.resume_from_checkpoint("t")
    assert (await submit(GRAPH, "ann", store, trace_id="t")).status == "completed"
    with pytest.raises(TraceMismatch, match="task"):
        await submit(GRAPH, "bob", store, trace_id="t")
    with pytest.raises(TraceMismatch, match="variables"):
        await submit(GRAPH, "ann", store, trace_id="t", variables={"greeting": "hi"})
    with pytest.raises(TraceMismatch, match="graph"):
        await submit(other_graph(), "ann", store, trace_id="t")
    assert len(await store.traces()) == 1


async def test_it_is_the_same_trace_for_execute_and_for_submit(store: CheckpointStorage) -> None:
    async with Executor(GRAPH, checkpoint_storage=store) as executor:
        await executor.execute("ann", trace_id="t", variables={"greeting": "hi"})
        record = await submit(GRAPH, "ann", store, trace_id="t", variables={"greeting": "hi"})
        assert record.status == "completed"


async def test_many_submit_one_trace_at_once(store: CheckpointStorage) -> None:
    found: list[int] = []

    async def one() -> None:
        found.append((await submit(GRAPH, "ann", store, trace_id="t")).trace)

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(one)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert await claim(store) == ["t"]


async def test_without_an_id_each_is_a_trace_of_its_own(
    store: CheckpointStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = iter(["g-aaaaa", "g-aaaaa", "g-bbbbb"])
    monkeypatch.setattr(module, "new_trace_id", lambda _graph_id: next(chosen))
    names = [(await submit(GRAPH, "ann", store)).trace_id for _ in range(2)]
    assert names == ["g-aaaaa", "g-bbbbb"]


async def test_they_are_claimed_by_priority_then_age_and_not_before_their_time(store: CheckpointStorage) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    await submit(GRAPH, "1", store, trace_id="low", priority=-1)
    await submit(GRAPH, "2", store, trace_id="first")
    await submit(GRAPH, "3", store, trace_id="second", not_before=0)
    later = await submit(GRAPH, "4", store, trace_id="later", priority=9, not_before=soon)
    await submit(GRAPH, "5", store, trace_id="high", priority=2**53 - 1)
    assert later.not_before == pytest.approx(soon.timestamp())
    assert await claim(store) == ["high", "first", "second", "low"]
    assert await store.next_due(["g"]) == pytest.approx(soon.timestamp())
    async with Executor(GRAPH, checkpoint_storage=store) as executor:  # whoever asks for it by name need not wait
        assert (await executor.resume_from_checkpoint("later")).success


async def test_a_path_is_opened_and_closed(tmp_path: Path) -> None:
    record = await submit(GRAPH, "ann", tmp_path / "store", trace_id="t")
    assert record.status == "queued"
    async with Executor(GRAPH, checkpoint_storage=tmp_path / "store") as executor:
        assert (await executor.execute("ann", trace_id="t")).success


async def test_a_storage_stays_open(tmp_path: Path) -> None:
    storage = SQLiteCheckpointStorage(tmp_path)
    await submit(GRAPH, "ann", storage, trace_id="t")
    assert await storage.trace("t") is not None
    await storage.close()


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"priority": 1.0}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": 2**53}, "priority"),
        ({"priority": -(2**53)}, "priority"),
        ({"not_before": datetime(2030, 1, 1)}, "not_before"),
        ({"not_before": float("nan")}, "not_before"),
        ({"not_before": float("inf")}, "not_before"),
        ({"not_before": -1}, "not_before"),
        ({"not_before": True}, "not_before"),
        ({"not_before": "tomorrow"}, "not_before"),
        ({"not_before": 10**400}, "not_before"),
        ({"not_before": 2.3e11}, "not_before"),
        ({"not_before": datetime(9999, 1, 1, tzinfo=UTC)}, "not_before"),
        ({"trace_id": "no good"}, "trace_id"),
        ({"config": {"redact": ["x"]}}, "config"),
    ],
)
async def test_what_is_out_of_range_is_refused(options: dict[str, Any], setting: str) -> None:
    store = InMemoryCheckpointStorage()
    with pytest.raises(ConfigError) as caught:
        await submit(GRAPH, "ann", store, **options)
    assert caught.value.setting == setting
    await store.initialize()
    assert await store.traces() == []


async def test_what_cannot_be_submitted_is_refused(store: CheckpointStorage) -> None:
    with pytest.raises(ConfigError, match="a Graph"):
        await submit("graph.yaml", "ann", store)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="waits there"):
        await submit(GRAPH, "ann", None)  # type: ignore[arg-type]
    with pytest.raises(ValueNotStorable):
        await submit(GRAPH, object(), store)
    assert await store.traces() == []


async def test_what_is_redacted_is_not_stored(store: CheckpointStorage) -> None:
    rules = CheckpointConfig(redact=["password", "key"])
    task = {"user": "ann", "password": "hunter2"}
    await submit(GRAPH, task, store, trace_id="t", variables={"key": "hunter2"}, config=rules)
    snapshot = await store.load("t")
    assert all(b"hunter2" not in row.body for row in snapshot.messages.values())
    assert all(b"hunter2" not in row.body for rows in snapshot.variables.values() for row in rows)
    again = await submit(
        GRAPH, task, store, trace_id="t", variables={"key": "else"}, config=ExecutorConfig(redact=["password", "key"])
    )
    assert again.trace == snapshot.record.trace
    reduced = GraphBuilder("h", variables={"key": "append"}).node(upper).build()
    with pytest.raises(ConfigError, match="redact"):
        await submit(reduced, "ann", store, config=rules)


class Busy(InMemoryCheckpointStorage):
    """Commits, then says that it could not."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.errors = [error]

    async def commit(self, writes: Any) -> list[Outcome]:
        outcomes = await super().commit(writes)
        if self.errors:
            raise self.errors.pop()
        return outcomes


@pytest.mark.parametrize("kind", [DatabaseLocked, StorageUnavailable])
async def test_an_error_of_the_store_tells_by_which_id_to_find_out(kind: type[Exception]) -> None:
    store = Busy(kind("db", 5.0))
    with pytest.raises(kind) as caught:
        await submit(GRAPH, "ann", store)
    (note,) = caught.value.__notes__
    (record,) = await store.traces()
    assert note.endswith(f"call again with trace_id={record.trace_id!r}")
    assert (await submit(GRAPH, "ann", store, trace_id=record.trace_id)).trace == record.trace
    await store.close()


async def test_supervisors_are_told(tmp_path: Path) -> None:
    storage = SQLiteCheckpointStorage(tmp_path)
    await storage.initialize()
    directory = supervisors(storage)
    assert directory is not None
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        with address(directory, "x.sock") as path:
            listener.bind(path)
        listener.listen()
        listener.setblocking(False)

        def told() -> bool:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        await submit(GRAPH, "ann", storage, trace_id="t")
        assert told()
        await submit(GRAPH, "ann", storage, trace_id="t")  # the first may have died before it told them
        assert told()
        with pytest.raises(TraceMismatch):
            await submit(GRAPH, "bob", storage, trace_id="t")
        assert not told()

        async def ask(task: str, context: Any) -> Any:
            return await context.ask("ready?", name="ready")

        async with Executor(GraphBuilder("asks").node(ask).build(), checkpoint_storage=storage) as executor:
            assert (await executor.execute("", trace_id="a")).status == "paused"
        assert not told()
        await outside.answer(storage, "a", True)
        assert told()
    await storage.close()


# -- what others may do with a trace that waits ----------------------------------------------------------------


async def test_one_that_waits_is_cancelled(store: CheckpointStorage) -> None:
    await submit(GRAPH, "ann", store, trace_id="t")
    assert await outside.cancel(store, "t") == "cancelled"
    assert await claim(store) == []
    with pytest.raises(TraceEnded):
        await outside.cancel(store, "t")
    assert (await submit(GRAPH, "ann", store, trace_id="t")).status == "cancelled"
    async with Executor(GRAPH, checkpoint_storage=store) as executor:
        response = await executor.resume_from_checkpoint("t")
        assert (response.status, response.nodes_executed) == ("cancelled", 0)


async def test_one_that_waits_is_paused_until_it_is_resumed(store: CheckpointStorage) -> None:
    await submit(GRAPH, "ann", store, trace_id="t")
    assert await outside.pause(store, "t") == "paused"
    assert await claim(store) == []
    async with Executor(GRAPH, checkpoint_storage=store) as executor:
        assert (await executor.execute("ann", trace_id="t")).status == "paused"  # nothing is resumed by accident
        assert (await executor.resume_from_checkpoint("t")).content == "hello ANN"


async def test_one_that_waits_is_deleted(store: CheckpointStorage) -> None:
    await submit(GRAPH, "ann", store, trace_id="t")
    await outside.delete(store, "t")
    assert await store.trace("t") is None
    assert await claim(store) == []
    assert (await submit(GRAPH, "bob", store, trace_id="t")).status == "queued"


async def test_one_that_waits_is_named_and_forked(store: CheckpointStorage) -> None:
    await submit(GRAPH, "ann", store, trace_id="t", priority=2)
    assert (await outside.tag(store, "t", "begin")).rev == 0
    async with Executor(GRAPH, checkpoint_storage=store) as executor:
        for at in ("begin", "upper", 0):
            child = await executor.fork("t", at=at, set={"greeting": "hi"})
            assert child.content == "hi ANN"
    assert await claim(store) == ["t"]


async def test_one_that_waits_is_told_another_task_and_goes_on(store: CheckpointStorage) -> None:
    await submit(GRAPH, "ann", store, trace_id="t")
    async with Executor(GRAPH, checkpoint_storage=store) as executor:
        response = await executor.execute("and bob", resume_trace_id="t")
        assert response.content == "hello ANN"
    texts = [row.body for row in await store.messages("t")]
    assert any(b"and bob" in body for body in texts)


async def test_one_that_a_graph_change_kept_from_running_still_waits(store: CheckpointStorage) -> None:
    await submit(GRAPH, "ann", store, trace_id="t")
    changed = GraphBuilder("g").node(greet).build()
    async with Executor(changed, checkpoint_storage=store) as executor:
        with pytest.raises(Exception, match="changed since"):
            await executor.resume_from_checkpoint("t")
    record = await store.trace("t")
    assert record is not None
    assert record.status == "queued"
    assert await claim(store) == ["t"]
