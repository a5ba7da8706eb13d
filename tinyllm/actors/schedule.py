"""When a checkpoint is due: the scheduler's decisions. Pure; beside `scheduler.py`."""

from __future__ import annotations

import attrs

from tinyllm.actors.dispatch import Durability
from tinyllm.actors.merge import Merged
from tinyllm.graph.records import record
from tinyllm.storage.contract import UNOWNED, Delta

MERGED_BYTES = 1 << 20
"""A merged delta of more than this is written, whatever the interval: memory must not grow with the interval."""

PRUNE_SLACK = 64
"""Checkpoints a trace may have beyond those it keeps: pruning one by one costs a transaction each."""


@attrs.frozen
class Policy:
    """When deltas are written. `interval` in seconds, 0: no interval."""

    each_node: bool
    interval: float
    durability: Durability
    keep: int

    @property
    def merges(self) -> bool:
        """Whether deltas may wait here for others."""
        return self.durability == "exit" or not (self.each_node or self.durability == "sync")


@record
class WriteNow:
    delta: Delta


@record
class PruneNow:
    pass


Effect = WriteNow | PruneNow


class TraceSchedule:
    """One trace: what waits to be written, and how many checkpoints there are to prune."""

    def __init__(self, policy: Policy, rev: int, now: float) -> None:
        self._merges = policy.merges
        self._interval = policy.interval if policy.durability != "exit" else 0.0
        self._rev = rev
        self._written_at = now
        self._pending: Merged | None = None
        # A trace that goes on may have all it may have; the first pruning finds out.
        self._extra = PRUNE_SLACK if rev > policy.keep else rev - policy.keep

    @property
    def due_at(self) -> float | None:
        """When what waits must be written; None: nothing does, or only the end will write it."""
        if self._pending is None or not self._interval:
            return None
        return self._written_at + self._interval

    def stepped(self, delta: Delta, forced: bool, now: float) -> list[Effect]:
        if not self._merges:
            return self._write(delta, now)
        if self._pending is None:
            self._pending = Merged(delta)
        else:
            self._pending.add(delta)
        late = self._interval and now >= self._written_at + self._interval
        if forced or late or self._pending.size > MERGED_BYTES:
            return self.flush(now)
        return []

    def flush(self, now: float) -> list[Effect]:
        """Write what waits."""
        if self._pending is None:
            return []
        merged, self._pending = self._pending, None
        return self._write(merged.delta(), now)

    def _write(self, delta: Delta, now: float) -> list[Effect]:
        self._rev += 1
        self._extra += 1
        self._written_at = now
        if delta.rev != self._rev:  # the plan does not know what was merged
            delta = attrs.evolve(delta, rev=self._rev)
        over = self._extra > 0 and delta.status in UNOWNED
        if over or self._extra >= PRUNE_SLACK:
            self._extra = 0
            return [WriteNow(delta), PruneNow()]
        return [WriteNow(delta)]
