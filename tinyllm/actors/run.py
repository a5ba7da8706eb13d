"""The actor that executes one trace: it starts nodes, hands over what they did, and ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import assert_never

import anyio
import anyio.lowlevel
from anyio.streams.memory import MemoryObjectSendStream

from tinyllm.actors import events
from tinyllm.actors.activation import Activation
from tinyllm.actors.alarms import Alarm, Alarms
from tinyllm.actors.dispatch import CREDIT, Bounds, Dispatch, Durability
from tinyllm.actors.heard import Heard
from tinyllm.actors.ledger import Ledger
from tinyllm.actors.mailbox import Journal, drain, post, reply, take
from tinyllm.actors.plan import Plan
from tinyllm.actors.protocol import (
    Answer,
    Cancelled,
    CancelNode,
    Close,
    Deferred,
    Durable,
    Failed,
    Finished,
    HoldNodes,
    NodeMessage,
    Open,
    Paused,
    Progressed,
    Refused,
    RunMessage,
    RunNode,
    Stalled,
    Started,
    Stepped,
    Stop,
    Told,
)
from tinyllm.actors.telling import Telling
from tinyllm.errors import LimitReached, NodeError, OwnershipLost, StorageError, StorageFailed
from tinyllm.graph.redact import Redaction
from tinyllm.nodes.call import Call, failure
from tinyllm.storage.contract import UNOWNED, Command, Delta, Done, HighWater, Release
from tinyllm.storage.thread import DedicatedThread, loop_clock

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0
"""How long nodes in flight may go on after a failure; what they finish is recorded."""

GRACE_SECONDS = 10.0
"""How long a cancelled run waits for its nodes to end, and for what it handed over to be written."""

DEAR_MS = 2.0
"""What took longer is written without delay: lingering saves less than it could lose."""

LEASE_POLL_SECONDS = 1.0
"""How often a run that may start nothing, because its lease is nearly over, looks whether it was renewed."""


class Run:
    """Executes `plan` until its trace has ended, failed, paused, been stopped, or been lost to another owner.

    `journal` is the scheduler's mailbox, None where nothing is recorded. `opening` are the deltas that `plan` has made
    since it was restored. `may_start` says whether our lease is long enough to start something: it reads a clock, so
    it is asked and not told.
    """

    def __init__(
        self,
        plan: Plan,
        nodes: MemoryObjectSendStream[NodeMessage],
        bounds: Bounds,
        *,
        journal: Journal | None,
        rev: int = 0,
        opening: Sequence[Delta] = (),
        durability: Durability,
        merges: bool,
        fail_fast: bool = False,
        redaction: Redaction | None = None,
        stopped: bool = False,
        may_start: Callable[[], bool],
        high_water: HighWater | None,
        emit: Callable[[events.Event], None] | None,
    ) -> None:
        self._plan = plan
        self._nodes = nodes
        self._journal = journal
        self._rev = rev
        self._opening = opening
        self._fail_fast = fail_fast
        self._redaction = redaction
        self._exits = durability == "exit"
        self._merges = merges
        self._may_start = may_start
        self._high_water = high_water
        self._telling = Telling(plan, emit)
        self._dispatch = Dispatch(bounds, durability, merges=merges, recorded=journal is not None)
        self._dispatch.stopped = stopped
        # All that can be under way at once: a start, saved progress and an end for each activation that may run, an
        # acknowledgement for each delta that may be open, and a few for what is written unasked. So nobody who answers
        # waits. (Commands are told only while the few have room.)
        self.address, self._inbox = anyio.create_memory_object_stream[RunMessage](3 * bounds.most + CREDIT + 16)
        self._held: list[Finished | Failed | Progressed] = []
        """What waits for credit."""
        self._outage: Exception | None = None
        """Why the store takes no writes at present."""
        self._stopping = stopped
        """Somebody wants this to end soon, and not to wait for a store that takes no writes."""
        self._leaving = False
        self._alarms = Alarms(plan.graph.limits.timeout, plan.elapsed)
        self._refusal: Exception | None = None
        self._failing = False
        self._clock: Callable[[], float]
        """The event loop's, in seconds."""
        self._deferred: list[int] = []
        """What was sent and came back; it is sent again."""
        self._dear = False
        """Something that took its time is handed over and perhaps not written yet."""
        self._heard = Heard()
        self._ledger = Ledger(plan.versions, plan.step)
        self.failure: BaseException | None = None
        """The exception of the node that failed, where it was raised in this process."""

    @property
    def durable_step(self) -> int:
        return self._ledger.durable_step

    async def run(self) -> None:
        """Execute to the end.

        :raises OwnershipLost: another process took the trace over.
        :raises StorageFailed: the store failed for good.
        """
        plan, dispatch = self._plan, self._dispatch
        with self.address, self._inbox:
            self._clock = loop_clock()
            self._alarms.begin(self._clock())
            self._note()  # killed while its first nodes start, it has lost nothing
            if self._journal is not None:
                await self._journal.post(Open(plan.trace_id, plan.key, self._rev, self.address))
            try:
                self._dispatch_planned()
                for delta in self._opening:
                    await self._hand(delta, forced=True)
                if plan.status == "running" and (woken := plan.wake()):
                    await self._hand(woken, forced=True)
                if (alarm := self._alarms.next()) is not None and alarm[0] <= self._clock():
                    await self._ring(alarm[1])
                self._stop_if_failed()
                while True:
                    if not dispatch.running and plan.status == "running":
                        await self._close_if_over()
                    if self._dear:
                        await self._let_it_be_written()
                    await self._start()
                    if self._over():
                        break
                    await self._receive()
            finally:
                await self._leave()
        self.raise_refusal()

    def raise_refusal(self) -> None:
        """:raises OwnershipLost, StorageFailed: the store did not take all that was handed over."""
        if isinstance(self._refusal, OwnershipLost):
            raise self._refusal
        if self._refusal is not None:
            raise StorageFailed(self._plan.trace_id, self.durable_step, str(self._refusal)) from self._refusal

    def stop(self) -> None:
        """Start nothing more; `run()` returns once what runs has ended and is durable. Once is enough."""
        reply(self.address, Stop())

    # -- the loop ----------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        dispatch = self._dispatch
        if self._refusal is not None or self._hastens:
            return not dispatch.running
        if self._plan.status in UNOWNED:
            return dispatch.settled
        return dispatch.stopped and not dispatch.running and not self._held

    @property
    def _hastens(self) -> bool:
        """Nothing is to wait until something is durable."""
        return self._leaving or (self._stopping and self._outage is not None)

    async def _close_if_over(self) -> None:
        """Nothing runs: if nothing more may start, the trace is what that makes of it."""
        ending = self._heard.ending(failed=self._plan.error is not None)
        if ending is not None:
            await self._hand(self._plan.close(ending, self._heard.obeyed), forced=True)

    async def _receive(self) -> None:
        """Handle what has come, or what is due when its time passes first."""
        self._alarms.retry_at = self._dispatch.next_due
        due, alarm = self._alarms.next() or (None, None)
        messages = await take(self._inbox, due)
        self._plan.elapsed = self._alarms.elapsed(self._clock())
        for message in messages:
            await self._handle(message)
        if not messages and alarm is not None:
            await self._ring(alarm)

    async def _ring(self, alarm: Alarm) -> None:
        match alarm:
            case "drain":
                self._alarms.drain_at = None
                await self._cancel_running()
            case "look":
                self._alarms.look_at = None
            case "retry":
                self._dispatch.release_next_due()
            case "limit":
                self._alarms.limited = False
                if self._plan.status == "running":
                    self._plan.run_out(LimitReached("timeout", self._plan.graph.limits.timeout or 0))
                    self._stop_if_failed()
                    await self._cancel_running()
            case _:
                assert_never(alarm)

    async def _handle(self, message: RunMessage) -> None:
        match message:
            case Finished() | Failed() | Progressed():
                self._held.append(message)
                await self._take_in_held()
            case Started():
                self._dispatch.started(message.seq)
            case Deferred():
                self._dispatch.deferred(message.seq)
                self._deferred.append(message.seq)
            case Paused():
                await self._paused(message)
            case Cancelled():
                self._dispatch.ended(message.seq)
                self._dispatch.stopped = True  # if it was not our wish, those who run the nodes are closing down
                if self._refusal is None:
                    await self._hand(self._plan.cut_off(message.seq), forced=False)
            case Durable():
                self._acknowledge(message.number, message.step)
                self._recovered()
                self._telling.committed(message.step, message.rev)
                await self._take_in_held()
            case Refused():
                if self._refusal is not None:
                    return  # what was under way behind a refused delta is refused for leaving a gap
                self._refusal = message.error
                await self._take_in_held()
                self._ledger.refuse(message.error)
                self._dispatch.stopped = True
                if isinstance(message.error, OwnershipLost):
                    await self._cancel_running()  # the other owner runs the same nodes already
                else:
                    self._alarms.drain_at = self._clock() + DRAIN_SECONDS
            case Told():
                if self._refusal is None and self._plan.status == "running":
                    await self._obey(message.commands)
            case Stalled():
                self._outage = message.error
                self._dispatch.stalled = True
                self._telling.stalled(message.error)
                await self._take_in_held()
            case Stop():
                self._dispatch.stopped = self._stopping = True
                if self._dispatch.running:
                    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # then they are cancelled
                        await post(self._nodes, HoldNodes(self.address))
                await self._take_in_held()
            case _:
                assert_never(message)

    # -- what happened -----------------------------------------------------------------------------------------

    async def _take_in_held(self) -> None:
        """Take in what has come, as far as there is credit for it; or all of it, if nothing is to wait for credit."""
        while self._held:
            if self._refusal is None and not self._dispatch.has_credit and not self._hastens:
                return
            match message := self._held.pop(0):
                case Finished():
                    await self._finished(message)
                case Failed():
                    await self._failed(message)
                case Progressed():
                    await self._progressed(message)
                case _:
                    assert_never(message)

    def _recovered(self) -> None:
        if self._outage is not None:
            self._outage, self._dispatch.stalled = None, False
            self._telling.recovered()

    async def _finished(self, message: Finished) -> None:
        plan = self._plan
        if self._refusal is not None:
            self._dispatch.ended(message.seq)
            return
        try:
            delta = await self._finish(message)
        except NodeError as error:
            node = self._dispatch.running[message.seq].node
            function = plan.graph.function(plan.graph.nodes[node])
            await self._failed(
                Failed(message.seq, failure(node, error, function, self._redaction), error, message.duration_ms)
            )
            return
        activation = self._dispatch.ended(message.seq)
        self._dear = self._dear or message.duration_ms > DEAR_MS
        if message.blocked:
            self._dispatch.loop_was_blocked()
        await self._hand(delta, forced=plan.status != "running")
        if self._telling.observed:  # what was told of is counted as lost if a crash takes it
            self._note()
        self._telling.finished(activation.node, message.duration_ms)
        self._stop_if_failed()

    async def _finish(self, message: Finished) -> Delta:
        """The delta of that result. A wide one is made in a thread, which lets the loop have its turns; nothing else
        touches the plan meanwhile."""
        plan = self._plan
        if not plan.is_wide(message.seq, message.output):
            return plan.finish(message.seq, message.output, message.ended_at, message.duration_ms)
        thread = DedicatedThread(f"plan of {plan.trace_id}")
        thread.start()
        try:
            return await thread.call(plan.finish, message.seq, message.output, message.ended_at, message.duration_ms)
        finally:
            thread.stop()

    async def _failed(self, message: Failed) -> None:
        plan = self._plan
        node = self._dispatch.ended(message.seq).node
        if self._refusal is not None:
            return
        fails_already, now = plan.error is not None, time.time()
        delta = plan.fail(message.seq, message.failure, at=now, duration_ms=message.duration_ms)
        if plan.error is not None and not fails_already:
            self.failure = message.exception
        await self._hand(delta, forced=message.seq not in plan.activations or not self._exits)
        if self._telling.observed:
            self._note()
        self._telling.failed(message.seq, node, message.failure.error, now)
        self._stop_if_failed()

    async def _paused(self, message: Paused) -> None:
        node = self._dispatch.ended(message.seq).node
        if self._refusal is not None:
            return
        delta = self._plan.park(message.seq, message.asked)
        self._telling.asked(message.seq, node, delta.number)
        await self._hand(delta, forced=True)

    async def _progressed(self, message: Progressed) -> None:
        if self._refusal is not None:
            message.answer.settle(self._refusal)
            return
        if message.seq not in self._plan.activations:  # it was cancelled while this waited for credit
            message.answer.settle(NodeError("", "the activation has ended; nothing was saved"))
            return
        delta = self._plan.save_progress(message.seq, message.body)
        # It waits for the commit, but not where that comes only at the end.
        await self._hand(delta, forced=not self._exits)
        if self._exits:
            message.answer.settle(Done())
        else:
            self._ledger.wait(delta.number, message.answer)

    async def _obey(self, commands: Sequence[Command]) -> None:
        """Do what others left for this trace; the delta that shows it consumes the commands."""
        fresh = self._heard.fresh(commands)
        if answers := [command for command in fresh if command.kind == "answer"]:
            delta = self._plan.heed(answers)
            self._telling.answered(delta)
            await self._hand(delta, forced=True)
        for command in fresh:
            if command.kind == "answer":
                continue
            self._heard.obey(command)
            self._dispatch.stopped = self._plan.closing = True
            if command.kind == "cancel":
                await self._cancel_running()

    def _stop_if_failed(self) -> None:
        """After a failure nothing starts; what runs may end."""
        if self._plan.error is not None and not self._failing:
            self._failing = self._dispatch.stopped = True
            self._alarms.limited = False
            self._alarms.drain_at = self._clock() + (0.0 if self._fail_fast else DRAIN_SECONDS)

    async def _hand(self, delta: Delta, *, forced: bool) -> None:
        """Hand a delta over. From here on it cannot change."""
        planned = self._dispatch_planned()
        if delta.status in UNOWNED:  # whatever was planned before that stays in the frontier
            self._dispatch.stopped = True
        forced = forced or self._dispatch.needs_durable(planned)
        self._dispatch.hand(delta.number, forced=forced)
        if delta.variables:
            self._ledger.change(delta.number, self._plan.versions)
        if self._journal is None:
            self._acknowledge(delta.number, delta.step)
        else:
            hurry = forced or self._dispatch.hurries or (self._dear and not self._merges)
            awaited = bool(delta.variables) and self._dispatch.reads_durable
            tell = forced or awaited or self._telling.observed or self._dispatch.needs_telling
            await self._journal.post(Stepped(self._plan.trace_id, delta, forced, hurry, tell), hurry=hurry)
        self._telling.planned(planned)

    async def _let_it_be_written(self) -> None:
        """Let the scheduler and the writer have their turns (one each, and one to be woken) before something starts
        that may never give the loop back."""
        self._dear = False
        if self._journal is not None:
            for _ in range(3):
                await anyio.lowlevel.checkpoint()

    def _dispatch_planned(self) -> list[Activation]:
        planned = self._plan.take_planned()
        if any(activation.due is not None for activation in planned):
            self._dispatch.add(planned, utc=time.time(), now=self._clock())
        else:  # no clock matters
            self._dispatch.add(planned, utc=0.0, now=0.0)
        return planned

    def _acknowledge(self, number: int, step: int) -> None:
        """All up to delta `number` is as durable as it will be."""
        self._dispatch.acknowledge(number)
        self._ledger.acknowledge(number, step)
        self._telling.acknowledged(number)

    # -- what is done ------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        plan, dispatch = self._plan, self._dispatch
        while (activation := dispatch.next(self._may_start)) is not None:
            call = Call(
                plan.trace_id,
                activation.node,
                activation.id,
                activation.attempts + 1,
                activation.input,
                activation.sources,
                # An outside effect must not rest on a variable that a crash could undo.
                self._ledger.durable_versions if dispatch.rests_on_durable(activation.node) else plan.versions,
                activation.progress,
                activation.asked,
            )
            try:
                await post(self._nodes, RunNode(activation.seq, call, self.address, dispatch.careful))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):  # those who run the nodes are closing down
                dispatch.ended(activation.seq)
                dispatch.stopped = True
                break
            if activation.seq in self._deferred:  # it was told when it was sent first
                self._deferred.remove(activation.seq)
            else:
                self._telling.started(activation.node)
        if dispatch.held_back and self._alarms.look_at is None:
            self._alarms.look_at = self._clock() + LEASE_POLL_SECONDS
        self._note()

    def _note(self) -> None:
        """Note how far this is, where it outlives the process."""
        if self._high_water is not None and self._refusal is None:
            self._high_water.note(self._plan.step, len(self._dispatch.running))

    async def _cancel_running(self) -> None:
        for activation in self._dispatch.running.values():
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # then they are cancelled already
                await post(self._nodes, CancelNode(activation.seq, self.address))

    async def _leave(self) -> None:
        """End what still runs, then give the trace up, or let it go where it has ended."""
        self._dispatch.stopped = self._leaving = True
        if self._dispatch.running:
            with anyio.move_on_after(GRACE_SECONDS, shield=True) as grace:
                await self._take_in_held()
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
                self._refusal = self._outage or StorageError("it was left before all that it did was written")
        if self._high_water is not None and not self.left_unwritten:
            self._high_water.close()

    @property
    def left_unwritten(self) -> bool:
        """The store refused something: the trace stays ours, and its mark tells the next owner how much was lost."""
        return self._refusal is not None and not isinstance(self._refusal, OwnershipLost)

    async def _let_go(self, journal: Journal) -> None:
        """Hear what became of all that was handed over, and own the trace no longer."""
        plan = self._plan
        if (plan.status in UNOWNED and self._dispatch.settled) or self._refusal is not None:
            with suppress(StorageError):  # then there is nobody whom it concerns
                await journal.post(Close(plan.trace_id))
            return
        answer = Answer()
        try:
            await journal.post(Close(plan.trace_id, Release(plan.key, plan.epoch), answer), hurry=True)
            await answer.wait()
        except Exception as error:
            logger.warning("trace %s could not be let go: %s", plan.trace_id, error)
            self._refusal = self._refusal or error
        left: list[RunMessage] = []
        drain(self._inbox, left)
        for message in left:  # told before the answer
            match message:
                case Durable() | Refused():
                    await self._handle(message)
                case Progressed():
                    message.answer.settle(NodeError("", "its trace was let go; nothing was saved"))
                case _:  # it came too late: nothing more of this trace can be handed over
                    pass
