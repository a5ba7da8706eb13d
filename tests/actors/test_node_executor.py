"""What runs the code of a node: one answer for each attempt, whatever happens; as many at once as allowed."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.streams.memory import MemoryObjectSendStream

from tests.actors import functions
from tests.actors.graphs import block_loop, shape
from tinyllm import Executor, GraphBuilder
from tinyllm.actors.node_executor import NodeExecutor
from tinyllm.actors.protocol import (
    Cancelled,
    CancelNode,
    Deferred,
    Failed,
    Finished,
    NodeMessage,
    RunMessage,
    RunNode,
    Started,
)
from tinyllm.errors import NodeError, ValueMismatch, ValueNotStorable
from tinyllm.graph.ids import activation_id, idempotency_key
from tinyllm.graph.messages import Message
from tinyllm.graph.node import Result
from tinyllm.graph.payload import Captured, encode_payload
from tinyllm.graph.questions import Asked
from tinyllm.graph.values import capture, restore
from tinyllm.graph.variables import Version
from tinyllm.nodes.call import Call

pytestmark = pytest.mark.anyio

ID = bytes(range(16))


class Caller:
    """Somebody who has a node run, as a run would."""

    def __init__(self, nodes: MemoryObjectSendStream[NodeMessage]) -> None:
        self._nodes = nodes
        self.address, self.inbox = anyio.create_memory_object_stream[RunMessage](1000)

    def run(
        self,
        seq: int = 1,
        value: Any = "in",
        *,
        parts: Any = None,
        variables: Any = None,
        progress: bytes | None = None,
        asked: Sequence[Asked] = (),
        tells: bool = False,
        node: str = "a",
    ) -> None:
        captured = Captured(encode_payload(value))
        sources: tuple[tuple[int, str], ...] = ((1, "before"),)
        if parts is not None:
            captured = Captured(parts=tuple(Captured(encode_payload(part)) for part in parts))
            sources = tuple((index, f"n{index}") for index in range(len(parts)))
        versions = {key: Version(1, capture(each)) for key, each in (variables or {}).items()}
        call = Call("t", node, ID, 1, captured, sources, versions, progress, tuple(asked))
        self._nodes.send_nowait(RunNode(seq, call, self.address, tells))

    def cancel(self, seq: int = 1) -> None:
        self._nodes.send_nowait(CancelNode(seq, self.address))

    async def answer(self) -> RunMessage:
        """The next one that says how an attempt ended."""
        while isinstance(message := await self.inbox.receive(), Started):
            pass
        return message

    async def value(self) -> Any:
        message = await self.answer()
        assert isinstance(message, Finished), message
        return restore(message.output.body)

    async def failure(self) -> Failed:
        message = await self.answer()
        assert isinstance(message, Failed), message
        return message

    def told(self) -> list[str]:
        found = []
        while self.inbox.statistics().current_buffer_used:
            found.append(type(self.inbox.receive_nowait()).__name__)
        return found

    def close(self) -> None:
        self.address.close()
        self.inbox.close()


@asynccontextmanager
async def executing(function: Any, *, callers: int = 1, deps: Any = None, **keys: Any) -> AsyncIterator[Any]:
    """An executor of the node `a`, which calls `function`; yields its callers."""
    graph = shape("a -> b", functions={"a": function}, a=keys)
    send, receive = anyio.create_memory_object_stream[NodeMessage](1000)
    made = [Caller(send) for _ in range(callers)]
    try:
        async with anyio.create_task_group() as tasks:
            executor = NodeExecutor(graph, receive, deps=deps, debug_mutation=True)
            await tasks.start(executor.run)
            with send:
                yield made[0] if callers == 1 else made
    finally:
        for caller in made:
            caller.close()


# -- one answer ------------------------------------------------------------------------------------------------


async def in_loop(value: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return f"{value}, out"


def in_thread(value: Any) -> Any:
    return f"{value}, out"


@pytest.mark.parametrize("function", [in_loop, in_thread])
async def test_a_node_answers_once_with_its_captured_result(function: Any) -> None:
    async with executing(function) as caller:
        began = time.time()
        caller.run(tells=True)
        assert isinstance(await caller.inbox.receive(), Started)
        answer = await caller.inbox.receive()
        assert isinstance(answer, Finished)
        assert restore(answer.output.body) == "in, out"
        assert began <= answer.ended_at <= time.time()
        assert answer.duration_ms >= 0
        await anyio.wait_all_tasks_blocked()
        assert caller.told() == []


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("boom"),
        SystemExit(3),
        StopIteration("stop"),
        ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
        Broken(),
        ValueError("lone \ud800 surrogate"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_node_raises_is_its_failure(error: BaseException, threaded: bool) -> None:
    async def raising(value: Any) -> Any:
        raise error

    def raising_in_thread(value: Any) -> Any:
        raise error

    async with executing(raising_in_thread if threaded else raising) as caller:
        caller.run()
        failed = await caller.failure()
        assert failed.failure.error.node_id == "a"
        capture(failed.failure.error.message), capture(failed.failure.error.traceback)
        if not isinstance(error, StopIteration):  # which Python itself turns into another one
            assert failed.exception is error
            assert "raise error" in (failed.failure.error.traceback or "")
            assert "tinyllm/actors/" not in (failed.failure.error.traceback or "")
        caller.run(2)
        await caller.failure()


async def test_an_error_with_endless_text_is_recorded_with_its_beginning() -> None:
    def raising(value: Any) -> Any:
        raise ValueError("x" * 1_000_000)

    async with executing(raising) as caller:
        caller.run()
        failed = await caller.failure()
        assert failed.failure.error.message.startswith("xxx")
        assert len(failed.failure.error.message) < 50_000


async def test_what_cannot_be_stored_is_the_nodes_failure_with_the_path() -> None:
    async with executing(lambda value: [1, {"when": object()}]) as caller:
        caller.run()
        failed = await caller.failure()
        assert isinstance(failed.exception, ValueNotStorable)
        assert failed.failure.error.message.startswith("nodes.a: value[1]['when']: ")
    async with executing(lambda value: Result(1, set={"x": object()})) as caller:
        caller.run()
        assert (await caller.failure()).failure.error.message.startswith("nodes.a: set['x']: ")


async def test_what_does_not_fit_the_annotation_is_the_nodes_failure_with_the_path() -> None:
    def typed(value: list[int]) -> Any:
        return value

    async with executing(typed) as caller:
        caller.run(value=[1, "2"])
        failed = await caller.failure()
        assert isinstance(failed.exception, ValueMismatch)
        assert failed.failure.error.message.startswith("nodes.a: value[1]: ")


async def test_a_cancelled_attempt_says_so_and_nothing_more() -> None:
    async def endless(value: Any) -> Any:
        await anyio.sleep_forever()

    async with executing(endless) as caller:
        caller.run(1)
        caller.run(2)
        await anyio.wait_all_tasks_blocked()
        caller.cancel(1)
        assert await caller.answer() == Cancelled(1)
        caller.cancel(1)  # again, and one that never was
        caller.cancel(99)
        await anyio.wait_all_tasks_blocked()
        assert caller.told() == []
        caller.cancel(2)
        assert await caller.answer() == Cancelled(2)


async def test_an_attempt_that_is_cancelled_before_it_begins_does_not_run() -> None:
    ran = []

    async def noting(value: Any) -> Any:
        ran.append(value)
        await anyio.sleep_forever()

    async with executing(noting, max_concurrency=1) as caller:
        caller.run(0, 0)
        for seq in range(1, 20):
            caller.run(seq, seq)
            caller.cancel(seq)
        assert {await caller.answer() for _ in range(19)} == {Cancelled(seq) for seq in range(1, 20)}
        caller.cancel(0)
        assert await caller.answer() == Cancelled(0)
        assert ran == [0]


async def test_one_cancelled_right_behind_its_start_is_found_by_whoever_hears_of_it() -> None:
    """The two messages may be given to two workers, of which the second may have its turn first."""

    async def endless(value: Any) -> Any:
        await anyio.sleep_forever()

    async with executing(endless) as caller:
        caller.run(0)
        await anyio.wait_all_tasks_blocked()
        for seq in range(1, 20):
            caller.run(seq)
            caller.cancel(seq)
            assert await caller.answer() == Cancelled(seq)
        caller.cancel(0)


async def test_what_one_attempt_leaves_behind_reaches_no_other(anyio_backend_name: str) -> None:
    """Context variables, and a cancellation of its own task that comes only when the node has ended."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def untidy(value: Any) -> Any:
        before = variable.get()
        variable.set(before + 1)
        if anyio_backend_name == "asyncio":
            import asyncio

            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        if value == "waits":
            with suppress(anyio.get_cancelled_exc_class()):
                await anyio.lowlevel.checkpoint()
        return before

    async with executing(untidy) as caller:
        for value in ("returns", "waits") * 3:
            caller.run(value=value)
            assert await caller.value() == 0


async def test_after_one_that_blocked_the_loop_what_was_sent_goes_back() -> None:
    ran = []

    async def blocks(value: Any) -> Any:
        ran.append(value)
        block_loop()

    async with executing(blocks) as caller:
        for seq in range(3):
            caller.run(seq, seq)
        first = await caller.answer()
        assert isinstance(first, Finished)
        assert first.blocked
        assert [await caller.answer() for _ in range(2)] == [Deferred(2), Deferred(1)], "the last first"
        caller.run(1, 1)
        assert isinstance(await caller.answer(), Finished)
        assert ran == [0, 1]


async def test_after_one_that_blocked_the_loop_only_what_would_run_in_it_goes_back() -> None:
    """And what runs in a thread does not keep the others waiting for its end."""
    release = threading.Event()

    async def blocks(value: Any) -> Any:
        block_loop()

    graph = shape("a -> b", "b -> c", functions={"a": blocks, "b": lambda value: release.wait(), "c": in_loop})
    send, receive = anyio.create_memory_object_stream[NodeMessage](1000)
    caller = Caller(send)
    async with anyio.create_task_group() as tasks:
        await tasks.start(NodeExecutor(graph, receive, deps=None, debug_mutation=True).run)
        with send:
            for seq, each in enumerate("abcb"):
                caller.run(seq, node=each)
            assert isinstance(await caller.answer(), Finished)
            assert await caller.answer() == Deferred(2)
            caller.run(4, node="c")
            finished = await caller.answer()
            assert isinstance(finished, Finished)
            assert finished.seq == 4
            release.set()
            assert {(await caller.answer()).seq for _ in range(2)} == {1, 3}  # type: ignore[union-attr]
    caller.close()


async def test_a_node_that_finishes_all_the_same_has_finished() -> None:
    async def stubborn(value: Any) -> Any:
        with anyio.CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
        return "done"

    async with executing(stubborn) as caller:
        caller.run(tells=True)
        await caller.inbox.receive()
        caller.cancel()
        assert await caller.value() == "done"


async def test_a_cancellation_that_escapes_from_a_node_is_its_failure(anyio_backend_name: str) -> None:
    async def stray(value: Any) -> Any:
        if anyio_backend_name == "asyncio":
            import asyncio

            raise asyncio.CancelledError
        import trio

        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                escaped = error
        raise escaped

    async with executing(stray) as caller:
        caller.run()
        failed = await caller.failure()
        assert isinstance(failed.exception, NodeError)
        assert "a cancellation of its own making" in failed.failure.error.message
        caller.run(2)
        await caller.failure()


async def test_when_everything_is_cancelled_every_attempt_is_answered() -> None:
    """Those that run, those that have not begun, and those that nobody has taken yet."""

    async def endless(value: Any) -> Any:
        await anyio.sleep_forever()

    graph = shape("a -> b", functions={"a": endless})
    send, receive = anyio.create_memory_object_stream[NodeMessage](1000)
    caller = Caller(send)
    async with anyio.create_task_group() as tasks:
        await tasks.start(NodeExecutor(graph, receive, deps=None, debug_mutation=True).run)
        caller.run(1, tells=True)
        await anyio.wait_all_tasks_blocked()
        caller.run(2)
        caller.run(3)
        tasks.cancel_scope.cancel()
    assert sorted(caller.told()) == ["Cancelled", "Cancelled", "Cancelled", "Started"]
    send.close()
    caller.close()


async def test_it_ends_when_its_senders_have_closed_and_the_last_attempt_has_ended() -> None:
    release = anyio.Event()

    async def waiting(value: Any) -> Any:
        await release.wait()
        return "late"

    graph = shape("a -> b", functions={"a": waiting})
    send, receive = anyio.create_memory_object_stream[NodeMessage](1000)
    caller, ended = Caller(send), anyio.Event()

    async def serve() -> None:
        await NodeExecutor(graph, receive, deps=None, debug_mutation=True).run()
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        caller.run()
        send.close()
        await anyio.wait_all_tasks_blocked()
        assert not ended.is_set()
        release.set()
        await ended.wait()
        assert await caller.value() == "late"
    caller.close()


# -- threads and processes -------------------------------------------------------------------------------------


async def test_a_plain_function_runs_in_a_thread_and_an_async_one_in_the_loop() -> None:
    here = threading.get_ident()

    async def loop_thread(value: Any) -> Any:
        return threading.get_ident() == here

    async with executing(loop_thread) as caller:
        caller.run()
        assert await caller.value() is True
    async with executing(lambda value: threading.get_ident() == here) as caller:
        caller.run()
        assert await caller.value() is False


async def test_a_cancelled_thread_is_left_to_itself() -> None:
    release = threading.Event()
    ended = threading.Event()

    def blocking(value: Any) -> Any:
        release.wait()
        ended.set()

    async with executing(blocking) as caller:
        caller.run(tells=True)
        await caller.inbox.receive()
        await anyio.wait_all_tasks_blocked()
        caller.cancel()
        assert await caller.answer() == Cancelled(1)
        release.set()
        ended.wait()
        await anyio.wait_all_tasks_blocked()
        assert caller.told() == []


async def test_processes() -> None:
    async with executing(functions.describe, process=True) as caller:
        caller.run(value={"x": [1, 2]}, variables={"greeting": "hello"})
        assert await caller.value() == {"input": {"x": [1, 2]}, "here": False, "greeting": "hello", "deps": None}
        caller.run(value="raise")
        failed = await caller.failure()
        assert (failed.failure.error.type, failed.failure.error.message, failed.exception) == (
            "OddError",
            "odd 1 two",
            None,
        )
        assert "functions.py" in (failed.failure.error.traceback or "")
        caller.run(value="exit")
        assert (await caller.failure()).failure.error.type == "SystemExit"
        caller.run(value="object")
        assert (await caller.failure()).failure.error.message.startswith("nodes.a: value['here']: ")
        caller.run(value="die")
        assert (await caller.failure()).failure.error.type == "NodeError"
        caller.run(value="signals")
        assert await caller.value() == "survived"
        caller.run(7, value="endless", tells=True)
        while not isinstance(await caller.inbox.receive(), Started):
            pass
        caller.cancel(7)
        assert await caller.answer() == Cancelled(7)


# -- concurrency -----------------------------------------------------------------------------------------------


async def test_max_concurrency_holds_across_traces() -> None:
    most = 0
    running = 0
    release = anyio.Event()

    async def counting(value: Any) -> Any:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1

    async with executing(counting, callers=3, max_concurrency=2) as callers:
        for caller in callers:
            for seq in range(3):
                caller.run(seq)
        await anyio.wait_all_tasks_blocked()
        assert running == 2
        release.set()
        for caller in callers:
            for _ in range(3):
                await caller.value()
        assert most == 2


async def test_who_waits_for_a_slot_that_another_trace_has_does_not_hold_up_its_own() -> None:
    """A run sends its next node in the loop only when the one before has begun, or will not for a while."""
    release = anyio.Event()

    async def waiting(value: Any) -> Any:
        await release.wait()

    async with executing(waiting, callers=2, max_concurrency=1) as (first, second):
        first.run(tells=True)
        await anyio.wait_all_tasks_blocked()
        second.run(tells=True)
        await anyio.wait_all_tasks_blocked()
        assert first.told() == second.told() == ["Started"]
        second.run(2)
        await anyio.wait_all_tasks_blocked()
        second.cancel(2)
        assert await second.answer() == Cancelled(2)
        release.set()
        await first.value()
        await second.value()


# -- what a node gets ------------------------------------------------------------------------------------------


async def test_the_context() -> None:
    seen: dict[str, Any] = {}

    def looking(value: Any, context: Any) -> Any:
        seen.update({name: getattr(context, name) for name in ("deps", "trace_id", "node_id", "attempt")})
        seen["id"], seen["key"] = context.activation_id, context.idempotency_key
        seen["variables"] = (dict(context.variables), "x" in context.variables, len(context.variables))
        context.logger.info("heard")
        context.set_variable("x", 1)
        context.set_variable("y", 2)
        return Result("out", set={"y": 3})

    deps = object()
    async with executing(looking, deps=deps) as caller:
        caller.run(variables={"x": [0]})
        answer = await caller.answer()
        assert isinstance(answer, Finished)
        assert answer.output.sets == (("x", b"1"), ("y", b"3"))
    assert seen == {
        "deps": deps,
        "trace_id": "t",
        "node_id": "a",
        "attempt": 1,
        "id": activation_id("t", ID).hex(),
        "key": idempotency_key(activation_id("t", ID), Captured(b'"in"').digest),
        "variables": ({"x": [0]}, True, 1),
    }


async def test_the_nodes_logger_is_named_for_it(caplog: pytest.LogCaptureFixture) -> None:
    def logging_node(context: Any) -> None:
        context.logger.warning("heard")

    with caplog.at_level(logging.WARNING):
        async with executing(logging_node) as caller:
            caller.run()
            assert await caller.value() is None
    assert [(record.name, record.message) for record in caplog.records] == [("tinyllm.node.a", "heard")]


async def test_the_key_for_outside_services_changes_with_the_input() -> None:
    def key(value: Any, context: Any) -> Any:
        return context.idempotency_key

    async with executing(key) as caller:
        keys = []
        for value in ("one", "two", "one"):
            caller.run(value=value)
            keys.append(await caller.value())
        caller.run(parts=["one", "two"])
        keys.append(await caller.value())
        assert keys[0] == keys[2]
        assert len(set(keys)) == 3


async def test_a_node_may_take_messages() -> None:
    def one(message: Message) -> Any:
        return [message.source_node, message.target_node, message.payload.content, message.message_id]

    def all_of_them(messages: list[Message]) -> Any:
        return [(message.source_node, message.payload.value) for message in messages]

    async with executing(one) as caller:
        caller.run(value="text")
        assert await caller.value() == ["before", "a", "text", "t#1"]
    async with executing(all_of_them) as caller:
        caller.run(parts=["x", {"y": 1}])
        assert await caller.value() == [("n0", "x"), ("n1", {"y": 1})]


async def test_an_annotation_that_nothing_fits_into_is_refused_when_the_executor_is_made() -> None:
    def odd(value: 5) -> Any:  # type: ignore[valid-type]
        return value

    graph = shape("a -> b", functions={"a": odd})
    send, receive = anyio.create_memory_object_stream[NodeMessage](1)
    with send, receive, pytest.raises(TypeError):
        NodeExecutor(graph, receive, deps=None, debug_mutation=False)


async def test_a_node_that_cancels_its_own_task_as_it_returns_takes_no_other_with_it(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("trio has no cancellation but scopes")

    async def work(value: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return value

    async with Executor(GraphBuilder("g").node(work).build()) as executor:
        for number in range(3):
            assert (await executor.execute(number)).value == number
