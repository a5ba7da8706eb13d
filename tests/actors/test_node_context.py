"""What a node may do with its context while it runs: ask, save progress, count tokens; and how long it may take."""

from __future__ import annotations

import threading
from typing import Any, Literal

import anyio
import anyio.from_thread
import anyio.lowlevel
import attrs
import pytest

from tests.actors import functions
from tests.actors.test_node_executor import Caller, executing
from tinyllm.actors.protocol import Finished, Paused, Progressed
from tinyllm.errors import NodeError, NodeTimeout, ValueNotStorable
from tinyllm.graph.node import Pause, Result
from tinyllm.graph.questions import Asked
from tinyllm.graph.values import restore
from tinyllm.storage.contract import Done

pytestmark = pytest.mark.anyio


async def asked_by(caller: Caller) -> Asked:
    answer = await caller.answer()
    assert isinstance(answer, Paused), answer
    return answer.asked


async def asks_in_loop(value: Any, context: Any) -> Any:
    answer = await context.ask("may I?", schema=bool)
    return [answer, await context.ask("how often?", schema=int)] if value == "twice" else answer


def asks_in_thread(value: Any, context: Any) -> Any:
    answer = context.ask("may I?", schema=bool)
    return [answer, context.ask("how often?", schema=int)] if value == "twice" else answer


@pytest.mark.parametrize("function", [asks_in_loop, asks_in_thread])
async def test_a_node_that_asks_ends_with_its_question_and_returns_once_it_is_answered(function: Any) -> None:
    async with executing(function) as caller:
        caller.run()
        assert await asked_by(caller) == Asked("answer", "may I?", {"type": "boolean"})
        caller.run(asked=[Asked("answer", "may I?", None, b"true")])
        assert await caller.value() is True


@pytest.mark.parametrize("function", [asks_in_loop, asks_in_thread])
async def test_questions_without_a_name_are_told_apart_by_their_order(function: Any) -> None:
    async with executing(function) as caller:
        first = Asked("answer", "may I?", None, b"true")
        caller.run(value="twice", asked=[first])
        assert await asked_by(caller) == Asked("answer_2", "how often?", {"type": "integer"})
        caller.run(value="twice", asked=[first, Asked("answer_2", "how often?", None, b"3")])
        assert await caller.value() == [True, 3]


@attrs.frozen
class Choice:
    which: Literal["a", "b"]


async def test_an_answer_comes_as_the_class_that_was_asked_for() -> None:
    async def asks(value: Any, context: Any) -> Any:
        choice = await context.ask("which?", schema=Choice)
        assert isinstance(choice, Choice)
        return choice.which

    async with executing(asks) as caller:
        caller.run(asked=[Asked("answer", "which?", None, b'{"which":"b"}')])
        assert await caller.value() == "b"


async def test_a_pause_may_be_raised_and_passes_those_who_catch_exceptions() -> None:
    def asks(value: Any) -> Any:
        try:
            raise Pause("go on?", name="go", schema={"type": "boolean"})
        except Exception:
            return "swallowed"

    async with executing(asks) as caller:
        caller.run()
        assert await asked_by(caller) == Asked("go", "go on?", {"type": "boolean"})


async def test_a_question_comes_out_of_a_task_group_too() -> None:
    async def asks(value: Any, context: Any) -> Any:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(context.ask, "inside?")

    async with executing(asks) as caller:
        caller.run()
        assert (await asked_by(caller)).prompt == "inside?"


async def test_a_failure_beside_a_question_is_a_failure() -> None:
    async def fails() -> None:
        raise ValueError("boom")

    async def asks(value: Any, context: Any) -> Any:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(context.ask, "inside?")
                tasks.start_soon(fails)

    async with executing(asks) as caller:
        caller.run()
        failed = (await caller.failure()).exception
        assert isinstance(failed, ExceptionGroup)
        assert [str(error) for error in failed.exceptions] == ["boom"]


async def test_a_question_without_a_json_schema_fails_its_node() -> None:
    async def asks(value: Any, context: Any) -> Any:
        return await context.ask("which?", schema=threading.Thread)

    async with executing(asks) as caller:
        caller.run()
        failed = await caller.failure()
        assert isinstance(failed.exception, ValueNotStorable)


async def test_a_worker_process_asks_too() -> None:
    async with executing(functions.asks, process=True) as caller:
        caller.run()
        assert (await asked_by(caller)).name == "go"
        caller.run(asked=[Asked("go", "go on?", None, b"[1]")])
        assert await caller.value() == [1]


# -- progress --------------------------------------------------------------------------------------------------


async def saves_in_loop(value: Any, context: Any) -> Any:
    before = context.progress
    await context.save_progress({"page": 7})
    return [before, context.progress]


def saves_in_thread(value: Any, context: Any) -> Any:
    before = context.progress
    context.save_progress({"page": 7})
    return [before, context.progress]


@pytest.mark.parametrize("function", [saves_in_loop, saves_in_thread])
async def test_progress_is_saved_while_the_node_runs_and_found_by_the_next_attempt(function: Any) -> None:
    async with executing(function) as caller:
        caller.run(progress=b'{"page":3}')
        saving = await caller.answer()
        assert isinstance(saving, Progressed)
        assert restore(saving.body) == {"page": 7}
        await anyio.lowlevel.checkpoint()
        assert caller.inbox.statistics().current_buffer_used == 0, "it waits until that is durable"
        saving.answer.settle(Done())
        assert await caller.value() == [{"page": 3}, {"page": 7}]


async def test_progress_that_cannot_be_stored_fails_the_node_there() -> None:
    async def saves(value: Any, context: Any) -> None:
        await context.save_progress({"when": float("nan")})

    async with executing(saves) as caller:
        caller.run()
        assert "nodes.a: progress['when']" in (await caller.failure()).failure.error.message


async def test_progress_that_the_store_refuses_fails_the_node() -> None:
    async with executing(saves_in_loop) as caller:
        caller.run()
        saving = await caller.answer()
        assert isinstance(saving, Progressed)
        saving.answer.settle(OSError("no disk"))
        assert (await caller.failure()).failure.error.message == "no disk"


async def test_a_worker_process_cannot_save_progress_and_says_so() -> None:
    async with executing(functions.saves, process=True) as caller:
        caller.run()
        assert "process: true" in (await caller.failure()).failure.error.message


# -- tokens, status, time --------------------------------------------------------------------------------------


async def test_tokens_and_a_status_come_with_the_result() -> None:
    async def counts(value: Any, context: Any) -> Any:
        context.add_tokens(10, 2)
        context.add_tokens(tokens_out=3)
        return Result("x", status="partial")

    async with executing(counts) as caller:
        caller.run()
        answer = await caller.answer()
        assert isinstance(answer, Finished)
        assert (answer.output.tokens, answer.output.status) == ((10, 5), "partial")


@pytest.mark.parametrize("count", [-1, 1.5, "7"])
async def test_tokens_are_whole_numbers(count: Any) -> None:
    async def counts(value: Any, context: Any) -> Any:
        context.add_tokens(count)

    async with executing(counts) as caller:
        caller.run()
        assert isinstance((await caller.failure()).exception, NodeError)


async def sleeps_in_loop(value: Any) -> None:
    await anyio.sleep_forever()


def sleeps_in_thread(value: Any) -> None:
    anyio.from_thread.run(anyio.sleep_forever)


@pytest.mark.parametrize("function", [sleeps_in_loop, sleeps_in_thread])
async def test_an_attempt_that_takes_too_long_fails_with_the_timeout(function: Any) -> None:
    async with executing(function, timeout=0.01) as caller:
        caller.run()
        failed = await caller.failure()
        assert isinstance(failed.exception, NodeTimeout)
        assert failed.failure.error.message == "a: not done after 0.01 s, its timeout"
        assert failed.failure.kinds[0] == "NodeTimeout"
        assert failed.duration_ms >= 10


async def test_the_timeout_does_not_count_the_waiting_for_a_slot() -> None:
    begun = anyio.Event()
    released = anyio.Event()

    async def waits(value: Any) -> Any:
        begun.set()
        await released.wait()
        return value

    async with executing(waits, callers=2, max_concurrency=1, timeout=1000) as (one, two):
        one.run(value=1)
        await begun.wait()
        two.run(value=2)
        released.set()
        assert [await one.value(), await two.value()] == [1, 2]
