"""What was claimed is executed by the owner that has it, or stays with it until it is given up."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from tinyllm import (
    CheckpointStorage,
    ConfigError,
    ExecutionError,
    Executor,
    Graph,
    GraphBuilder,
    GraphChanged,
    NodeMissing,
    Quarantined,
    RerunRefused,
    SQLiteCheckpointStorage,
    TraceEnded,
    TraceMismatch,
    TraceNotFound,
    TraceOwned,
    node,
    submit,
)
from tinyllm.actors.events import Event, FellBack, TraceStarted
from tinyllm.core import outside
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.payload import encode_error
from tinyllm.storage.contract import (
    Acquire,
    Acquired,
    Claim,
    Claimed,
    Command,
    Disown,
    Done,
    Held,
    Leave,
    Left,
    Outcome,
    Release,
    TraceRecord,
    Wanted,
    Write,
)
from tinyllm.storage.sqlite.library import sqlite3

pytestmark = pytest.mark.anyio

DEATHS = msgspec.json.encode([{"at": 1.0, "cause": "exit code 9", "pid": 7, "beside": 0, "step": 1}])
KILLED = encode_error(ErrorInfo(type="WorkerDied", message="3 processes that executed it died"))


class Work:
    """The nodes of `graph()`: they count their calls, wait where they are held, and fail where they are broken."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.reached = anyio.Event()
        self.let_go = anyio.Event()
        self.held = ""
        self.broken = ""

    def graph(self, names: str = "abc", *, effects: str = "") -> Graph:
        return GraphBuilder("g").chain(*(self._node(name, effects=name in effects) for name in names)).build()

    def _node(self, name: str, *, effects: bool) -> Any:
        @node(name=name, effects=effects)
        async def work(value: str, context: Any) -> str:
            self.calls[name] += 1
            context.set_variable("last", name)
            if name == self.held:
                self.reached.set()
                await self.let_go.wait()
            if name == self.broken:
                raise ValueError(f"{name} is broken")
            return value + name

        return work


async def one(store: CheckpointStorage, write: Write) -> Outcome:
    (outcome,) = await store.commit([write])
    assert not isinstance(outcome, Exception), outcome
    return outcome


async def claim(store: CheckpointStorage, owner: str | None, *, apart: bool = False) -> Held:
    assert owner is not None
    claimed = await one(store, Claim((Wanted("g", owner),), 1, apart))
    assert isinstance(claimed, Claimed)
    (held,) = claimed.traces
    return held


async def record_of(store: CheckpointStorage, trace_id: str = "t") -> TraceRecord:
    record = await store.trace(trace_id)
    assert record is not None
    return record


async def interrupted(store: CheckpointStorage, work: Work) -> None:
    """Trace `t`: `a` is done, `b` was running when its owner stopped."""
    work.held = "b"
    async with Executor(work.graph(), checkpoint_storage=store) as executor, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: executor.execute("", trace_id="t"))
        await work.reached.wait()
        tasks.cancel_scope.cancel()
    work.held = ""
    assert (await record_of(store)).status == "interrupted"


async def taken_from_the_dead(store: CheckpointStorage, *, apart: bool = False, error: bytes | None = None) -> None:
    """Trace `t` had an owner that died."""
    record = await record_of(store)
    acquired = await one(store, Acquire(record.trace, "t", record.epoch, "dead"))
    assert isinstance(acquired, Acquired)
    assert isinstance(await one(store, Disown(record.trace, "t", acquired.epoch, "dead", DEATHS, apart, error)), Done)


async def still_held(store: CheckpointStorage, executor: Executor) -> None:
    """Trace `t` is its owner's, which gives it up until an hour later."""
    (record,) = await store.held(executor.owner_id or "")
    assert record.trace_id == "t"
    later = time.time() + 3600
    await one(store, Release(record.trace, record.epoch, later))
    assert await store.held(executor.owner_id or "") == []
    assert await store.next_due(["g"]) == pytest.approx(later)


async def test_an_executor_has_an_owner_while_it_runs_and_records(store: CheckpointStorage) -> None:
    graph = Work().graph()
    executor = Executor(graph, checkpoint_storage=store)
    assert executor.owner_id is None
    async with executor:
        first = executor.owner_id
        assert first
        await submit(graph, "", store, trace_id="t")
        await claim(store, first)
        owner = (await record_of(store)).owner
        assert owner is not None
        assert owner.id == first
    assert executor.owner_id is None
    async with Executor(graph) as unrecorded:
        assert unrecorded.owner_id is None
        with pytest.raises(ConfigError, match="checkpoint_storage"):
            await unrecorded.adopt("t")


async def test_a_submitted_trace_is_executed(store: CheckpointStorage) -> None:
    work, events = Work(), list[Event]()
    await submit(work.graph(), "x", store, trace_id="t")
    async with Executor(work.graph(), checkpoint_storage=store, on_event=events.append) as executor:
        held = await claim(store, executor.owner_id)
        response = await executor.adopt(held.trace_id)
        assert (response.status, response.content) == ("completed", "xabc")
    (started,) = [event for event in events if isinstance(event, TraceStarted)]
    assert (started.resumed, started.kept, started.again, started.lost) == (False, 0, 0, 0)
    assert work.calls == {"a": 1, "b": 1, "c": 1}
    record = await record_of(store)
    assert (record.status, record.owner) == ("completed", None)


async def test_an_interrupted_one_goes_on_from_where_it_was(store: CheckpointStorage) -> None:
    work = Work()
    await interrupted(store, work)
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        await claim(store, executor.owner_id)
        assert (await executor.adopt("t")).content == "abc"
    assert work.calls == {"a": 1, "b": 2, "c": 1}


async def test_one_whose_owner_died_goes_on_and_keeps_its_deaths(store: CheckpointStorage) -> None:
    work = Work()
    await interrupted(store, work)
    await taken_from_the_dead(store, apart=True)
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        await claim(store, executor.owner_id, apart=True)
        assert (await executor.adopt("t")).content == "abc"
    assert (await record_of(store)).deaths == DEATHS  # whoever supervises it forgets them


async def test_many_are_executed_beside_each_other(store: CheckpointStorage) -> None:
    work = Work()
    for name in "xyz":
        await submit(work.graph(), name, store)
    found: list[str] = []
    async with Executor(work.graph(), checkpoint_storage=store) as executor:

        async def adopt(held: Held) -> None:
            found.append((await executor.adopt(held.trace_id)).content)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(adopt, await claim(store, executor.owner_id))
    assert sorted(found) == ["xabc", "yabc", "zabc"]


@pytest.mark.parametrize("verb", ["cancel", "pause"])
async def test_what_was_told_to_it_before_it_was_adopted_is_done(store: CheckpointStorage, verb: str) -> None:
    """Not as a resume by hand, which lifts a pause."""
    work = Work()
    await submit(work.graph(), "x", store, trace_id="t")
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        await claim(store, executor.owner_id)
        act = {"cancel": outside.cancel, "pause": outside.pause}[verb]
        assert await act(store, "t") == "queued"
        response = await executor.adopt("t")
        assert response.status == {"cancel": "cancelled", "pause": "paused"}[verb]
        assert (await record_of(store)).owner is None
        assert await store.commands(trace=(await record_of(store)).trace) == []
        assert not work.calls
        if verb == "pause":
            assert (await executor.resume_from_checkpoint("t")).content == "xabc"


async def test_a_pause_that_its_dead_owner_did_not_see_holds(store: CheckpointStorage) -> None:
    work = Work()
    await interrupted(store, work)
    record = await record_of(store)
    acquired = await one(store, Acquire(record.trace, "t", record.epoch, "dead"))
    assert isinstance(acquired, Acquired)
    assert isinstance(await one(store, Leave(record.trace, "t", "pause")), Left)
    await one(store, Disown(record.trace, "t", acquired.epoch, "dead"))
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        await claim(store, executor.owner_id)
        assert (await executor.adopt("t")).status == "paused"
        assert (await executor.resume_from_checkpoint("t")).content == "abc"
    assert work.calls == {"a": 1, "b": 2, "c": 1}


async def test_an_answer_and_a_pause_are_both_heeded(store: CheckpointStorage) -> None:
    async def ask(task: str, context: Any) -> Any:
        return await context.ask("ready?", name="ready", schema=bool)

    graph = GraphBuilder("g").node(ask).build()
    async with Executor(graph, checkpoint_storage=store) as executor:
        assert (await executor.execute("", trace_id="t")).status == "paused"
    await outside.answer(store, "t", True)  # it goes on: with whoever claims it
    async with Executor(graph, checkpoint_storage=store) as executor:
        await claim(store, executor.owner_id)
        await outside.pause(store, "t")
        assert (await executor.adopt("t")).status == "paused"
        assert (await executor.resume_from_checkpoint("t")).value is True


async def test_two_calls_for_one_trace_execute_it_once(store: CheckpointStorage) -> None:
    work = Work()
    work.held = "b"
    await submit(work.graph(), "x", store, trace_id="t")
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        await claim(store, executor.owner_id)
        refused: list[Exception] = []

        async def adopt() -> None:
            try:
                assert (await executor.adopt("t")).content == "xabc"
            except TraceOwned as error:
                refused.append(error)
                work.let_go.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(adopt)
            tasks.start_soon(adopt)
    assert len(refused) == 1
    assert work.calls == {"a": 1, "b": 1, "c": 1}
    assert (await record_of(store)).status == "completed"


async def test_another_owners_trace_is_refused(store: CheckpointStorage) -> None:
    work = Work()
    await submit(work.graph(), "x", store, trace_id="t")
    async with (
        Executor(work.graph(), checkpoint_storage=store) as other,
        Executor(work.graph(), checkpoint_storage=store) as executor,
    ):
        await claim(store, other.owner_id)
        with pytest.raises(TraceOwned):
            await executor.adopt("t")
        assert (await other.adopt("t")).success


async def test_a_failed_one_is_not_tried_again(store: CheckpointStorage) -> None:
    work = Work()
    work.broken = "b"
    await submit(work.graph(), "x", store, trace_id="t")
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        await claim(store, executor.owner_id)
        with pytest.raises(ExecutionError, match="b is broken"):
            await executor.adopt("t")
        record = await record_of(store)
        assert (record.status, record.owner) == ("failed", None)
        work.broken = ""
        with pytest.raises(ExecutionError, match="nothing was run now"):
            await executor.adopt("t")
        assert work.calls == {"a": 1, "b": 1}


async def test_one_that_is_stopped_is_given_up(store: CheckpointStorage) -> None:
    work = Work()
    work.held = "b"
    await submit(work.graph(), "x", store, trace_id="t")
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        await claim(store, executor.owner_id)
        statuses: list[str] = []

        async def adopt() -> None:
            statuses.append((await executor.adopt("t")).status)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(adopt)
            await work.reached.wait()
            executor.stop()
            work.let_go.set()
        assert statuses == ["interrupted"]
        assert await store.held(executor.owner_id or "") == []
        assert await store.next_due(["g"]) == 0


# -- where it cannot be executed -------------------------------------------------------------------------------


async def test_a_changed_graph_keeps_it_from_running_and_it_stays_held(store: CheckpointStorage) -> None:
    work = Work()
    await interrupted(store, work)
    async with Executor(work.graph("abd"), checkpoint_storage=store) as executor:
        await claim(store, executor.owner_id)
        with pytest.raises(GraphChanged):
            await executor.adopt("t")
        await still_held(store, executor)
    async with Executor(work.graph("abd"), checkpoint_storage=store) as executor:
        assert (await executor.adopt("t", accept_graph_change=True)).content == "abd"


async def test_a_missing_node_or_another_graph_leaves_it_held(store: CheckpointStorage) -> None:
    work = Work()
    await interrupted(store, work)
    async with Executor(work.graph("ac"), checkpoint_storage=store) as executor:
        await claim(store, executor.owner_id)
        with pytest.raises(NodeMissing):
            await executor.adopt("t", accept_graph_change=True)
        await still_held(store, executor)
    other = GraphBuilder("other").node(work._node("a", effects=False)).build()
    record = await record_of(store)
    async with Executor(other, checkpoint_storage=store) as executor:
        await one(store, Acquire(record.trace, "t", record.epoch, executor.owner_id or ""))
        with pytest.raises(TraceMismatch):
            await executor.adopt("t")
        await still_held(store, executor)


async def test_one_that_is_not_there(store: CheckpointStorage) -> None:
    async with Executor(Work().graph(), checkpoint_storage=store) as executor:
        with pytest.raises(TraceNotFound):
            await executor.adopt("t")


class Failing(SQLiteCheckpointStorage):
    """Fails to tell what was left for a trace, once, and remembers who gave traces up."""

    fails = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.released: list[Release] = []

    async def commands(self, *, owner: str | None = None, trace: int | None = None) -> list[Command]:
        if trace is not None and self.fails:
            self.fails = False
            raise OSError("planted")
        return await super().commands(owner=owner, trace=trace)

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        self.released += [write for write in writes if isinstance(write, Release)]
        return await super().commit(writes)


async def test_it_is_held_also_where_it_comes_to_nothing_after_it_was_acquired(tmp_path: Path) -> None:
    store = Failing(tmp_path)
    await store.initialize()
    work = Work()
    await submit(work.graph(), "x", store, trace_id="t")
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        held = await claim(store, executor.owner_id)
        await one(store, Leave(held.trace, "t", "pause"))
        with pytest.raises(OSError, match="planted"):
            await executor.adopt("t")
        await still_held(store, executor)
    assert [write.epoch for write in store.released] == [held.epoch + 1]  # by nobody but the test
    await store.close()


# -- where it is damaged ---------------------------------------------------------------------------------------


def damage(directory: Path, statement: str) -> None:
    connection = sqlite3.connect(directory / "tinyllm.db", isolation_level=None)
    assert connection.execute(statement).rowcount >= 1
    connection.close()


@pytest.mark.parametrize("effects", ["", "b"])
async def test_a_damaged_one_falls_back(tmp_path: Path, effects: str) -> None:
    store = SQLiteCheckpointStorage(tmp_path)
    await store.initialize()
    work, events = Work(), list[Event]()
    work.held = "c"
    graph = work.graph(effects=effects)
    async with Executor(graph, checkpoint_storage=store) as executor, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: executor.execute("", trace_id="t"))
        await work.reached.wait()
        tasks.cancel_scope.cancel()
    damage(tmp_path, "UPDATE variables SET body = '7' WHERE body = '\"b\"'")
    work.held = ""
    async with Executor(graph, checkpoint_storage=store, on_event=events.append) as executor:
        await claim(store, executor.owner_id)
        if effects:
            with pytest.raises(RerunRefused):
                await executor.adopt("t")
            await still_held(store, executor)
        else:
            assert (await executor.adopt("t")).content == "abc"
            assert isinstance(events[0], FellBack)
            assert work.calls == {"a": 1, "b": 2, "c": 2}
    await store.close()


async def test_a_damaged_one_that_was_to_pause_does(tmp_path: Path) -> None:
    store = SQLiteCheckpointStorage(tmp_path)
    await store.initialize()
    work = Work()
    await interrupted(store, work)
    damage(tmp_path, "UPDATE variables SET body = '7' WHERE body = '\"a\"'")
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        held = await claim(store, executor.owner_id)
        await one(store, Leave(held.trace, "t", "pause"))
        assert (await executor.adopt("t")).status == "paused"
        assert (await executor.resume_from_checkpoint("t")).content == "abc"
    await store.close()


# -- quarantine ------------------------------------------------------------------------------------------------


async def test_a_quarantined_one_is_released_by_force_alone(store: CheckpointStorage) -> None:
    work = Work()
    await interrupted(store, work)
    await taken_from_the_dead(store, error=KILLED)
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        for call in (executor.resume_from_checkpoint, executor.adopt):
            with pytest.raises(Quarantined, match=r"3 processes that executed it died; .*force") as caught:
                await call("t")
            assert (caught.value.releasable, caught.value.status) == (True, "quarantined")
        with pytest.raises(Quarantined):
            await executor.execute("more", resume_trace_id="t")
        stored = await executor.execute("", trace_id="t")  # the same id and task: what became of it
        assert (stored.status, stored.success) == ("quarantined", False)
        with pytest.raises(TraceEnded):
            await outside.cancel(store, "t")
        assert (await record_of(store)).deaths == DEATHS
        assert work.calls == {"a": 1, "b": 1}
        assert (await executor.resume_from_checkpoint("t", force=True)).content == "abc"
    record = await record_of(store)
    assert (record.status, record.deaths, record.apart) == ("completed", None, False)


async def test_a_release_that_comes_to_nothing_forgets_no_deaths(store: CheckpointStorage) -> None:
    work = Work()
    await interrupted(store, work)
    await taken_from_the_dead(store, error=KILLED)
    async with Executor(work.graph("abd"), checkpoint_storage=store) as executor:
        with pytest.raises(GraphChanged):
            await executor.resume_from_checkpoint("t", force=True)
    record = await record_of(store)
    assert (record.status, record.deaths) == ("quarantined", DEATHS)


async def test_what_is_forced_need_not_be_quarantined(store: CheckpointStorage) -> None:
    work = Work()
    await interrupted(store, work)
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        assert (await executor.resume_from_checkpoint("t", force=True)).content == "abc"
        assert (await executor.resume_from_checkpoint("t", force=True)).content == "abc"


async def test_what_was_quarantined_for_damage_is_not_released(store: CheckpointStorage) -> None:
    work = Work()
    await interrupted(store, work)
    record = await record_of(store)
    damaged = encode_error(ErrorInfo(type="CheckpointDamaged", message="its frontier is missing"))
    await taken_from_the_dead(store, error=damaged)
    async with Executor(work.graph(), checkpoint_storage=store) as executor:
        with pytest.raises(Quarantined, match=r"its frontier is missing; .* nothing releases it") as caught:
            await executor.resume_from_checkpoint("t", force=True)
        assert not caught.value.releasable
        assert (await executor.resume_from_checkpoint("t")).status == "quarantined"
        assert (await executor.fork("t", at="b", new_trace_id="f")).content == "abc"
    assert (await record_of(store)).trace == record.trace
