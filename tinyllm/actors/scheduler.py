"""The actor that decides which deltas become checkpoints, and when."""

from __future__ import annotations

from contextlib import suppress
from typing import assert_never

import anyio
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from tinyllm.actors.mailbox import drain, post, reply, take
from tinyllm.actors.protocol import (
    Ask,
    Close,
    Handed,
    Hurry,
    Open,
    PruneDue,
    Put,
    Refused,
    ScheduleMessage,
    Stepped,
    WriteMessage,
)
from tinyllm.actors.schedule import Effect, Policy, PruneNow, TraceSchedule, WriteNow
from tinyllm.errors import StorageError

LINGER_SECONDS = 0.004
"""How long deltas that nobody waits for gather before they are taken: to wake two actors and to commit for each would
cost more than a small node. What a crash can cost a trace is bounded by its credit all the same."""


MERGING_LINGER_SECONDS = 0.02
"""The same where deltas are merged before they are written: nobody waits for a single one of them."""


class CheckpointScheduler:
    """Between all runs of a process and the writer. `bell` rings while it lingers, for what cannot wait.

    It ends when every sender has closed, never by cancellation: what was handed over is written. `shield` is the scope
    it runs in; whoever shuts it down sets its deadline.
    """

    def __init__(
        self,
        policy: Policy,
        inbox: MemoryObjectReceiveStream[ScheduleMessage],
        bell: MemoryObjectReceiveStream[Hurry],
        writer: MemoryObjectSendStream[WriteMessage],
        shield: anyio.CancelScope,
    ) -> None:
        self._policy = policy
        self._merges = policy.merges
        self._linger_seconds = MERGING_LINGER_SECONDS if self._merges else LINGER_SECONDS
        self._inbox = inbox
        self._bell = bell
        self._writer = writer
        self._shield = shield
        self._traces: dict[str, tuple[Open, TraceSchedule]] = {}
        self._handed: list[Put | Ask | PruneDue] = []
        """What this turn has for the writer."""
        self._taken: list[ScheduleMessage] = []
        """What it had from the runs, until it is handled."""

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        with self._shield, self._inbox, self._bell, self._writer:
            task_status.started()
            try:
                await self._serve()
            finally:
                self._refuse_rest()

    async def _serve(self) -> None:
        while True:
            try:
                self._taken = await take(self._inbox, self._next_due())
            except anyio.EndOfStream:
                break
            await self._linger(self._taken)
            now = anyio.current_time()
            for message in self._taken:
                self._handle(message, now)
            self._taken = []
            self._write_due(now)
            if self._handed:
                await post(self._writer, Handed(tuple(self._handed)))
                self._handed = []

    def _refuse_rest(self) -> None:
        """Leave nobody waiting, should this end before its time."""
        drain(self._inbox, self._taken)
        error = StorageError("the scheduler ended before this was written")
        for message in (*self._taken, *self._handed):
            if isinstance(message, Close | Ask) and message.answer is not None:
                message.answer.settle(error)
        for opened, _ in self._traces.values():
            reply(opened.reply, Refused(error))

    async def _linger(self, messages: list[ScheduleMessage]) -> None:
        """Let more come, if nobody waits for what is there; the bell may have rung for that."""
        hurries = any(message.hurry for message in messages if isinstance(message, Stepped | Close))
        drain(self._bell, [])
        if not hurries and messages:
            deadline = anyio.current_time() + self._linger_seconds
            if (due := self._next_due()) is not None:
                deadline = min(deadline, due)
            with anyio.CancelScope(deadline=deadline), suppress(anyio.EndOfStream):
                await self._bell.receive()
            drain(self._inbox, messages)

    def _handle(self, message: ScheduleMessage, now: float) -> None:
        match message:
            case Open():
                self._traces[message.trace_id] = message, TraceSchedule(self._policy, message.rev, now)
            case Stepped():
                trace, schedule = self._traces[message.trace_id]
                self._do(
                    trace,
                    schedule.stepped(message.delta, message.forced, now),
                    tell=message.tell or self._merges,
                )
            case Close():
                trace, schedule = self._traces.pop(message.trace_id)
                self._do(trace, schedule.flush(now))
                if message.release is not None and message.answer is not None:
                    self._handed.append(Ask(message.trace_id, message.release, message.answer))
            case _:
                assert_never(message)

    def _next_due(self) -> float | None:
        if not self._merges:  # nothing ever waits here: do not look through a thousand traces for it
            return None
        return min((at for _, schedule in self._traces.values() if (at := schedule.due_at) is not None), default=None)

    def _write_due(self, now: float) -> None:
        if not self._merges:
            return
        for trace, schedule in self._traces.values():
            if schedule.due_at is not None and schedule.due_at <= now:
                self._do(trace, schedule.flush(now))

    def _do(self, trace: Open, effects: list[Effect], *, tell: bool = True) -> None:
        for effect in effects:
            match effect:
                case WriteNow():
                    self._handed.append(Put(trace.trace_id, effect.delta, trace.reply, tell))
                case PruneNow():
                    self._handed.append(PruneDue(trace.trace_id, trace.trace))
                case _:
                    assert_never(effect)
