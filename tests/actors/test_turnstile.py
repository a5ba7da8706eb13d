"""One at a time: what would all begin in the same turn of the event loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tinyllm import Executor, GraphBuilder, InMemoryCheckpointStorage
from tinyllm.actors.events import Event, NodeStarted, TraceStarted
from tinyllm.actors.turnstile import Turnstile
from tinyllm.core.engine import ADMISSIONS, Engine
from tinyllm.storage.contract import Admit, Outcome, Write

pytestmark = pytest.mark.anyio


async def turns_of(count: int) -> Counter[int]:
    """How many of `count` tasks, started at once, pass in each turn of another task."""
    turnstile, passed, turn = Turnstile(), Counter[int](), 0

    async def begin() -> None:
        await turnstile.wait()
        passed[turn] += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(begin)
        while passed.total() < count:
            await anyio.lowlevel.checkpoint()
            turn += 1
    return passed


async def test_others_have_a_turn_after_each_that_begins() -> None:
    passed = await turns_of(50)
    assert max(passed.values()) <= 2  # trio runs the tasks of a turn in any order: one may pass before the other task
    assert len(passed) >= 25


async def test_who_comes_alone_does_not_wait() -> None:
    turnstile = Turnstile()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await turnstile.wait()  # to wait would raise
    assert not scope.cancelled_caught


async def test_who_is_cancelled_there_lets_the_next_pass() -> None:
    turnstile, passed = Turnstile(), []

    async def begin(name: str) -> None:
        await turnstile.wait()
        passed.append(name)

    async with anyio.create_task_group() as tasks:
        await turnstile.wait()
        with anyio.move_on_after(0):
            await begin("cancelled")
        tasks.start_soon(begin, "next")
    assert passed == ["next"]


async def echo(text: str) -> str:
    return text


async def test_many_traces_at_once_are_all_executed_and_cancelled_ones_are_let_go(tmp_path: Path) -> None:
    """Cancelled wherever they wait: before they are admitted, before they are executed, and while they are."""
    graph = GraphBuilder("g").node(echo).build()
    async with Executor(graph, checkpoint_storage=tmp_path) as executor:
        done: list[str] = []

        async def execute(number: int) -> None:
            await executor.execute("x", trace_id=f"t{number}")
            done.append(f"t{number}")

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(execute, number)
            while len(done) < 3:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:  # each is free to be executed again
            for number in range(30):
                tasks.start_soon(execute, number)
        assert set(done) == {f"t{number}" for number in range(30)}


async def test_few_traces_are_on_their_way_into_the_store_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store is slow, others are not admitted: what was can end first."""
    let_go, ask = anyio.Event(), Engine.ask
    asked = most = 0

    class Slow(InMemoryCheckpointStorage):
        async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
            await let_go.wait()
            return await super().commit(writes)

    async def counted(self: Engine, trace_id: str, write: Write, kind: type[Any]) -> Any:
        nonlocal asked, most
        asked += isinstance(write, Admit)
        most = max(most, asked)
        try:
            return await ask(self, trace_id, write, kind)
        finally:
            asked -= isinstance(write, Admit)

    monkeypatch.setattr(Engine, "ask", counted)
    graph = GraphBuilder("g").node(echo).build()
    async with Executor(graph, checkpoint_storage=Slow()) as executor, anyio.create_task_group() as tasks:
        for _ in range(3 * ADMISSIONS):
            tasks.start_soon(executor.execute, "x")
        await anyio.wait_all_tasks_blocked()
        assert asked == ADMISSIONS
        let_go.set()
    assert most == ADMISSIONS


@pytest.mark.parametrize("recorded", [False, True])
async def test_traces_that_are_asked_for_at_once_begin_in_turns_of_their_own(recorded: bool) -> None:
    """Before they are admitted, and again when a commit has admitted many of them."""
    turn, began = 0, Counter[int]()

    def note(event: Event) -> None:
        if isinstance(event, NodeStarted if recorded else TraceStarted):
            began[turn] += 1

    graph = GraphBuilder("g").node(echo).build()
    storage = InMemoryCheckpointStorage() if recorded else None
    observed = Executor(graph, checkpoint_storage=storage, on_event=note)
    async with observed as executor, anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(executor.execute, "x")
        while began.total() < 40:
            await anyio.lowlevel.checkpoint()
            turn += 1
    assert max(began.values()) <= 3  # trio runs the tasks of a turn in any order


async def test_what_was_admitted_is_let_go_when_it_is_cancelled_before_its_turn() -> None:
    storage = InMemoryCheckpointStorage()
    async with Executor(GraphBuilder("g").node(echo).build(), checkpoint_storage=storage) as executor:
        assert executor._shared is not None
        gate = executor._shared.start._gate
        await gate.acquire()
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(partial(executor.execute, "x", trace_id=f"t{number}"))
            while gate.statistics().tasks_waiting < 3:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
                gate.release()
        await anyio.wait_all_tasks_blocked()
        assert [record.owner for record in await storage.traces()] == [None] * 3
