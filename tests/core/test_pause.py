"""Questions, answers, and what others may do with a trace: pause it, cancel it, name its checkpoints, delete it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from tinyllm import (
    AlreadyAnswered,
    AnswerRefused,
    CheckpointNotFound,
    CheckpointStorage,
    ConfigError,
    ExecutionError,
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    Pause,
    QuestionNotOpen,
    Result,
    TaskResponse,
    TraceEnded,
    TraceNotFound,
    TraceOwned,
)
from tinyllm.actors.events import Event, NodeFailed, TraceStarted
from tinyllm.actors.events import TraceEnded as TraceEndedEvent
from tinyllm.core import outside
from tinyllm.storage.contract import Append, CommandKind, Leave, Outcome, Release, Write

pytestmark = pytest.mark.anyio


def approval(ran: Counter[str]) -> Graph:
    """`draft` -> `approve` (asks) and `draft` -> `log`, joined by `publish`."""

    async def draft(task: str) -> str:
        ran["draft"] += 1
        return f"draft of {task}"

    async def approve(text: str, context: Any) -> str:
        ran["approve"] += 1
        return f"{text}: {'yes' if await context.ask(f'publish {text}?', name='ok', schema=bool) else 'no'}"

    async def log(text: str) -> str:
        ran["log"] += 1
        return "logged"

    async def publish(parts: list[str]) -> str:
        return " / ".join(parts)

    return (
        GraphBuilder("approval").chain(draft, approve, publish).chain(draft, log, publish).node(publish, join="all")
    ).build()


async def test_a_trace_pauses_with_its_question_after_all_else_has_run(store: CheckpointStorage) -> None:
    ran: Counter[str] = Counter()
    async with Executor(approval(ran), checkpoint_storage=store) as executor:
        response = await executor.execute("x", trace_id="t")
    assert (response.status, response.success, response.error, response.value) == ("paused", False, None, None)
    (question,) = response.questions
    assert (question.trace_id, question.node_id, question.name) == ("t", "approve", "ok")
    assert (question.prompt, question.schema) == ("publish draft of x?", {"type": "boolean"})
    assert ran == {"draft": 1, "approve": 1, "log": 1}
    record = await store.trace("t")
    assert record is not None
    assert (record.status, record.owner) == ("paused", None)


async def test_an_answer_resumes_it_and_only_what_asked_starts_again(store: CheckpointStorage) -> None:
    ran: Counter[str] = Counter()
    graph = approval(ran)
    async with Executor(graph, checkpoint_storage=store) as executor:
        await executor.execute("x", trace_id="t")
    async with Executor(graph, checkpoint_storage=store) as executor:
        response = await executor.resume_from_checkpoint("t", answers={"ok": True})
    assert response.value == "draft of x: yes / logged"
    assert ran == {"draft": 1, "approve": 2, "log": 1}


async def test_without_an_answer_a_paused_trace_is_told_as_it_is(store: CheckpointStorage) -> None:
    ran: Counter[str] = Counter()
    async with Executor(approval(ran), checkpoint_storage=store) as executor:
        first = await executor.execute("x", trace_id="t")
        rev = (await store.load("t")).rev
        again = await executor.resume_from_checkpoint("t")
        same = await executor.execute("x", trace_id="t")
        assert again.questions == same.questions == first.questions
        assert (await store.load("t")).rev == rev, "nothing was written"
    assert ran["approve"] == 1


async def test_an_answer_that_does_not_fit_is_refused_and_the_question_stays_open(store: CheckpointStorage) -> None:
    async with Executor(approval(Counter()), checkpoint_storage=store) as executor:
        await executor.execute("x", trace_id="t")
        with pytest.raises(AnswerRefused, match="must be boolean"):
            await executor.answer("t", "perhaps")
        with pytest.raises(QuestionNotOpen, match="'other' is no open question of trace 't'; open are: approve"):
            await executor.answer("t", True, question="other")
        assert len(await outside.questions(store, "t")) == 1


async def test_an_answer_without_a_live_owner_is_carried_out_at_once(store: CheckpointStorage) -> None:
    async with Executor(approval(Counter()), checkpoint_storage=store) as executor:
        await executor.execute("x", trace_id="t")
        answered = await executor.answer("t", True)
        assert answered.name == "ok"
        record = await store.trace("t")
        assert record is not None
        assert record.status == "interrupted", "ready to be resumed"
        assert await outside.questions(store, "t") == ()
        assert await store.commands(trace=record.trace) == []
        with pytest.raises(QuestionNotOpen, match="no question of it is open"):
            await executor.answer("t", False)
        assert (await executor.resume_from_checkpoint("t")).content == "draft of x: yes / logged"


async def test_of_racing_answerers_one_wins(store: CheckpointStorage) -> None:
    async with Executor(approval(Counter()), checkpoint_storage=store) as executor:
        await executor.execute("x", trace_id="t")
        won: list[bool] = []
        lost: list[BaseException] = []

        async def race(value: bool) -> None:
            try:
                await outside.leave_answers(store, "t", [(None, value)])
                won.append(value)
            except AlreadyAnswered as error:
                lost.append(error)

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(race, number % 2 == 0)
        assert (len(won), len(lost)) == (1, 7)
        response = await executor.resume_from_checkpoint("t")
        assert response.content.startswith(f"draft of x: {'yes' if won[0] else 'no'}")


def fan_out(threaded: bool = False) -> Graph:
    async def split(task: str) -> list[int]:
        return [1, 2, 3]

    async def ask(number: int, context: Any) -> int:
        return number * int(await context.ask(f"factor of {number}?", name="factor", schema=int))

    def ask_in_thread(number: int, context: Any) -> int:
        return number * int(context.ask(f"factor of {number}?", name="factor", schema=int))

    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    asking = ask_in_thread if threaded else ask
    return (
        GraphBuilder("factors")
        .node(asking, id="ask")
        .edge(split, "ask", for_each=True)
        .edge("ask", total)
        .node(total, join="all")
    ).build()


@pytest.mark.parametrize("threaded", [False, True])
async def test_several_questions_are_open_at_once_and_answered_one_by_one(
    store: CheckpointStorage, threaded: bool
) -> None:
    async with Executor(fan_out(threaded), checkpoint_storage=store) as executor:
        response = await executor.execute("x", trace_id="t")
        first, second, third = sorted(response.questions, key=lambda question: question.prompt)
        with pytest.raises(QuestionNotOpen, match="'factor' names several questions"):
            await executor.answer("t", 1, question="factor")
        await executor.answer("t", 100, question=third.id)
        response = await executor.resume_from_checkpoint("t", answers={first.id: 1})
        assert (response.status, response.questions) == ("paused", (second,))
        response = await executor.resume_from_checkpoint("t", answers={"factor": 10})
        assert response.value == 1 + 20 + 300


async def test_a_pause_may_be_raised(store: CheckpointStorage) -> None:
    def gate(value: str, context: Any) -> str:
        if context.variables.get("open"):
            return "went"
        raise Pause("open the gate?", name="gate")

    graph = GraphBuilder("gates").node(gate).build()
    async with Executor(graph, checkpoint_storage=store) as executor:
        response = await executor.execute("x", trace_id="t")
        assert [question.name for question in response.questions] == ["gate"]


@pytest.mark.parametrize("wants_context", [True, False])
async def test_who_asks_again_what_is_answered_is_told_where_the_answer_is(
    store: CheckpointStorage, wants_context: bool
) -> None:
    def forgets(value: str) -> str:
        raise Pause("open the gate?", name="gate")

    def forgets_it_has(value: str, context: Any) -> str:
        raise Pause("open the gate?", name="gate")

    graph = GraphBuilder("gates").node(forgets_it_has if wants_context else forgets).build()
    async with Executor(graph, checkpoint_storage=store) as executor:
        await executor.execute("x", trace_id="t")
        with pytest.raises(ExecutionError, match=r"take the answer from `context\.ask\(\.\.\., name='gate'\)`"):
            await executor.resume_from_checkpoint("t", answers={"gate": True})


async def test_an_answer_reaches_a_trace_that_still_runs(store: CheckpointStorage) -> None:
    released = anyio.Event()
    asked = anyio.Event()

    async def start(task: str) -> str:
        return task

    async def slow(value: str) -> str:
        await released.wait()
        return "slow"

    async def ask(value: str, context: Any) -> Any:
        if not asked.is_set():
            asked.set()
        answer = await context.ask("and?")
        released.set()
        return answer

    async def both(parts: list[Any]) -> list[Any]:
        return parts

    graph = GraphBuilder("g").chain(start, slow, both).chain(start, ask, both).node(both, join="all").build()
    responses: list[TaskResponse] = []
    async with Executor(graph, ExecutorConfig(durability="sync"), store) as executor:

        async def execute() -> None:
            responses.append(await executor.execute("x", trace_id="t"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(execute)
            await asked.wait()
            with anyio.fail_after(10):
                while not await outside.questions(store, "t"):  # until the question is durable
                    await anyio.lowlevel.checkpoint()
                await executor.answer("t", {"said": 1})
    assert responses[0].value == ["slow", {"said": 1}]


async def test_an_answer_does_not_lift_a_pause(store: CheckpointStorage) -> None:
    async with Executor(fan_out(), checkpoint_storage=store) as executor:
        response = await executor.execute("x", trace_id="t")
        await executor.answer("t", 1, question=response.questions[0].id)
        assert await executor.pause("t") == "paused", "though one of them could run now"
        await executor.answer("t", 1, question=response.questions[1].id)
        record = await store.trace("t")
        assert record is not None
        assert record.status == "paused"
        assert len((await executor.resume_from_checkpoint("t")).questions) == 1


# -- pause and cancel ------------------------------------------------------------------------------------------


class Held:
    """A chain whose middle waits until it is let go."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.reached = anyio.Event()
        self.let_go = anyio.Event()

    def graph(self) -> Graph:
        async def first(task: str) -> str:
            self.ran["first"] += 1
            return task

        async def middle(value: str) -> str:
            self.ran["middle"] += 1
            self.reached.set()
            await self.let_go.wait()
            return value

        async def last(value: str) -> Any:
            self.ran["last"] += 1
            return Result(value.upper(), set={"done": True})

        return GraphBuilder("held").chain(first, middle, last).build()


async def test_a_pause_lets_what_runs_end_and_a_resume_goes_on(store: CheckpointStorage) -> None:
    """Of a trace that would go on for ever: so it does not matter when the pause is noticed."""
    ended, responses = set[str](), list[TaskResponse]()
    begun = anyio.Event()

    async def count(number: int, context: Any) -> int:
        begun.set()
        return -number if "enough" in context.deps else number + 1

    builder = GraphBuilder("loop", allow_cycles=True).edge(count, count, when="structured > 0")
    graph = builder.entry(count).exit(count).build()
    async with Executor(graph, checkpoint_storage=store, deps=ended) as executor:

        async def execute() -> None:
            responses.append(await executor.execute(1, trace_id="t"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(execute)
            await begun.wait()
            assert await executor.pause("t") in ("running", "paused")
        (response,) = responses
        assert (response.status, response.questions) == ("paused", ())
        snapshot = await store.load("t")
        assert (snapshot.record.status, snapshot.record.owner) == ("paused", None)
        assert [row.state for row in snapshot.frontier] == ["planned"]
        assert await store.commands(trace=snapshot.record.trace) == []
        ended.add("enough")
        assert (await executor.resume_from_checkpoint("t")).value == -(response.nodes_executed + 1)


async def test_a_cancel_ends_what_runs_and_the_trace_for_good(store: CheckpointStorage) -> None:
    held, responses = Held(), list[TaskResponse]()
    async with Executor(held.graph(), checkpoint_storage=store) as executor:

        async def execute() -> None:
            responses.append(await executor.execute("x", trace_id="t"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(execute)
            await held.reached.wait()
            await executor.cancel("t")
        assert (responses[0].status, responses[0].success) == ("cancelled", False)
        assert (await executor.execute("x", trace_id="t")).status == "cancelled"
        assert (await executor.resume_from_checkpoint("t")).status == "cancelled"
        assert held.ran == {"first": 1, "middle": 1}
        for verb in (executor.cancel, executor.pause):
            with pytest.raises(TraceEnded, match="trace 't' is cancelled"):
                await verb("t")
        with pytest.raises(TraceEnded):
            await executor.answer("t", 1)
        with pytest.raises(TraceEnded):
            await executor.execute("more", resume_trace_id="t")


async def test_without_a_live_owner_a_pause_and_a_cancel_are_carried_out_at_once(store: CheckpointStorage) -> None:
    held = Held()
    async with Executor(held.graph(), checkpoint_storage=store) as executor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(executor.execute, "x")
            await held.reached.wait()
            executor.stop()
            held.let_go.set()
        (record,) = await store.traces()
        assert record.status == "interrupted"
        assert await executor.pause(record.trace_id) == "paused"
        assert await executor.pause(record.trace_id) == "paused", "twice is once"
        assert await executor.cancel(record.trace_id) == "cancelled"


async def test_a_cancelled_scope_leaves_the_trace_interrupted(store: CheckpointStorage) -> None:
    held = Held()
    async with Executor(held.graph(), checkpoint_storage=store) as executor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(executor.execute, "x")
            await held.reached.wait()
            tasks.cancel_scope.cancel()
        (record,) = await store.traces()
        assert record.status == "interrupted"


async def test_commands_need_a_store_and_a_trace(store: CheckpointStorage) -> None:
    async with Executor(Held().graph()) as executor:
        with pytest.raises(ConfigError, match="checkpoint_storage"):
            await executor.cancel("t")
    async with Executor(Held().graph(), checkpoint_storage=store) as executor:
        for verb in (executor.cancel, executor.pause):
            with pytest.raises(TraceNotFound):
                await verb("nothing")


# -- names and deletion ----------------------------------------------------------------------------------------


async def test_a_checkpoint_gets_a_name_and_keeps_it_through_pruning(store: CheckpointStorage) -> None:
    graph = approval(Counter())
    async with Executor(graph, ExecutorConfig(max_checkpoints_per_trace=1), store) as executor:
        await executor.execute("x", trace_id="t")
        tagged = await outside.tag(store, "t", "before the answer")
        assert (tagged.label, tagged.step) == ("before the answer", 2)
        await executor.resume_from_checkpoint("t", answers={"ok": True})
        fork = await executor.fork("t", at=2, new_trace_id="other")
        assert (fork.status, len(fork.questions)) == ("paused", 1), "in a fork it asks anew"
    listed = {record.rev: record.label for record in await store.checkpoints("t")}
    assert listed[tagged.rev] == "before the answer"
    await outside.untag(store, "t", "before the answer")
    assert "before the answer" not in {record.label for record in await store.checkpoints("t")}
    with pytest.raises(CheckpointNotFound):
        await outside.tag(store, "t", "never", step=77)


async def test_deleting_a_trace_forgets_it_but_not_its_forks(store: CheckpointStorage) -> None:
    graph = approval(Counter())
    async with Executor(graph, checkpoint_storage=store) as executor:
        await executor.execute("x", trace_id="t")
        await executor.fork("t", at=1, new_trace_id="child")
        await outside.delete(store, "t")
        assert await store.trace("t") is None
        response = await executor.resume_from_checkpoint("child", answers={"ok": False})
        assert response.content == "draft of x: no / logged"
    with pytest.raises(TraceNotFound):
        await outside.delete(store, "t")


async def test_a_trace_that_is_being_executed_is_not_deleted(store: CheckpointStorage) -> None:
    held = Held()
    async with Executor(held.graph(), checkpoint_storage=store) as executor, anyio.create_task_group() as tasks:
        tasks.start_soon(executor.execute, "x")
        await held.reached.wait()
        (record,) = await store.traces()
        with pytest.raises(TraceOwned):
            await outside.delete(store, record.trace_id)
        held.let_go.set()


async def test_a_cancel_that_nobody_heard_is_carried_out_by_the_next_owner(store: CheckpointStorage) -> None:
    held = Held()
    async with Executor(held.graph(), checkpoint_storage=store) as executor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(executor.execute, "x")
            await held.reached.wait()
            executor.stop()
            held.let_go.set()
        (record,) = await store.traces()
        await store.commit([Leave(record.trace, record.trace_id, "cancel")])
        response = await executor.resume_from_checkpoint(record.trace_id)
    assert response.status == "cancelled"
    assert held.ran == {"first": 1, "middle": 1}, "nothing more was started"


async def test_a_pause_does_not_make_a_failure_forgotten(store: CheckpointStorage) -> None:
    began, told = anyio.Event(), anyio.Event()

    async def start(task: str) -> str:
        return task

    async def bad(value: str) -> str:
        await began.wait()
        raise ValueError("boom")

    async def slow(value: str) -> str:
        began.set()
        await told.wait()
        return value

    def observe(event: Event) -> None:
        if isinstance(event, NodeFailed):
            failed.set()

    failed = anyio.Event()
    graph = GraphBuilder("g").edge(start, bad).edge(start, slow).build()
    async with (
        Executor(graph, checkpoint_storage=store, on_event=observe) as executor,
        anyio.create_task_group() as tasks,
    ):

        async def execute() -> None:
            with pytest.raises(ExecutionError, match="boom"):
                await executor.execute("x", trace_id="t")

        tasks.start_soon(execute)
        await failed.wait()
        await executor.pause("t")
        told.set()
    record = await store.trace("t")
    assert record is not None
    assert record.status == "failed"


class Late(InMemoryCheckpointStorage):
    """Somebody leaves `kind` in the last moment: after the owner looked, before it gives the trace up."""

    kind: CommandKind | None = None

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        for write in writes:
            kind = self.kind
            if kind is None or not isinstance(write, Append | Release):
                continue
            if isinstance(write, Append) and write.delta.status == "paused":
                self.kind = None
                (asked,) = (await self.load("t")).frontier
                await super().commit([Leave(write.delta.trace, "t", kind, asked.id, "answer", b"7")])
            elif isinstance(write, Release):
                self.kind = None
                await super().commit([Leave(write.trace, "t", kind)])
        return await super().commit(writes)


async def test_an_answer_in_the_last_moment_is_not_overlooked() -> None:
    async def ask(task: str, context: Any) -> Any:
        return await context.ask("and?")

    late = Late()
    late.kind = "answer"
    async with Executor(GraphBuilder("g").node(ask).build(), checkpoint_storage=late) as executor:
        assert (await executor.execute("x", trace_id="t")).value == 7


async def test_a_cancel_in_the_last_moment_is_not_overlooked() -> None:
    held, late, responses = Held(), Late(), list[TaskResponse]()
    async with Executor(held.graph(), checkpoint_storage=late) as executor:

        async def execute() -> None:
            responses.append(await executor.execute("x", trace_id="t"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(execute)
            await held.reached.wait()
            late.kind = "cancel"
            executor.stop()
            held.let_go.set()
    assert responses[0].status == "cancelled"


async def test_who_answers_again_is_told_that_it_is_answered_also_when_it_is_long_over(
    store: CheckpointStorage,
) -> None:
    async with Executor(approval(Counter()), checkpoint_storage=store) as executor:
        first = await executor.execute("x", trace_id="t")
        await executor.answer("t", True)
        for name in ("ok", first.questions[0].id):
            with pytest.raises(AlreadyAnswered, match="was answered before"):
                await executor.resume_from_checkpoint("t", answers={name: True})
        await executor.resume_from_checkpoint("t")
        with pytest.raises(AlreadyAnswered):
            await executor.resume_from_checkpoint("t", answers={"ok": True})
        with pytest.raises(TraceEnded):
            await executor.answer("t", True, question="another")


async def test_a_pause_that_comes_when_the_trace_rests_does_not_run_it_again(store: CheckpointStorage) -> None:
    late, events = Late(), list[Event]()

    async def ask(task: str, context: Any) -> Any:
        return await context.ask("and?")

    late.kind = "pause"
    async with Executor(
        GraphBuilder("g").node(ask).build(), checkpoint_storage=late, on_event=events.append
    ) as executor:
        assert (await executor.execute("x", trace_id="t")).status == "paused"
    assert [type(event).__name__ for event in events if isinstance(event, (TraceStarted, TraceEndedEvent))] == [
        "TraceStarted",
        "TraceEnded",
    ]
    record = await late.trace("t")
    assert record is not None
    assert await late.commands(trace=record.trace) == []


async def test_a_fork_starts_from_a_label(store: CheckpointStorage) -> None:
    async with Executor(approval(Counter()), checkpoint_storage=store) as executor:
        await executor.execute("x", trace_id="t")
        await outside.tag(store, "t", "drafted", step=1)
        forked = await executor.fork("t", at="drafted", new_trace_id="u")
        assert forked.status == "paused"
        record = await store.trace("u")
        assert record is not None
        assert record.parent_step == 1
        with pytest.raises(CheckpointNotFound, match="'draftd', which is no node, no step and no label"):
            await executor.fork("t", at="draftd")
