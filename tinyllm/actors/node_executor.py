"""The actor that runs the code of one node, for all traces of a process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
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
from tinyllm.nodes.call import Call, Caller, Failure, Output, Save, asked_by, failure, pause_in
from tinyllm.nodes.kinds import KINDS
from tinyllm.nodes.process import call_in_worker


class NodeExecutor:
    """Runs one attempt at a time for each message, as many at once as the node allows; captures the results."""

    def __init__(
        self,
        graph: Graph,
        node: Node,
        inbox: MemoryObjectReceiveStream[NodeMessage],
        *,
        deps: Any,
        debug_mutation: bool,
    ) -> None:
        self._node = node
        self._inbox = inbox
        self._function = KINDS[node.type](graph, node)
        self._invoke = self._invoker(graph, deps, debug_mutation)
        # `max_concurrency` speaks for the process, whatever the number of traces. Waiting for it is done by each
        # attempt and not by the actor, which must still hear of cancellations.
        self._slots = None if node.max_concurrency is None else anyio.Semaphore(node.max_concurrency, fast_acquire=True)
        self._scopes: dict[tuple[RunAddress, int], anyio.CancelScope] = {}

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until every sender has closed, then until the last attempt has ended."""
        async with anyio.create_task_group() as attempts:
            with self._inbox:
                try:
                    task_status.started()
                    async for message in self._inbox:
                        match message:
                            case RunNode():
                                # The scope is there before the attempt runs: it may be cancelled before that.
                                scope = self._scopes[message.reply, message.seq] = anyio.CancelScope()
                                name = f"node {self._node.id} #{message.seq}"
                                attempts.start_soon(self._attempt, message, scope, name=name)
                            case CancelNode():
                                if known := self._scopes.get((message.reply, message.seq)):
                                    known.cancel()
                            case _:
                                assert_never(message)
                finally:
                    self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        """Answer what was sent and, because this was cancelled, not taken."""
        with contextlib.suppress(anyio.WouldBlock, anyio.EndOfStream):
            while True:
                message = self._inbox.receive_nowait()
                if isinstance(message, RunNode):
                    reply(message.reply, Cancelled(message.seq))

    @contextlib.asynccontextmanager
    async def _slot(self, message: RunNode) -> AsyncIterator[bool]:
        """One of the node's slots; whether it had to be waited for, and that was told as a start."""
        if self._slots is None:
            yield False
            return
        waited = False
        try:
            self._slots.acquire_nowait()
        except anyio.WouldBlock:
            # Another trace has it. It may be long: until then nodes of this trace must not wait for this one's start.
            reply(message.reply, Started(message.seq))
            await self._slots.acquire()
            waited = True
        try:
            yield waited
        finally:
            self._slots.release()

    async def _attempt(self, message: RunNode, scope: anyio.CancelScope) -> None:
        """Exactly one answer, whatever happens."""
        answer: Finished | Failed | Paused | Cancelled | None = None
        call = message.call
        timeout = self._node.timeout
        began = time.perf_counter()
        try:
            with scope:
                async with self._slot(message) as told:
                    # One more turn of the loop: the writer then has all that was handed over before this node was
                    # sent, even if the node never gives the loop back (each actor on the way takes one turn).
                    await anyio.lowlevel.checkpoint()
                    if not told:  # two starts would be more answers than a mailbox has room for
                        reply(message.reply, Started(message.seq))
                    began = time.perf_counter()
                    # A scope costs more than a small node: only where there is something to limit.
                    limit = None if timeout is None else anyio.CancelScope(deadline=anyio.current_time() + timeout)
                    with limit or contextlib.nullcontext():
                        answer = self._answer(message.seq, await self._invoke(call, self._saver(message, scope)), began)
                    if limit is not None and limit.cancelled_caught and timeout is not None:
                        answer = self._failed(message.seq, NodeTimeout(self._node.id, timeout), began)
            if answer is None:
                answer = Cancelled(message.seq)
        except (Exception, SystemExit) as error:
            answer = self._failed(message.seq, error, began)
        except anyio.get_cancelled_exc_class():
            await anyio.lowlevel.checkpoint_if_cancelled()  # raises if the cancellation was meant for us
            stray = NodeError(self._node.id, "a cancellation of its own making escaped from it")
            answer = self._failed(message.seq, stray, began)
        finally:
            del self._scopes[message.reply, message.seq]
            reply(message.reply, answer or Cancelled(message.seq))

    def _answer(self, seq: int, outcome: Outcome, began: float) -> Finished | Failed | Paused:
        duration_ms = (time.perf_counter() - began) * 1000
        match outcome:
            case Output():
                return Finished(seq, outcome, time.time(), duration_ms)
            case Asked():
                return Paused(seq, outcome)
            case Failure():
                return Failed(seq, outcome, None, duration_ms)
        assert_never(outcome)

    def _failed(self, seq: int, error: BaseException, began: float) -> Failed:
        duration_ms = (time.perf_counter() - began) * 1000
        return Failed(seq, failure(self._node.id, error, self._function), error, duration_ms)

    def _saver(self, message: RunNode, scope: anyio.CancelScope) -> Save:
        one: anyio.Lock | None = None

        async def save(body: bytes) -> None:
            nonlocal one
            if one is None:  # not sooner: most attempts save nothing, and a lock is dear
                one = anyio.Lock(fast_acquire=True)
            async with one:  # a node may save from many tasks; its run has room for one of each activation
                # An abandoned thread comes here, too: it must not write over what the next attempt has saved.
                if self._scopes.get((message.reply, message.seq)) is not scope:
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

    def _invoker(self, graph: Graph, deps: Any, debug_mutation: bool) -> Callable[[Call, Save], Awaitable[Outcome]]:
        if self._function is None:
            return _pass_on
        if self._node.process:
            path, qualname = locate(self._function)
            limiter = anyio.CapacityLimiter(concurrency(graph, self._node))
            return partial(_in_process, path, qualname, self._function.wants_context, debug_mutation, limiter)
        caller = Caller(self._function, deps=deps, debug_mutation=debug_mutation)
        if is_in_loop(graph, self._node):
            return partial(_in_loop, caller)
        limiter = anyio.CapacityLimiter(max(IN_THREAD, concurrency(graph, self._node)))
        return partial(_in_thread, caller, limiter)


Outcome = Output | Asked | Failure
"""What became of one attempt, where it did not raise in this process."""


async def _pass_on(call: Call, _save: Save) -> Outcome:
    return Output(call.input.body)


async def _in_loop(caller: Caller, call: Call, save: Save) -> Outcome:
    prepared = caller.prepare(call, save)
    try:
        returned = await caller.function.call(*prepared.arguments, **prepared.keywords)
    except (Pause, BaseExceptionGroup) as raised:
        return asked_by(call, pause_in(raised))
    return caller.output(prepared, returned)


async def _in_thread(caller: Caller, limiter: anyio.CapacityLimiter, call: Call, save: Save) -> Outcome:
    # Abandoned when cancelled: a thread cannot be stopped, and its result would not be recorded any more.
    return await anyio.to_thread.run_sync(caller.attempt, call, save, abandon_on_cancel=True, limiter=limiter)


async def _in_process(
    path: str,
    qualname: str,
    wants_context: bool,
    debug_mutation: bool,
    limiter: anyio.CapacityLimiter,
    call: Call,
    _save: Save,
) -> Outcome:
    lent = call if wants_context else attrs.evolve(call, versions={}, progress=None)
    try:
        return await anyio.to_process.run_sync(
            call_in_worker, path, qualname, lent, debug_mutation, cancellable=True, limiter=limiter
        )
    except anyio.BrokenWorkerProcess as error:
        if isinstance(error.__cause__, TinyLLMError):  # what the worker says of why it could not start
            raise error.__cause__ from None
        raise NodeError(call.node_id, "its worker process died: killed from outside, or out of memory") from None
