"""The actor that runs the code of one node, for all traces of a process."""

from __future__ import annotations

import contextlib
import contextvars
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import Any, assert_never

import anyio
import anyio.lowlevel
import anyio.to_process
import anyio.to_thread
import attrs
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream

from tinyllm.actors.dispatch import IN_THREAD, concurrency, is_in_loop
from tinyllm.actors.mailbox import reply
from tinyllm.actors.protocol import (
    Answer,
    Cancelled,
    CancelNode,
    Deferred,
    Failed,
    Finished,
    NodeMessage,
    Paused,
    Progressed,
    RunAddress,
    RunNode,
    Started,
)
from tinyllm.errors import NodeError, NodeTimeout, TinyLLMError
from tinyllm.graph.definition import Graph, Node
from tinyllm.graph.functions import locate
from tinyllm.graph.node import Pause
from tinyllm.graph.questions import Asked
from tinyllm.nodes.call import Caller, Failure, Output, Save, asked_by, failure, pause_in
from tinyllm.nodes.kinds import KINDS
from tinyllm.nodes.process import call_in_worker

BLOCKED_MS = 10.0
"""A node that keeps the event loop for longer costs its trace more than waiting for a commit does."""


class Loop:
    """The event loop, which all node executors of a process run their nodes in: whether one of them just blocked it."""

    def __init__(self) -> None:
        self.blocked = False


class NodeExecutor:
    """Runs one attempt at a time for each message, as many at once as the node allows; captures the results.

    Workers take the messages, and there is always one that waits for the next. One whose node returned without having
    waited for anything takes the next itself: a task, a scope and two turns of the loop would cost more than a small
    node. One whose node did wait ends with it, so that what the node left behind in its task (a time-out that is still
    to cancel it) reaches no other attempt. Context variables are each attempt's own in any case.
    """

    def __init__(
        self,
        graph: Graph,
        node: Node,
        inbox: MemoryObjectReceiveStream[NodeMessage],
        *,
        loop: Loop,
        deps: Any,
        debug_mutation: bool,
    ) -> None:
        self._node = node
        self._inbox = inbox
        self._loop = loop
        self._function = KINDS[node.type](graph, node)
        self._in_loop = is_in_loop(graph, node)
        self._invoke = self._invoker(graph, deps, debug_mutation)
        # `max_concurrency` speaks for the process, whatever the number of traces. Waiting for it is done by each
        # attempt, so that some worker still hears of cancellations.
        self._slots = None if node.max_concurrency is None else anyio.Semaphore(node.max_concurrency, fast_acquire=True)
        self._running: dict[tuple[RunAddress, int], _Worker] = {}
        self._idle = 0
        self._workers: anyio.abc.TaskGroup

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until every sender has closed, then until the last attempt has ended."""
        with self._inbox:
            try:
                async with anyio.create_task_group() as self._workers:
                    self.add_worker()
                    task_status.started()
            finally:
                self._refuse_waiting()

    def add_worker(self) -> None:
        self._idle += 1
        self._workers.start_soon(self._serve, name=f"node {self._node.id}")

    def _refuse_waiting(self) -> None:
        """Answer what was sent and, because this was cancelled, not taken."""
        with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
            while True:
                message = self._inbox.receive_nowait()
                if isinstance(message, RunNode):
                    reply(message.reply, Cancelled(message.seq))

    async def _serve(self) -> None:
        with anyio.CancelScope() as scope:
            worker = _Worker(self, scope)
            while not worker.has_waited:
                try:
                    message = await self._inbox.receive()
                except anyio.EndOfStream:
                    return
                except anyio.get_cancelled_exc_class():
                    await anyio.lowlevel.checkpoint_if_cancelled()  # raises if the cancellation was meant for us
                    worker.makes_way()  # else it is what the last node made of its own
                    return
                await self._handle(message, worker)

    async def _handle(self, message: NodeMessage, worker: _Worker) -> None:
        match message:
            case RunNode():
                if self._loop.blocked and self._in_loop:
                    reply(message.reply, Deferred(message.seq))
                else:
                    await self._attempt(message, worker)
            case CancelNode():
                await self._cancel(message)
            case _:
                assert_never(message)

    async def _cancel(self, message: CancelNode) -> None:
        key = message.reply, message.seq
        if key not in self._running:  # whoever has just been given it may not have had its turn yet
            await anyio.lowlevel.checkpoint()
        if worker := self._running.get(key):
            worker.scope.cancel()

    def hears_no_more(self) -> None:
        """A worker is busy: another must wait for messages in its place."""
        self._idle -= 1
        if not self._idle:
            self.add_worker()

    async def _attempt(self, message: RunNode, worker: _Worker) -> None:
        """Exactly one answer, whatever happens."""
        answer: Finished | Failed | Paused | Cancelled | None = None
        key = message.reply, message.seq
        self._running[key] = worker
        worker.message = message
        holds_slot = False
        began = time.perf_counter()
        try:
            if self._slots is not None:
                await self._acquire(self._slots, worker)
                holds_slot = True
                began = time.perf_counter()
            if self._node.timeout is None:
                outcome = await self._invoke(message, worker)
                answer = self._answer(message.seq, outcome, began, worker)
            else:  # a scope costs more than a small node: only where there is something to limit
                with anyio.CancelScope(deadline=anyio.current_time() + self._node.timeout) as limit:
                    outcome = await self._invoke(message, worker)
                    answer = self._answer(message.seq, outcome, began, worker)
                if limit.cancelled_caught:
                    answer = self._failed(message.seq, NodeTimeout(self._node.id, self._node.timeout), began)
        except (Exception, SystemExit) as error:
            answer = self._failed(message.seq, error, began)
        except anyio.get_cancelled_exc_class():
            await anyio.lowlevel.checkpoint_if_cancelled()  # raises if the cancellation was meant for us
            stray = NodeError(self._node.id, "a cancellation of its own making escaped from it")
            answer = self._failed(message.seq, stray, began)
        finally:
            if self._slots is not None and holds_slot:
                self._slots.release()
            del self._running[key]
            worker.message = None  # what it was called with would live until the next one
            reply(message.reply, answer or Cancelled(message.seq))
        if isinstance(answer, Finished) and answer.blocked:
            await self._give_way(worker)

    async def _acquire(self, slots: anyio.Semaphore, worker: _Worker) -> None:
        try:
            slots.acquire_nowait()
        except anyio.WouldBlock:
            worker.makes_way()
            await slots.acquire()

    async def _give_way(self, worker: _Worker) -> None:
        """The loop was blocked. What was sent before anybody could hear of that goes back to its runs: they send it
        again once what has finished here is durable."""
        self._loop.blocked = True
        try:
            with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
                while True:
                    await self._handle(self._inbox.receive_nowait(), worker)
            for _ in range(2):  # those who were woken in the same turn see it in this or the next
                await anyio.lowlevel.checkpoint()
        finally:
            self._loop.blocked = False

    def _answer(self, seq: int, outcome: Outcome, began: float, worker: _Worker) -> Finished | Failed | Paused:
        duration_ms = (time.perf_counter() - began) * 1000
        match outcome:
            case Output():
                blocked = duration_ms > BLOCKED_MS and self._in_loop and not worker.has_waited
                return Finished(seq, outcome, time.time(), duration_ms, blocked)
            case Asked():
                return Paused(seq, outcome)
            case Failure():
                return Failed(seq, outcome, None, duration_ms)
        assert_never(outcome)

    def _failed(self, seq: int, error: BaseException, began: float) -> Failed:
        duration_ms = (time.perf_counter() - began) * 1000
        return Failed(seq, failure(self._node.id, error, self._function), error, duration_ms)

    def saver(self, message: RunNode, worker: _Worker) -> Save:
        one: anyio.Lock | None = None

        async def save(body: bytes) -> None:
            nonlocal one
            if one is None:  # not sooner: most attempts save nothing, and a lock is dear
                one = anyio.Lock(fast_acquire=True)
            async with one:  # a node may save from many tasks; its run has room for one of each activation
                # An abandoned thread comes here, too: it must not write over what the next attempt has saved.
                if self._running.get((message.reply, message.seq)) is not worker:
                    raise self._unsaved()
                answer = Answer()
                try:
                    message.reply.send_nowait(Progressed(message.seq, body, answer))
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):  # its run did not wait for it to end
                    raise self._unsaved() from None
                await answer.wait()

        return save

    def _unsaved(self) -> NodeError:
        return NodeError(self._node.id, "its trace no longer waits for it; nothing was saved")

    def _invoker(
        self, graph: Graph, deps: Any, debug_mutation: bool
    ) -> Callable[[RunNode, _Worker], Awaitable[Outcome]]:
        if self._function is None:
            return _pass_on
        if self._node.process:
            path, qualname = locate(self._function)
            limiter = anyio.CapacityLimiter(concurrency(graph, self._node))
            return partial(_in_process, path, qualname, self._function.wants_context, debug_mutation, limiter)
        caller = Caller(self._function, deps=deps, debug_mutation=debug_mutation)
        if self._in_loop:
            return partial(_in_loop, caller)
        limiter = anyio.CapacityLimiter(max(IN_THREAD, concurrency(graph, self._node)))
        return partial(_in_thread, caller, limiter)


Outcome = Output | Asked | Failure
"""What became of one attempt, where it did not raise in this process."""


class _Worker:
    """One task that serves messages."""

    def __init__(self, executor: NodeExecutor, scope: anyio.CancelScope) -> None:
        self._executor = executor
        self.scope = scope
        self.message: RunNode | None = None
        """What it runs."""
        self.has_waited = False

    def makes_way(self) -> None:
        """It is about to wait for something else than a message."""
        if not self.has_waited:
            self.has_waited = True
            self._executor.hears_no_more()
            if self.message is not None and self.message.tells:
                reply(self.message.reply, Started(self.message.seq))

    def saver(self, message: RunNode) -> Save:
        return self._executor.saver(message, self)


async def _pass_on(message: RunNode, _worker: _Worker) -> Outcome:
    return Output(message.call.input.body)


async def _in_loop(caller: Caller, message: RunNode, worker: _Worker) -> Outcome:
    function = caller.function
    prepared = caller.prepare(message.call, worker.saver(message) if function.wants_context else None)
    try:
        returned = await _driven(function.call(*prepared.arguments, **prepared.keywords), worker)
    except (Pause, BaseExceptionGroup) as raised:
        return asked_by(message.call, pause_in(raised))
    return caller.output(prepared, returned)


@types.coroutine
def _driven(coroutine: Coroutine[Any, Any, Any], worker: _Worker) -> Generator[Any, Any, Any]:
    """What `coroutine` returns, run in a copy of the context; the worker makes way when it waits."""
    run = contextvars.copy_context().run
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            waits_for = run(step, value)
        except StopIteration as returned:
            return returned.value
        worker.makes_way()
        try:
            value = yield waits_for
            step = coroutine.send
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as thrown:
            value, step = thrown, coroutine.throw


async def _in_thread(caller: Caller, limiter: anyio.CapacityLimiter, message: RunNode, worker: _Worker) -> Outcome:
    worker.makes_way()
    # Abandoned when cancelled: a thread cannot be stopped, and its result would not be recorded any more.
    return await anyio.to_thread.run_sync(
        caller.attempt, message.call, worker.saver(message), abandon_on_cancel=True, limiter=limiter
    )


async def _in_process(
    path: str,
    qualname: str,
    wants_context: bool,
    debug_mutation: bool,
    limiter: anyio.CapacityLimiter,
    message: RunNode,
    worker: _Worker,
) -> Outcome:
    worker.makes_way()
    call = message.call
    lent = call if wants_context else attrs.evolve(call, versions={}, progress=None)
    try:
        return await anyio.to_process.run_sync(
            call_in_worker, path, qualname, lent, debug_mutation, cancellable=True, limiter=limiter
        )
    except anyio.BrokenWorkerProcess as error:
        if isinstance(error.__cause__, TinyLLMError):  # what the worker says of why it could not start
            raise error.__cause__ from None
        raise NodeError(call.node_id, "its worker process died: killed from outside, or out of memory") from None
