"""A process of a simulation: the scheduler that its traces share, a writer that commits when it is told to, and what
each of its traces has handed over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs

from tests.actors.graphs import now
from tests.storage.naive import NaiveTrace, State
from tests.torture.loopless import CLOCK, Execution
from tests.torture.promises import Known
from tinyllm.actors.batch import Queue
from tinyllm.actors.mailbox import reply
from tinyllm.actors.plan import Plan
from tinyllm.actors.protocol import Ask, Durable, PruneDue, Put, Refused, RunAddress, ScheduleMessage
from tinyllm.actors.schedule import Policy
from tinyllm.actors.scheduler import CheckpointScheduler
from tinyllm.actors.writer import PRUNE_SLICE
from tinyllm.storage.contract import Append, CheckpointStorage, Outcome, Prune, Write


@attrs.define(eq=False)
class Tenure:
    """The time for which one run owns a trace, or believes so: what it has handed over, and what of that is there."""

    known: Known
    epoch: int
    plan: Plan
    handed: NaiveTrace
    """The trace with all that was handed over."""
    step: int
    execution: Execution = attrs.field(init=False)
    number: int = 0
    """Of the newest delta that was handed over."""
    written: int = 0
    """Of the newest that is committed."""
    states: dict[int, State] = attrs.field(factory=dict)
    """By number, the trace after that delta."""
    unwritten: list[tuple[int, bytes]] = attrs.field(factory=list)
    """Activations that have finished, and that is not committed: the number of the delta, and the causal id."""
    failed: str | None = None
    """A node that has failed for good."""

    @property
    def is_owner(self) -> bool:
        return self.epoch == self.known.epoch


class Process:
    """What all traces of a process share: the real scheduler, and a writer, which commits when it is told to."""

    def __init__(self, name: str, policy: Policy) -> None:
        self.name = name
        self.policy = policy
        self.journal: list[ScheduleMessage] = []
        """What runs have handed over, and the scheduler has not seen."""
        self.queue = Queue()
        self.prune_due: dict[int, PruneDue] = {}
        self.tenures: dict[tuple[str, int], Tenure] = {}
        """By trace and epoch."""
        self.running: list[Tenure] = []
        self._scheduler = CheckpointScheduler(policy, *cast("Any", (None, None, None, None)))
        self._untold: dict[str, tuple[RunAddress, Durable]] = {}

    def schedule(self, count: int) -> None:
        """Let the scheduler see the next `count` of what was handed over."""
        for message in self.journal[:count]:
            self._scheduler._handle(message, CLOCK.now)
        del self.journal[:count]
        self._scheduler._write_due(CLOCK.now)
        for handed in self._scheduler._handed:
            if isinstance(handed, PruneDue):
                self.prune_due[handed.trace] = handed
            else:
                self.queue.add(handed)
        self._scheduler._handed.clear()

    def commit(self, store: CheckpointStorage, committed: Callable[[Process, Write, Outcome], None]) -> None:
        """As the writer does."""
        batch = self.queue.take()
        writes: list[Write] = [
            Append(item.trace_id, item.delta) if isinstance(item, Put) else item.write for item in batch
        ]
        pruned = next(iter(self.prune_due), None)
        if pruned is not None:
            del self.prune_due[pruned]
            writes.append(Prune(pruned, self.policy.keep, PRUNE_SLICE))
        outcomes = now(store.commit(writes))
        for write, outcome in zip(writes, outcomes, strict=True):
            committed(self, write, outcome)
        asked = [self._note(item, outcome) for item, outcome in zip(batch, outcomes, strict=False)]
        for trace_id in filter(None, asked):
            self._tell(trace_id)

    def _note(self, item: Put | Ask, outcome: Outcome) -> str | None:
        """Returns the trace that is to be told that something is durable."""
        trace_id = item.trace_id
        if isinstance(item, Put) and not isinstance(outcome, Exception):
            self._untold[trace_id] = item.reply, Durable(item.delta.number, item.delta.step, item.delta.rev)
            return trace_id if item.tell else None
        self._tell(trace_id)
        if isinstance(item, Ask):
            item.answer.settle(outcome)
        elif isinstance(outcome, Exception):
            reply(item.reply, Refused(outcome))
            for waiting in self.queue.drop(item):
                if isinstance(waiting, Ask):
                    waiting.answer.settle(outcome)
        return None

    def _tell(self, trace_id: str) -> None:
        if (untold := self._untold.pop(trace_id, None)) is not None:
            reply(*untold)

    @property
    def due(self) -> float | None:
        """When something happens here though nothing comes."""
        waits = [tenure.execution.wait.due for tenure in self.running]
        return min((due for due in (*waits, self._scheduler._next_due()) if due is not None), default=None)

    def __str__(self) -> str:
        return self.name
