"""The actor that decides which deltas become checkpoints, and when."""

from __future__ import annotations

from typing import assert_never

import anyio
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from tinyllm.actors.mailbox import post, take
from tinyllm.actors.protocol import Ask, Close, Open, PruneDue, Put, ScheduleMessage, Stepped, WriteMessage
from tinyllm.actors.schedule import Effect, Policy, PruneNow, TraceSchedule, WriteNow


class CheckpointScheduler:
    """Between all runs of a process and the writer.

    It ends when every sender has closed, never by cancellation: what was handed over is written. `shield` is the scope
    it runs in; whoever shuts it down sets its deadline.
    """

    def __init__(
        self,
        policy: Policy,
        inbox: MemoryObjectReceiveStream[ScheduleMessage],
        writer: MemoryObjectSendStream[WriteMessage],
        shield: anyio.CancelScope,
    ) -> None:
        self._policy = policy
        self._inbox = inbox
        self._writer = writer
        self._shield = shield
        self._traces: dict[str, tuple[Open, TraceSchedule]] = {}

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        with self._shield, self._inbox, self._writer:
            task_status.started()
            while True:
                try:
                    messages = await take(self._inbox, self._next_due())
                except anyio.EndOfStream:
                    break
                for message in messages:
                    await self._handle(message)
                await self._write_due()

    async def _handle(self, message: ScheduleMessage) -> None:
        now = anyio.current_time()
        match message:
            case Open():
                self._traces[message.trace_id] = message, TraceSchedule(self._policy, message.rev, now)
            case Stepped():
                trace, schedule = self._traces[message.trace_id]
                await self._do(trace, schedule.stepped(message.delta, message.forced, now))
            case Close():
                trace, schedule = self._traces.pop(message.trace_id)
                await self._do(trace, schedule.flush(now))
                if message.release is not None and message.answer is not None:
                    await post(self._writer, Ask(message.trace_id, message.release, message.answer))
            case _:
                assert_never(message)

    def _next_due(self) -> float | None:
        if not self._policy.merges:  # nothing ever waits here: do not look through a thousand traces for it
            return None
        return min((at for _, schedule in self._traces.values() if (at := schedule.due_at) is not None), default=None)

    async def _write_due(self) -> None:
        if not self._policy.merges:
            return
        now = anyio.current_time()
        for trace, schedule in self._traces.values():
            if schedule.due_at is not None and schedule.due_at <= now:
                await self._do(trace, schedule.flush(now))

    async def _do(self, trace: Open, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case WriteNow():
                    await post(self._writer, Put(trace.trace_id, effect.delta, trace.reply))
                case PruneNow():
                    await post(self._writer, PruneDue(trace.trace_id, trace.trace))
                case _:
                    assert_never(effect)
