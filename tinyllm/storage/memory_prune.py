"""What pruning a trace in memory frees: what no kept checkpoint of it, and no fork of it, sees."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from tinyllm.errors import CheckpointInUse
from tinyllm.storage.in_use import in_use
from tinyllm.storage.memory_trace import Activation, Checkpoint, Trace, by_seq, by_step, count_to


def prune(trace: Trace, keep: int, limit: int) -> int:
    """Drop at most `limit` checkpoints older than the newest `keep`; returns how many."""
    at, dropped = 1, 0
    while dropped < limit and at < len(trace.checkpoints) - max(keep, 1):
        if trace.checkpoints[at].pins or trace.checkpoints[at].label is not None:
            at += 1
        else:
            _drop(trace, at)
            dropped += 1
    return dropped


def drop(trace: Trace, rev: int) -> int | CheckpointInUse:
    """Drop the checkpoint of `rev`, if it is there; returns how many went, or why it stays."""
    dropped = trace.checkpoint(rev)
    if dropped is None:
        return 0
    refused = in_use(
        trace.trace_id,
        rev,
        newest=dropped is trace.checkpoints[-1],
        first=dropped is trace.checkpoints[0],
        forks=dropped.pins,
    )
    if refused:
        return refused
    _drop(trace, trace.checkpoints.index(dropped))
    return 1


def bury(trace: Trace) -> bool:
    """Free all that no fork shares; returns whether nothing at all is left."""
    trace.commands.clear()
    trace.answers.clear()
    while trace.checkpoints and not trace.checkpoints[-1].pins:
        trace.checkpoints.pop()
    if not trace.checkpoints:
        return True
    _cut(trace, trace.checkpoints[-1])
    for at in reversed(range(len(trace.checkpoints) - 1)):
        if not trace.checkpoints[at].pins:
            _drop(trace, at)
    return False


def _drop(trace: Trace, at: int) -> None:
    """Drop a checkpoint that is not the newest, and the rows that neither neighbour sees.

    An activation noted at the newer neighbour is seen by the older one or by nobody; the same goes for a variable's
    rows below the version that the newer one sees. What the dropped checkpoint had noted, the older neighbour sees,
    or it would not have been kept: so only the newer one's notes are looked at, and the notes move on to it.
    """
    seen = trace.checkpoints[at - 1].marks if at else trace.floor
    dropped, newer = trace.checkpoints[at], trace.checkpoints[at + 1]
    for activation in newer.ended:
        if activation.planned.seq <= seen.activation:
            dropped.ended.append(activation)
        else:
            _free(trace, activation)
    newer.ended = dropped.ended
    for key in newer.keys:
        if key in trace.variables:
            _supersede(trace, key, seen.variable, newer.marks.variable)
            dropped.keys.add(key)
    newer.keys = dropped.keys
    newer.task = newer.task or dropped.task
    if trace.window is not None:
        _let_go(trace, seen.message, newer.marks.message, trace.window)
    del trace.checkpoints[at]


def _let_go(trace: Trace, seen: int, mark: int, window: int) -> None:
    """Free what came after `seen` and before the window at `mark`; what is still read, with its last reader."""
    start = bisect_right(trace.history, seen, key=by_seq)
    end = max(count_to(trace.history, mark) - window, start)
    for row in trace.history[start:end]:
        if row.seq in trace.readers:
            trace.loose[row.seq] = row
    del trace.history[start:end]


def _free(trace: Trace, activation: Activation) -> None:
    seq = activation.planned.seq
    del trace.activations[seq]
    for command in trace.answers.pop(activation.now.id, {}).values():
        trace.commands.pop(command, None)
    for message in (activation.planned.message, *(arrival.message for arrival in trace.arrivals.pop(seq, ()))):
        if message in trace.readers:  # else it is history, none, or a forebear's, which the fork keeps pinned
            trace.readers[message] -= 1
            if not trace.readers[message]:
                del trace.readers[message]
                trace.loose.pop(message, None)


def _supersede(trace: Trace, key: str, seen: int, mark: int) -> None:
    """Free the rows of `key` above `seen` that the version visible at `mark` does not need."""
    rows = trace.variables[key]
    if not (end := count_to(rows, mark)):
        return  # what was visible there was a deletion that went already
    visible = rows[end - 1]
    start = bisect_right(rows, seen, key=by_seq)
    del rows[start : bisect_left(rows, visible.base, key=by_seq)]
    if visible.kind == "deleted" and rows[0] is visible and trace.parent is None:
        del rows[0]  # it hides nothing any more
        if not rows:
            del trace.variables[key]


def _cut(trace: Trace, last: Checkpoint) -> None:
    """Free all rows that came after the checkpoint `last`."""
    marks = last.marks
    trace.live.clear()
    del trace.history[count_to(trace.history, marks.message) :]
    del trace.steps[bisect_right(trace.steps, last.step, key=by_step) :]
    for seq in [seq for seq in trace.readers if seq > marks.message]:
        del trace.readers[seq]
        trace.loose.pop(seq, None)
    for seq in [seq for seq in trace.activations if seq > marks.activation]:
        del trace.activations[seq]
        trace.arrivals.pop(seq, None)
    for arrivals in trace.arrivals.values():
        del arrivals[count_to(arrivals, marks.arrival) :]
    for key, rows in list(trace.variables.items()):
        del rows[count_to(rows, marks.variable) :]
        if not rows:
            del trace.variables[key]
