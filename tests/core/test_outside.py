"""What others do with a trace, in this process or beside it: pause, cancel, answer, label, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import anyio
import attrs
import pytest

from tinyllm import (
    AlreadyAnswered,
    AnswerRefused,
    CheckpointDamaged,
    CheckpointNotFound,
    Executor,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    QuestionNotOpen,
    TraceEnded,
    TraceNotFound,
    TraceOwned,
    node,
)
from tinyllm.actors.events import Event, NodeAnswered, NodePaused, NodeStarted, Planned
from tinyllm.core import outside
from tinyllm.core.fork import fork_delta
from tinyllm.storage.contract import Acquire, Append, Fork, Leave, Outcome, Release, Snapshot, Write

pytestmark = pytest.mark.anyio


@node
def plan(task: str) -> list[str]:
    return task.split()


@node
async def ask(name: str, context: Any) -> Any:
    return await context.ask(f"{name}?", name=name, schema=int)


@node
def total(values: list[int]) -> int:
    return sum(values)


@pytest.fixture
async def storage() -> AsyncIterator[InMemoryCheckpointStorage]:
    store = InMemoryCheckpointStorage()
    await store.initialize()
    yield store
    await store.close()


def asking() -> Graph:
    """Asks for a number under each word of its task, and adds them up."""
    builder = GraphBuilder("asking").node(total, join="all")
    return builder.edge(plan, ask, for_each=True).edge(ask, total).build()


class Held:
    """A graph of two nodes of which the first waits until it is let go."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.let_go = anyio.Event()

        async def first(value: str) -> str:
            self.reached.set()
            await self.let_go.wait()
            return value

        async def second(value: str) -> str:
            return value.upper()

        self.graph = GraphBuilder("held").chain(first, second).build()


# -- pause, cancel ---------------------------------------------------------------------------------------------


async def test_a_pause_lets_what_runs_end_and_starts_nothing_more(storage: InMemoryCheckpointStorage) -> None:
    held = Held()
    async with Executor(held.graph, None, storage) as executor, anyio.create_task_group() as tasks:
        tasks.start_soon(executor.execute, "x", name="execute")
        await held.reached.wait()
        ((name,),) = [[record.trace_id for record in await storage.traces()]]
        assert await executor.pause(name) == "running"
        await anyio.wait_all_tasks_blocked()  # it has been told
        held.let_go.set()
    async with Executor(held.graph, None, storage) as executor:
        paused = await storage.load(name)
        assert (paused.status, paused.step, len(paused.frontier)) == ("paused", 1, 1)
        assert (await executor.execute("x", resume_trace_id=name)).content == "X"


async def test_what_is_paused_and_asks_nothing_runs_when_it_is_resumed(storage: InMemoryCheckpointStorage) -> None:
    held = Held()
    executor: Executor

    def stop(_: Event) -> None:
        executor.stop()

    async with Executor(held.graph, None, storage, on_event=stop) as executor:
        await executor.execute("x", trace_id="t")
    held.let_go.set()
    assert await outside.pause(storage, "t") == "paused"
    async with Executor(held.graph, None, storage) as executor:
        assert (await executor.execute("x", trace_id="t")).status == "paused"
        assert (await executor.resume_from_checkpoint("t")).content == "X"


async def test_a_pause_of_what_has_nothing_left_to_run_ends_with_a_resume(storage: InMemoryCheckpointStorage) -> None:
    """A fork from the end, whose process died before it could say that it has ended."""
    held = Held()
    held.let_go.set()
    async with Executor(held.graph, None, storage) as executor:
        await executor.execute("x", trace_id="t")
    parent = await storage.load("t")
    fork = Fork(parent=parent.record.trace, rev=parent.rev, trace_id="c", owner=None, first=fork_delta(parent, {}))
    await storage.commit([fork])
    assert await outside.pause(storage, "c") == "paused"
    async with Executor(held.graph, None, storage) as executor:
        assert (await executor.resume_from_checkpoint("c")).content == "X"


async def test_a_cancelled_trace_is_over(storage: InMemoryCheckpointStorage) -> None:
    async with Executor(asking(), None, storage) as executor:
        await executor.execute("a", trace_id="t")
        assert await executor.cancel("t") == "cancelled"
        for verb in (executor.cancel, executor.pause):
            with pytest.raises(TraceEnded):
                await verb("t")
        with pytest.raises(TraceEnded):
            await executor.answer("t", 1)
        assert (await executor.resume_from_checkpoint("t")).status == "cancelled"


class Stubborn(Held):
    """Its first node cannot be cancelled; beside it, one asks."""

    def __init__(self) -> None:
        super().__init__()

        async def begin(value: str) -> str:
            return value

        async def stubborn(value: str) -> str:
            self.reached.set()
            with anyio.CancelScope(shield=True):
                await self.let_go.wait()
            return value

        async def wonder(value: str, context: Any) -> str:
            return str(await context.ask("?"))

        self.alone = GraphBuilder("stubborn").chain(stubborn).build()
        self.graph = GraphBuilder("asks").chain(begin, stubborn).chain(begin, wonder).build()


@pytest.mark.parametrize("kind", ["pause", "cancel"])
async def test_what_comes_to_rest_when_it_was_to_end_is_ended(storage: InMemoryCheckpointStorage, kind: str) -> None:
    held = Stubborn()
    async with Executor(held.graph, None, storage) as executor, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(executor.execute, "x", trace_id="t"), name="execute")
        await held.reached.wait()
        await getattr(executor, kind)("t")
        await anyio.wait_all_tasks_blocked()  # it has been told
        held.let_go.set()
    record = await storage.trace("t")
    assert record is not None
    assert record.status == {"pause": "paused", "cancel": "cancelled"}[kind]
    assert await storage.commands(trace=record.trace) == []


async def test_a_cancel_that_came_too_late_does_not_end_the_next_generation(
    storage: InMemoryCheckpointStorage,
) -> None:
    held = Stubborn()
    async with Executor(held.alone, None, storage) as executor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(executor.execute, "x", trace_id="t"), name="execute")
            await held.reached.wait()
            await executor.cancel("t")
            await anyio.wait_all_tasks_blocked()
            held.let_go.set()
        assert (await executor.resume_from_checkpoint("t")).status == "completed"
        assert (await executor.execute("y", resume_trace_id="t")).content == "y"


# -- answers ---------------------------------------------------------------------------------------------------


async def test_of_several_answers_all_are_left_or_none(storage: InMemoryCheckpointStorage) -> None:
    async with Executor(asking(), None, storage) as executor:
        await executor.execute("a b", trace_id="t")
        with pytest.raises(AnswerRefused):
            await executor.resume_from_checkpoint("t", answers={"a": 1, "b": "two"})
        with pytest.raises(QuestionNotOpen, match="'c' is no open question"):
            await executor.resume_from_checkpoint("t", answers={"a": 1, "c": 2})
        response = await executor.resume_from_checkpoint("t", answers={"a": 10, "b": 2})
        assert response.value == 12


async def test_more_answers_than_a_mailbox_holds_are_taken_at_once(storage: InMemoryCheckpointStorage) -> None:
    builder = GraphBuilder("many").node(plan, max_concurrency=1).node(ask, max_concurrency=1)
    builder.node(total, join="all", max_concurrency=1)
    graph = builder.edge(plan, ask, for_each=True).edge(ask, total).build()
    names = [f"q{at}" for at in range(200)]
    async with Executor(graph, None, storage) as executor:
        await executor.execute(" ".join(names), trace_id="t")
        response = await executor.resume_from_checkpoint("t", answers=dict.fromkeys(names, 1))
        assert response.value == 200


async def test_the_only_question_needs_no_name(storage: InMemoryCheckpointStorage) -> None:
    async with Executor(asking(), None, storage) as executor:
        await executor.execute("a b", trace_id="t")
        with pytest.raises(QuestionNotOpen, match="asks several questions; name the one"):
            await outside.find_question(storage, "t")
        await outside.leave_answers(storage, "t", [("a", 1)])
        with pytest.raises(AlreadyAnswered):
            await outside.leave_answers(storage, "t", [("a", 2)])
        await executor.resume_from_checkpoint("t")
        assert (await outside.find_question(storage, "t")).name == "b"
        assert (await executor.answer("t", 4)).name == "b"
        with pytest.raises(QuestionNotOpen, match="asks nothing"):
            await outside.find_question(storage, "t")
        assert (await executor.resume_from_checkpoint("t")).value == 5


async def test_an_answer_to_a_running_trace_is_told_before_what_it_starts(storage: InMemoryCheckpointStorage) -> None:
    seen: list[Event] = []
    parked = anyio.Event()
    held = Held()

    def watch(event: Event) -> None:
        seen.append(event)
        if isinstance(event, NodePaused):
            parked.set()

    @node
    async def wait(_: str) -> int:
        await held.let_go.wait()
        return 0

    graph = GraphBuilder("both").node(total, join="all").edge(ask, total).edge(wait, total).entry(ask, wait).build()
    async with Executor(graph, None, storage, on_event=watch) as executor, anyio.create_task_group() as tasks:
        tasks.start_soon(executor.execute, "a", name="execute")
        await parked.wait()
        ((name,),) = [[record.trace_id for record in await storage.traces()]]
        del seen[:]
        await executor.answer(name, 7)
        while not any(isinstance(event, NodeStarted) for event in seen):
            await anyio.lowlevel.checkpoint()
        held.let_go.set()
    told = [event for event in seen if isinstance(event, NodeAnswered | Planned | NodeStarted)]
    assert told[:3] == [NodeAnswered(name, "ask", "a"), Planned(name, "ask", 1), NodeStarted(name, "ask")]


class Overtaken(InMemoryCheckpointStorage):
    """Before the next write of that kind is committed, somebody else acquires trace `t`, and leaves it again."""

    kind: type[Write] | None = None

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        if self.kind is not None and isinstance(writes[0], self.kind):
            self.kind = None
            record = await self.trace("t")
            assert record is not None
            taken = Acquire(record.trace, "t", record.epoch, "other")
            await super().commit([taken, Release(record.trace, record.epoch + 1)])
        return await super().commit(writes)


@pytest.mark.parametrize("kind", [Acquire, Append])
async def test_an_answer_whose_trace_was_taken_meanwhile_is_the_takers_to_carry_out(kind: type[Write]) -> None:
    storage = Overtaken()
    async with Executor(asking(), None, storage) as executor:
        await executor.execute("a", trace_id="t")
        storage.kind = kind
        await executor.answer("t", 7)
        assert storage.kind is None
        assert (await executor.execute("a", trace_id="t")).value == 7
    await storage.close()


class Ended(InMemoryCheckpointStorage):
    """Before somebody else acquires trace `t`, which has an answer that nobody has read, it ends."""

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        if isinstance(writes[0], Leave):
            outcomes = await super().commit(writes)
            snapshot = await self.load("t")
            last = attrs.evolve(snapshot.following(), status="cancelled")
            await super().commit([Append("t", last)])
            return outcomes
        return await super().commit(writes)


async def test_an_answer_that_came_too_late_starts_nothing_again() -> None:
    storage = Ended()
    async with Executor(asking(), None, storage) as executor:
        await executor.execute("a", trace_id="t")
        await executor.answer("t", 7)
        record = await storage.trace("t")
        assert record is not None
        assert record.status == "cancelled"
    await storage.close()


class Damaged(InMemoryCheckpointStorage):
    async def load(self, trace_id: str, rev: int | None = None) -> Snapshot:
        raise CheckpointDamaged(trace_id, 1, "a variable does not have the bytes that were written")


async def test_a_trace_whose_state_cannot_be_read_can_be_named_and_forgotten() -> None:
    storage = Damaged()
    async with Executor(asking(), None, storage) as executor:
        await executor.execute("a", trace_id="t")
    assert (await outside.tag(storage, "t", "broken")).label == "broken"
    await outside.delete(storage, "t")
    assert await storage.traces() == []
    await storage.close()


async def test_a_resume_goes_on_where_somebody_only_answered_just_then() -> None:
    storage = Overtaken()
    async with Executor(asking(), None, storage) as executor:
        await executor.execute("a", trace_id="t")
        storage.kind = Acquire
        assert (await executor.resume_from_checkpoint("t", answers={"a": 7})).value == 7
        assert storage.kind is None
    await storage.close()


# -- labels, deleting ------------------------------------------------------------------------------------------


async def test_labels_are_given_found_and_taken_away(storage: InMemoryCheckpointStorage) -> None:
    async with Executor(asking(), None, storage) as executor:
        await executor.execute("", trace_id="t")
    assert (await outside.tag(storage, "t", "start", step=1)).step == 1
    newest = await outside.tag(storage, "t", "end")
    await outside.tag(storage, "t", "start")
    assert [record.label for record in await outside.labels(storage, "t")] == ["start", "start"]
    with pytest.raises(CheckpointNotFound, match="'start' at step 1"):
        await outside.untag(storage, "t", "end")
    with pytest.raises(CheckpointNotFound):
        await outside.untag(storage, "t", "start", step=99)
    (taken,) = await outside.untag(storage, "t", "start", step=newest.step)
    assert (taken.rev, taken.label) == (newest.rev, None)
    assert [record.step for record in await outside.untag(storage, "t", "start")] == [1]
    assert await outside.labels(storage, "t") == []
    with pytest.raises(TraceNotFound):
        await outside.labels(storage, "nobody")


async def test_what_is_executed_is_not_deleted(storage: InMemoryCheckpointStorage) -> None:
    held = Held()
    async with Executor(held.graph, None, storage) as executor, anyio.create_task_group() as tasks:
        tasks.start_soon(executor.execute, "x", name="execute")
        await held.reached.wait()
        ((name,),) = [[record.trace_id for record in await storage.traces()]]
        with pytest.raises(TraceOwned):
            await outside.delete(storage, name)
        held.let_go.set()
    await outside.delete(storage, name)
    assert await storage.trace(name) is None
