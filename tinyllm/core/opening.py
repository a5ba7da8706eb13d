"""How a trace that was restored goes on: what its stop has cost, and what it does before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

from tinyllm.actors.plan import Plan
from tinyllm.graph.payload import Captured
from tinyllm.graph.values import digest
from tinyllm.storage.contract import Command, Delta, Snapshot, TraceRecord


def toll(record: TraceRecord, snapshot: Snapshot) -> tuple[int, int | None]:
    """How many activations were running when a trace stopped, and how many finished steps were not durable yet, or None
    where nothing can tell."""
    if record.status == "queued":
        return 0, 0
    if record.high_water is not None:
        handed, running = record.high_water
        return running, max(0, handed - record.step)
    return sum(row.state == "cancelled" for row in snapshot.frontier), 0 if record.owner is None else None


def opening_of(
    plan: Plan, record: TraceRecord, commands: Sequence[Command], task: Captured | None, *, lifts: bool = True
) -> list[Delta]:
    """The deltas by which a restored trace goes on: what others left for it, and what it is told now. `lifts`: a pause
    that was left is lifted by this."""
    if cancels := [command.id for command in commands if command.kind == "cancel"]:
        return [plan.close("cancelled", cancels)]
    pauses = [] if lifts else [command.id for command in commands if command.kind == "pause"]
    heeded = [command for command in commands if command.id not in pauses]
    opening = [plan.heed(heeded)] if heeded else []
    if pauses:
        opening.append(plan.close("paused", pauses))
    if task is not None:
        told = digest(task.body)
        if record.status == "completed":
            opening.append(plan.begin_again(task, told))
        elif told != record.last_task:  # once, however often it is told
            opening.append(plan.hear(task, told))
    return opening
