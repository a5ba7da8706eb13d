"""The actor that writes: the only one that calls `commit`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import assert_never

import anyio
import anyio.lowlevel
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream

from tinyllm.actors.batch import MAX_WRITES, Queue
from tinyllm.actors.mailbox import reply, take
from tinyllm.actors.outage import PATIENCE_SECONDS, is_repeatable, pause
from tinyllm.actors.protocol import (
    ROOM,
    Ask,
    Durable,
    Handed,
    PruneDue,
    Put,
    Refused,
    RunAddress,
    Stalled,
    WriteMessage,
)
from tinyllm.errors import StorageError
from tinyllm.storage.contract import Append, CheckpointStorage, Outcome, Prune, Pruned, Write

logger = logging.getLogger(__name__)

PRUNE_SLICE = 128
"""Checkpoints that one transaction drops at most. More than a trace becomes due with, so that one takes them all, and
none has to look whether that was all."""

RECLAIM_PAGES = 256

TOLD_AT_ONCE = 16
"""Runs that are told in one turn of the event loop that something is durable: each goes on in the next one."""

IDLE_SECONDS = 0.25
"""How long nothing must have come before free pages are given back to the disk: it costs more than a commit, and who
comes next would wait for it. Until then they are used again."""


class StorageWriter:
    """Group commit: what waited during one commit is the next batch. Prunes with what room a batch has left.

    A fault that may pass is outlived: the batch is kept and committed again, from time to time, while nobody who hands
    something over has to wait (each trace holds its credit at most), and nothing is begun.

    It ends when every sender has closed, after the last write and the last pruning, never by cancellation: `shield` is
    the scope it runs in; whoever shuts it down sets its deadline.
    """

    def __init__(
        self,
        storage: CheckpointStorage,
        inbox: MemoryObjectReceiveStream[WriteMessage],
        shield: anyio.CancelScope,
        *,
        keep: int,
    ) -> None:
        self._storage = storage
        self._inbox = inbox
        self._shield = shield
        self._keep = keep
        self._queue = Queue()
        self._prune_due: dict[int, PruneDue] = {}
        self._reclaimable = False
        self._reclaiming = False
        """It has been idle for long enough, and nothing has come since."""
        self._durable: dict[str, tuple[RunAddress, Durable]] = {}
        """What each run was not told yet: its last durable delta. (Not the delta itself, which is large.)"""
        self._batch: list[Put | Ask] = []
        """What is being written, or has not wholly been told so."""
        self._failed_at: float | None = None
        """When the store failed, if it has not taken a write since; on the event loop's clock."""
        self._outage: Exception | None = None
        """What it failed with last, while it is tried again."""
        self._stalled: set[str] = set()
        """The traces whose runs know of that, and do not know yet that it is over."""

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        with self._shield, self._inbox:
            task_status.started()
            open_ = True
            try:
                while open_ or self._queue or self._prune_due:
                    open_ = await self._fill(open_)
                    if self._queue or self._prune_due:
                        await self._commit(self._queue.take())
                    elif self._reclaimable:
                        await self._reclaim()
                while self._reclaimable:
                    await self._reclaim()
            finally:
                self._refuse_rest()

    def _refuse_rest(self) -> None:
        """Leave nobody waiting, should this end before its time."""
        with suppress(anyio.WouldBlock, anyio.EndOfStream):
            while True:
                self._take(self._inbox.receive_nowait())
        for trace_id in list(self._durable):
            self._tell_durable(trace_id)
        self._refuse(self._batch, "the writer ended, and whether this was written is not known")
        while self._queue:
            self._refuse(self._queue.take(), "the writer ended before this was written")

    def _refuse(self, batch: list[Put | Ask], reason: str) -> None:
        error = self._outage or StorageError(f"{self._storage.name}: {reason}; resume the trace")
        for item in batch:
            if isinstance(item, Ask):
                item.answer.settle(error)
            else:
                reply(item.reply, Refused(error))

    async def _fill(self, open_: bool) -> bool:
        """Take what has come; wait only where there is nothing to do. False once every sender has closed."""
        if not open_:
            return False
        try:
            if not (self._queue or self._prune_due):
                with anyio.CancelScope() as idle:
                    if self._reclaimable:
                        idle.deadline = anyio.current_time() + (0.0 if self._reclaiming else IDLE_SECONDS)
                    self._take(await self._inbox.receive())
            while True:
                self._take(self._inbox.receive_nowait())
        except anyio.WouldBlock:
            return True
        except anyio.EndOfStream:
            return False

    def _take(self, message: WriteMessage) -> None:
        match message:
            case Ask() if self._outage is not None and not is_repeatable(message.write):
                message.answer.settle(self._outage)
            case Put() | Ask():
                self._queue.add(message)
                if self._outage is not None:
                    self._tell_stalled(message, self._outage)
            case Handed():
                for each in message.messages:
                    self._take(each)
            case PruneDue():
                self._prune_due[message.trace] = message
            case _:
                assert_never(message)

    async def _commit(self, batch: list[Put | Ask]) -> None:
        """Write the batch, with what room it has left prune, and tell those who wait what became of it."""
        self._reclaiming = False
        self._batch = batch
        writes = [_write(item) for item in batch]
        pruned = next(iter(self._prune_due), None) if len(writes) < MAX_WRITES else None
        if pruned is not None:
            writes.append(Prune(pruned, self._keep, PRUNE_SLICE))
        try:
            outcomes = await self._storage.commit(writes)
        except Exception as error:  # of whatever kind: those who wait must hear of it
            if pruned is not None:
                self._pruned(pruned, error)
            outcomes = await self._commit_again(error, len(writes))
        else:
            self._works()
            if pruned is not None:
                self._pruned(pruned, outcomes.pop())
        asked = self._tell_all(outcomes)
        for told, trace_id in enumerate(asked, 1):
            self._tell_durable(trace_id)
            if not told % TOLD_AT_ONCE:
                await anyio.lowlevel.cancel_shielded_checkpoint()
        self._batch = []

    # -- a store that takes no writes --------------------------------------------------------------------------

    async def _commit_again(self, error: Exception, count: int) -> list[Outcome]:
        """Commit the batch, which failed with `error`, until the store takes it or has failed for good. What begins a
        trace hears of it at once. `count`: how many writes that were."""
        tries = 0
        for ask in _beginnings(self._batch):
            self._batch.remove(ask)
            ask.answer.settle(error)
        while self._batch and (wait := pause(error, self._lasted(), tries)) is not None:
            self._stall(error)
            await self._hold(anyio.current_time() + wait)
            tries += 1
            try:
                outcomes = await self._storage.commit([_write(item) for item in self._batch])
            except Exception as again:
                error = again
            else:
                self._works()
                return outcomes
        self._outage = None
        logger.error("%s: a commit of %d writes failed: %s", self._storage.name, count, error)
        return [error] * len(self._batch)

    def _lasted(self) -> float:
        """Seconds since the store failed."""
        return 0.0 if self._failed_at is None else anyio.current_time() - self._failed_at

    def _stall(self, error: Exception) -> None:
        """The store takes nothing, because of `error`, and is tried again."""
        self._outage = error
        if self._failed_at is None:
            self._failed_at = anyio.current_time()
            logger.warning(
                "%s: takes no writes, and is tried again for %.0f s: %s", self._storage.name, PATIENCE_SECONDS, error
            )
        for ask in _beginnings(self._queue):
            self._queue.take_out(ask)
            ask.answer.settle(error)
        for item in (*self._batch, *self._queue):
            self._tell_stalled(item, error)

    async def _hold(self, until: float) -> None:
        """Wait, and take what comes: whoever hands it over is not to wait for the store."""
        try:
            while anyio.current_time() < until:
                for message in await take(self._inbox, until):
                    self._take(message)
        except anyio.EndOfStream:
            await anyio.sleep_until(until)

    def _tell_stalled(self, item: Put | Ask, error: Exception) -> None:
        """Tell the run once; if it has no room for that now, at the next try."""
        if (
            isinstance(item, Put)
            and item.trace_id not in self._stalled
            and item.reply.statistics().current_buffer_used < ROOM
        ):
            self._stalled.add(item.trace_id)
            reply(item.reply, Stalled(error))

    def _works(self) -> None:
        """The store has taken something."""
        if self._failed_at is not None:
            logger.warning("%s: takes writes again, after %.1f s", self._storage.name, self._lasted())
        self._failed_at = self._outage = None

    # -- who hears of it ---------------------------------------------------------------------------------------

    def _tell_all(self, outcomes: Iterable[Outcome]) -> Iterable[str]:
        """Tell those who wait for the batch, in order. Returns which traces are still to be told that something is
        durable: of several deltas the last."""
        asked: dict[str, None] = {}
        for item, outcome in zip(self._batch, outcomes, strict=True):
            if isinstance(item, Put) and not isinstance(outcome, Exception):
                delta = item.delta
                self._durable[item.trace_id] = item.reply, Durable(delta.number, delta.step, delta.rev)
                if item.tell or item.trace_id in self._stalled:
                    self._stalled.discard(item.trace_id)
                    asked[item.trace_id] = None
                continue
            self._tell_durable(item.trace_id)
            self._tell(item, outcome)
        return asked

    def _tell_durable(self, trace_id: str) -> None:
        if (untold := self._durable.pop(trace_id, None)) is not None:
            reply(*untold)

    def _tell(self, item: Put | Ask, outcome: Outcome | Exception) -> None:
        if isinstance(item, Ask):
            item.answer.settle(outcome)
        elif isinstance(outcome, Exception):
            self._stalled.discard(item.trace_id)
            reply(item.reply, Refused(outcome))
            for waiting in self._queue.drop(item):  # a gap would follow
                if isinstance(waiting, Ask):
                    waiting.answer.settle(outcome)

    def _pruned(self, trace: int, outcome: Outcome) -> None:
        """Put the trace behind the others, or forget it when nothing is left to drop."""
        due = self._prune_due.pop(trace)
        self._reclaimable = True
        if isinstance(outcome, Pruned) and outcome.checkpoints >= PRUNE_SLICE:
            self._prune_due[trace] = due

    async def _reclaim(self) -> None:
        self._reclaiming = True
        try:
            self._reclaimable = await self._storage.reclaim(RECLAIM_PAGES) > 0
        except StorageError as error:
            self._reclaimable = False
            logger.warning("%s: could not return free pages: %s", self._storage.name, error)


def _write(item: Put | Ask) -> Write:
    return Append(item.trace_id, item.delta) if isinstance(item, Put) else item.write


def _beginnings(items: Iterable[Put | Ask]) -> list[Ask]:
    """What cannot be committed again: it begins a trace, or goes on with one."""
    return [item for item in items if isinstance(item, Ask) and not is_repeatable(item.write)]
