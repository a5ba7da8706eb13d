"""The actor that runs the code of nodes, for all traces of a process."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, assert_never
from weakref import WeakSet

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream

from tinyllm.actors.invoke import Code, Outcome
from tinyllm.actors.mailbox import drain, reply
from tinyllm.actors.protocol import (
    Answer,
    Cancelled,
    CancelNode,
    Deferred,
    Failed,
    Finished,
    HoldNodes,
    NodeMessage,
    Paused,
    Progressed,
    RunAddress,
    RunNode,
    Started,
)
from tinyllm.errors import NodeError, NodeTimeout
from tinyllm.graph.definition import Graph
from tinyllm.graph.questions import Asked
from tinyllm.graph.redact import Redaction
from tinyllm.nodes.call import Failure, Output, Save
from tinyllm.storage.thread import cancellations

BLOCKED_MS = 10.0
"""A node that keeps the event loop for longer costs its trace more than waiting for a commit does."""

TURN_SECONDS = 0.00025
"""How long one worker may run small nodes before the loop has a turn, in which the runs see to what came of them: that
takes two to three times as long."""


class NodeExecutor:
    """Makes one attempt for each message, as many at once as the nodes allow; captures the results.

    Its workers take the messages, and there is always one that waits for the next. One whose node returned without
    having waited for anything takes the next itself: a task and a scope for each attempt would cost more than a small
    node. One whose node did wait ends with it, so that what the node left behind in its task (a time-out that is still
    to cancel it) reaches no other attempt. Context variables are each attempt's own in any case. (But one that returns
    at once and has its task cancelled later, by a timer of asyncio's loop, hits what that task does then.)

    One actor serves all nodes, and each bounds its own: a thousand nodes need no thousand tasks.
    """

    def __init__(
        self,
        graph: Graph,
        inbox: MemoryObjectReceiveStream[NodeMessage],
        *,
        deps: Any,
        debug_mutation: bool,
        redaction: Redaction | None = None,
    ) -> None:
        self._inbox = inbox
        self._nodes = {
            node.id: Code(graph, node, deps=deps, debug_mutation=debug_mutation, redaction=redaction)
            for node in graph.nodes.values()
        }
        self._running: dict[tuple[RunAddress, int], _Worker] = {}
        self._held: WeakSet[RunAddress] = WeakSet()
        """Whose nodes are not to start any more."""
        self._idle = 0
        self._later: deque[NodeMessage] = deque()
        """What was taken when a node had blocked the loop, and is served before what is in the mailbox."""
        self._workers: anyio.abc.TaskGroup

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until every sender has closed, then until the last attempt has ended."""
        with self._inbox:
            try:
                async with anyio.create_task_group() as self._workers:
                    self._add_worker()
                    task_status.started()
            finally:
                self._refuse_waiting()

    def _add_worker(self) -> None:
        self._idle += 1
        self._workers.start_soon(self._serve, name="node executor")

    def hears_no_more(self) -> None:
        """A worker is busy: another must wait for messages in its place."""
        self._idle -= 1
        if not self._idle:
            self._add_worker()

    def _refuse_waiting(self) -> None:
        """Answer what was sent and, because this was cancelled, not taken."""
        left: list[NodeMessage] = list(self._later)
        drain(self._inbox, left)
        for message in left:
            if isinstance(message, RunNode):
                reply(message.reply, Cancelled(message.seq))

    async def _serve(self) -> None:
        cancelled = cancellations()
        with anyio.CancelScope() as scope:
            worker = _Worker(self, scope)
            while not worker.has_waited:
                try:
                    message = self._later.popleft() if self._later else await self._inbox.receive()
                except anyio.EndOfStream:
                    return
                except anyio.get_cancelled_exc_class():
                    await anyio.lowlevel.checkpoint_if_cancelled()  # raises if the cancellation was meant for us
                    worker.makes_way()  # else it is what the last node made of its own
                    return
                until = time.perf_counter() + TURN_SECONDS
                await self._handle(message, worker)
                while not (worker.has_waited or self._later or cancelled() or time.perf_counter() > until):
                    try:
                        message = self._inbox.receive_nowait()
                    except (anyio.WouldBlock, anyio.EndOfStream):  # the end is met again above
                        break
                    await self._handle(message, worker)
                del message  # what a node was called with would live until the next one
            if cancelled():  # by its node, perhaps just now: it must not end so, for its siblings would with it
                try:
                    await anyio.lowlevel.checkpoint()
                except anyio.get_cancelled_exc_class():
                    await anyio.lowlevel.checkpoint_if_cancelled()  # as above

    async def _handle(self, message: NodeMessage, worker: _Worker) -> None:
        match message:
            case RunNode():
                await self._attempt(message, self._nodes[message.call.node_id], worker)
            case CancelNode():
                await self._cancel(message)
            case HoldNodes():
                self._held.add(message.reply)
            case _:
                assert_never(message)

    async def _cancel(self, message: CancelNode) -> None:
        key = message.reply, message.seq
        if key not in self._running:  # whoever has just been given it may not have had its turn yet
            await anyio.lowlevel.checkpoint()
        if worker := self._running.get(key):
            worker.scope.cancel()

    async def _attempt(self, message: RunNode, node: Code, worker: _Worker) -> None:
        """Exactly one answer, whatever happens."""
        answer: Finished | Failed | Paused | Cancelled | Deferred | None = None
        key = message.reply, message.seq
        self._running[key] = worker
        worker.message = message
        holds_slot = False
        began = time.perf_counter()
        try:
            if node.slots is not None:
                await _acquire(node.slots, worker)
                holds_slot = True
                began = time.perf_counter()
            if self._held and message.reply in self._held:  # its run was told to stop while this waited
                answer = Deferred(message.seq)
            elif node.timeout is None:
                answer = _answer(message.seq, await node.invoke(message.call, worker), began)
            else:  # a scope costs more than a small node: only where there is something to limit
                with anyio.CancelScope(deadline=anyio.current_time() + node.timeout) as limit:
                    answer = _answer(message.seq, await node.invoke(message.call, worker), began)
                if limit.cancelled_caught:
                    answer = _failed(message.seq, node, NodeTimeout(node.id, node.timeout), began)
        except (Exception, SystemExit) as error:
            answer = _failed(message.seq, node, error, began)
        except anyio.get_cancelled_exc_class():
            await anyio.lowlevel.checkpoint_if_cancelled()  # raises if the cancellation was meant for us
            stray = NodeError(node.id, "a cancellation of its own making escaped from it")
            answer = _failed(message.seq, node, stray, began)
        finally:
            if node.slots is not None and holds_slot:
                node.slots.release()
            del self._running[key]
            worker.message = None
            blocked = not worker.has_waited and node.in_loop and (time.perf_counter() - began) * 1000 > BLOCKED_MS
            if blocked and isinstance(answer, Finished):
                answer = Finished(answer.seq, answer.output, answer.ended_at, answer.duration_ms, blocked=True)
            reply(message.reply, answer or Cancelled(message.seq))
        if blocked:
            self._give_way()

    def _give_way(self) -> None:
        """The loop was blocked. What was sent before anybody could hear of that, and would run in the loop, goes back
        to its runs: they send it again once what has finished here is durable."""
        sent: list[NodeMessage] = list(self._later)
        drain(self._inbox, sent)
        self._later.clear()
        for message in reversed(sent):  # so that each run has them in their order again: it puts them in front
            if isinstance(message, RunNode) and self._nodes[message.call.node_id].in_loop:
                reply(message.reply, Deferred(message.seq))
            else:
                self._later.appendleft(message)

    def save(self, worker: _Worker) -> Save:
        """What saves the progress of what `worker` runs now."""
        one: anyio.Lock | None = None
        message = worker.message
        assert message is not None

        async def save(body: bytes) -> None:
            nonlocal one
            if one is None:  # not sooner: most attempts save nothing, and a lock is dear
                one = anyio.Lock(fast_acquire=True)
            async with one:  # a node may save from many tasks; its run has room for one of each activation
                # An abandoned thread comes here, too: it must not write over what the next attempt has saved.
                if self._running.get((message.reply, message.seq)) is not worker:
                    raise _unsaved(message)
                answer = Answer()
                try:
                    message.reply.send_nowait(Progressed(message.seq, body, answer))
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):  # its run did not wait for it to end
                    raise _unsaved(message) from None
                await answer.wait()

        return save


class _Worker:
    """One task that serves messages."""

    def __init__(self, executor: NodeExecutor, scope: anyio.CancelScope) -> None:
        self._executor = executor
        self.scope = scope
        self.message: RunNode | None = None
        """What it runs."""
        self.has_waited = False

    def makes_way(self) -> None:
        if not self.has_waited:
            self.has_waited = True
            self._executor.hears_no_more()
            if self.message is not None and self.message.tells:
                reply(self.message.reply, Started(self.message.seq))

    def saver(self) -> Save:
        return self._executor.save(self)


async def _acquire(slots: anyio.Semaphore, worker: _Worker) -> None:
    """Wait for a slot; by the attempt, so that some other worker still hears of cancellations."""
    try:
        slots.acquire_nowait()
    except anyio.WouldBlock:
        worker.makes_way()
        await slots.acquire()


def _answer(seq: int, outcome: Outcome, began: float) -> Finished | Failed | Paused:
    duration_ms = (time.perf_counter() - began) * 1000
    match outcome:
        case Output():
            return Finished(seq, outcome, time.time(), duration_ms)
        case Asked():
            return Paused(seq, outcome)
        case Failure():
            return Failed(seq, outcome, None, duration_ms)
    assert_never(outcome)


def _failed(seq: int, node: Code, error: BaseException, began: float) -> Failed:
    return Failed(seq, node.failure(error), error, (time.perf_counter() - began) * 1000)


def _unsaved(message: RunNode) -> NodeError:
    return NodeError(message.call.node_id, "its trace no longer waits for it; nothing was saved")
