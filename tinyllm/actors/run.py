"""The actor that executes one trace: it starts nodes, hands over what they did, and ends."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import assert_never

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from tinyllm.actors import events
from tinyllm.actors.dispatch import CREDIT, Dispatch, Durability, concurrency
from tinyllm.actors.mailbox import post, reply, take
from tinyllm.actors.plan import Activation, Plan
from tinyllm.actors.protocol import (
    Answer,
    Cancelled,
    CancelNode,
    Close,
    Durable,
    Failed,
    Finished,
    NodeMessage,
    Open,
    Refused,
    RunMessage,
    RunNode,
    ScheduleMessage,
    Started,
    Stepped,
    Stop,
)
from tinyllm.errors import NodeError, OwnershipLost, StorageFailed
from tinyllm.graph.variables import Version
from tinyllm.nodes.call import Call, error_info
from tinyllm.storage.contract import TERMINAL, Delta, HighWater, Release

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0
"""How long nodes in flight may go on after a failure; what they finish is recorded."""

GRACE_SECONDS = 10.0
"""How long a cancelled run waits for its nodes to end, and for what it handed over to be written."""

BLOCKED_MS = 10.0
"""A node that blocks the event loop for longer costs its trace more than waiting for a commit does."""

LEASE_POLL_SECONDS = 1.0
"""How often a run that may start nothing, because its lease is nearly over, looks whether it was renewed."""


class Run:
    """Executes `plan` until its trace has ended, failed, been stopped, or been lost to another owner.

    `journal` is the scheduler's mailbox, None where nothing is recorded. `may_start` says whether our lease is long
    enough to start something: it reads a clock, so it is asked and not told.
    """

    def __init__(
        self,
        plan: Plan,
        nodes: Mapping[str, MemoryObjectSendStream[NodeMessage]],
        *,
        journal: MemoryObjectSendStream[ScheduleMessage] | None,
        rev: int = 0,
        durability: Durability,
        merges: bool,
        stopped: bool = False,
        may_start: Callable[[], bool],
        high_water: HighWater | None,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._plan = plan
        self._nodes = nodes
        self._journal = journal
        self._rev = rev
        self._may_start = may_start
        self._high_water = high_water
        self._emit = emit
        self._dispatch = Dispatch(plan.graph, durability, merges=merges, recorded=journal is not None)
        self._dispatch.stopped = stopped
        # All that can be under way at once: a start and an end for each activation that may run, an acknowledgement for
        # each delta that may be open, and a few for what is written unasked. So nobody who answers waits.
        running = sum(concurrency(plan.graph, node) for node in plan.graph.nodes.values())
        self.address, self._inbox = anyio.create_memory_object_stream[RunMessage](2 * running + CREDIT + 8)
        self._held: deque[Finished] = deque()
        """Results that wait for credit."""
        self._drain_until: float | None = None
        """When the nodes that still run after a failure are cancelled."""
        self._look_again: float | None = None
        """When to see whether the lease was renewed."""
        self._refusal: Exception | None = None
        self._failing = False
        self._durable_versions: Mapping[str, Version] = plan.versions
        """The variables as of the newest durable delta: what nodes with effects see."""
        self._versions: deque[tuple[int, Mapping[str, Version]]] = deque()
        """Those of the deltas after it."""
        self.failure: BaseException | None = None
        """The exception of the node that failed, where it was raised in this process."""
        self.durable_step = plan.step

    async def run(self) -> None:
        """Execute to the end.

        :raises OwnershipLost: another process took the trace over.
        :raises StorageFailed: the store failed for good.
        """
        plan, dispatch = self._plan, self._dispatch
        with self.address, self._inbox:
            if self._journal is not None:
                await post(self._journal, Open(plan.trace_id, plan.key, self._rev, self.address))
            try:
                if woken := plan.wake():
                    await self._hand(woken, forced=True)
                    self._stop_if_failed()
                while True:
                    if plan.error is not None and not dispatch.running and plan.status == "running":
                        await self._hand(plan.give_up(), forced=True)
                    await self._start()
                    if self._over():
                        break
                    await self._receive()
            finally:
                await self._leave()
        if self._refusal is not None:
            if isinstance(self._refusal, OwnershipLost):
                raise self._refusal
            raise StorageFailed(plan.trace_id, self.durable_step, str(self._refusal)) from self._refusal

    def stop(self) -> None:
        """Start nothing more; `run()` returns once what runs has ended and is durable. Once is enough."""
        reply(self.address, Stop())

    # -- the loop ----------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        dispatch = self._dispatch
        if self._refusal is not None:
            return not dispatch.running
        if self._plan.status in TERMINAL:
            return dispatch.settled
        return dispatch.stopped and not dispatch.running and not self._held

    async def _receive(self) -> None:
        """Handle what has come, or what is due when the deadline passes first."""
        messages = await take(self._inbox, self._look_again if self._drain_until is None else self._drain_until)
        for message in messages:
            await self._handle(message)
            if isinstance(message, Finished) and message.duration_ms > BLOCKED_MS and Started(message.seq) in messages:
                self._dispatch.loop_was_blocked()  # it began and ended, and we had no turn in between
        if not messages:
            if self._drain_until is not None:
                await self._cancel_running()
            self._drain_until = self._look_again = None

    async def _handle(self, message: RunMessage) -> None:
        match message:
            case Started():
                self._dispatch.started(message.seq)
            case Finished():
                if self._refusal is None and not self._dispatch.has_credit:
                    self._held.append(message)
                else:
                    await self._finished(message)
            case Failed():
                await self._failed(message)
            case Cancelled():
                self._dispatch.ended(message.seq)
                self._dispatch.stopped = True  # if it was not our wish, those who run the nodes are closing down
                if self._refusal is None:
                    await self._hand(self._plan.cut_off(message.seq), forced=False)
            case Durable():
                self._acknowledge(message.number, message.step)
                self._emit(events.Committed(self._plan.trace_id, message.step, message.rev))
                while self._held and self._dispatch.has_credit:
                    await self._finished(self._held.popleft())
            case Refused():
                if self._refusal is not None:
                    return  # what was under way behind a refused delta is refused for leaving a gap
                self._refusal = message.error
                while self._held:
                    self._dispatch.ended(self._held.popleft().seq)
                self._dispatch.stopped = True
                if isinstance(message.error, OwnershipLost):
                    await self._cancel_running()  # the other owner runs the same nodes already
                else:
                    self._drain_until = anyio.current_time() + DRAIN_SECONDS
            case Stop():
                self._dispatch.stopped = True
            case _:
                assert_never(message)

    # -- what happened -----------------------------------------------------------------------------------------

    async def _finished(self, message: Finished) -> None:
        plan = self._plan
        if self._refusal is not None:
            self._dispatch.ended(message.seq)
            return
        try:
            delta = plan.finish(message.seq, message.output, ended_at=message.ended_at, duration_ms=message.duration_ms)
        except NodeError as error:
            node = self._dispatch.running[message.seq].node
            function = plan.graph.function(plan.graph.nodes[node])
            await self._failed(Failed(message.seq, error_info(node, error, function), error))
            return
        activation = self._dispatch.ended(message.seq)
        await self._hand(delta, forced=plan.status != "running")
        self._emit(events.NodeFinished(plan.trace_id, activation.node, plan.step, message.duration_ms))
        self._stop_if_failed()

    async def _failed(self, message: Failed) -> None:
        activation = self._dispatch.ended(message.seq)
        if self._refusal is not None:
            return
        if self._plan.error is None:
            self.failure = message.exception
        self._emit(events.NodeFailed(self._plan.trace_id, activation.node, message.error))
        await self._hand(self._plan.fail(message.seq, message.error), forced=True)
        self._stop_if_failed()

    def _stop_if_failed(self) -> None:
        """After a failure nothing starts; what runs may end."""
        if self._plan.error is not None and not self._failing:
            self._failing = self._dispatch.stopped = True
            self._drain_until = anyio.current_time() + DRAIN_SECONDS

    async def _hand(self, delta: Delta, *, forced: bool) -> None:
        """Hand a delta over. From here on it cannot change."""
        planned = self._plan.take_planned()
        self._dispatch.add(planned)
        forced = forced or self._dispatch.needs_durable(planned)
        self._dispatch.hand(delta.number, forced=forced)
        if delta.variables:
            self._versions.append((delta.number, self._plan.versions))
        if self._journal is None:
            self._acknowledge(delta.number, delta.step)
        else:
            await post(self._journal, Stepped(self._plan.trace_id, delta, forced))
        self._tell_planned(planned)

    def _acknowledge(self, number: int, step: int) -> None:
        """All up to delta `number` is as durable as it will be."""
        self._dispatch.acknowledge(number)
        self.durable_step = step
        while self._versions and self._versions[0][0] <= number:
            _, self._durable_versions = self._versions.popleft()

    def _tell_planned(self, planned: list[Activation]) -> None:
        for node, count in Counter(activation.node for activation in planned).items():
            self._emit(events.Planned(self._plan.trace_id, node, count))

    # -- what is done ------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        plan, dispatch = self._plan, self._dispatch
        dispatch.add(plan.take_planned())
        held_back = False

        def may_start() -> bool:
            nonlocal held_back
            held_back = not self._may_start()
            return not held_back

        while (activation := dispatch.next(may_start)) is not None:
            node = self._nodes[activation.node]
            call = Call(
                plan.trace_id,
                activation.node,
                activation.id,
                activation.attempts + 1,
                activation.input,
                activation.sources,
                # An outside effect must not rest on a variable that a crash could undo.
                self._durable_versions if dispatch.rests_on_durable(activation.node) else plan.versions,
            )
            try:
                await post(node, RunNode(activation.seq, call, self.address))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):  # those who run the nodes are closing down
                dispatch.ended(activation.seq)
                dispatch.stopped = True
                break
            self._emit(events.NodeStarted(plan.trace_id, activation.node))
        if held_back and self._look_again is None:
            self._look_again = anyio.current_time() + LEASE_POLL_SECONDS
        if self._high_water is not None and self._refusal is None:
            self._high_water.note(plan.step, len(dispatch.running))

    async def _cancel_running(self) -> None:
        for activation in self._dispatch.running.values():
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # then they are cancelled already
                await post(self._nodes[activation.node], CancelNode(activation.seq, self.address))

    async def _leave(self) -> None:
        """End what still runs, then give the trace up, or let it go where it has ended."""
        self._dispatch.stopped = True
        with anyio.move_on_after(GRACE_SECONDS, shield=True) as grace:
            await self._cancel_running()
            while self._dispatch.running:
                await self._handle(await self._inbox.receive())
        if grace.cancelled_caught:
            nodes = sorted({activation.node for activation in self._dispatch.running.values()})
            logger.warning("trace %s: left while %s still ran on", self._plan.trace_id, ", ".join(nodes))
        if self._journal is not None:
            with anyio.move_on_after(GRACE_SECONDS, shield=True) as grace:
                await self._let_go(self._journal)
            if grace.cancelled_caught:
                logger.warning("trace %s: left before the last of it was written", self._plan.trace_id)
        if self._high_water is not None and not self.left_unwritten:
            self._high_water.close()

    @property
    def left_unwritten(self) -> bool:
        """The store refused something: the trace stays ours, and its mark tells the next owner how much was lost."""
        return self._refusal is not None and not isinstance(self._refusal, OwnershipLost)

    async def _let_go(self, journal: MemoryObjectSendStream[ScheduleMessage]) -> None:
        """Hear what became of all that was handed over, and own the trace no longer."""
        plan = self._plan
        if (plan.status in TERMINAL and self._dispatch.settled) or self._refusal is not None:
            await post(journal, Close(plan.trace_id))
            return
        answer = Answer()
        await post(journal, Close(plan.trace_id, Release(plan.key, plan.epoch), answer))
        try:
            await answer.wait()
        except Exception as error:
            logger.warning("trace %s could not be let go: %s", plan.trace_id, error)
            self._refusal = self._refusal or error
        with suppress(anyio.WouldBlock):
            while True:  # told before the answer
                await self._handle(self._inbox.receive_nowait())
