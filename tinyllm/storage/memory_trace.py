"""One trace in memory: its rows, what a checkpoint sees of them, and what pruning frees.

Rows are kept as they came, by sequence number; nothing is ever copied to make a checkpoint. What pruning has to look
at is noted at the checkpoint whose delta ended or superseded it: dropping one costs what its neighbour changed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from operator import attrgetter

import attrs

from tinyllm.storage.contract import (
    ActivationRow,
    ArrivalRow,
    Counts,
    Delta,
    Marks,
    MessageRow,
    Status,
    StepRow,
    VariableRow,
)

_seq = attrgetter("seq")
_step = attrgetter("step")
_rev = attrgetter("rev")


@attrs.frozen(eq=False, weakref_slot=True)
class Definition:
    """A graph's definition, shared by all traces that have the same."""

    body: bytes


@attrs.define(eq=False)
class Activation:
    """`planned` is the row as it came, `now` as it has become. `fired`, `done`: the revs at which it did so."""

    planned: ActivationRow
    now: ActivationRow
    fired: int | None = None
    done: int | None = None


@attrs.define(eq=False)
class Checkpoint:
    """`ended` and `keys`: the activations that ended, and the variables that changed, since the checkpoint before it,
    as far as their rows are kept. `pins`: how many forks start here."""

    epoch: int
    rev: int
    step: int
    status: Status
    node: str | None
    marks: Marks
    counts: Counts
    created_at: float
    ended: list[Activation]
    keys: set[str]
    label: str | None = None
    pins: int = 0


@attrs.define(eq=False, kw_only=True)
class Trace:
    """A trace, or the tombstone of one. What is not above `floor` is the parent's, as it was at `parent_rev`."""

    key: int
    trace_id: str
    graph_id: str
    graph_version: str
    graph_path: str | None
    fingerprint: str
    definition: Definition
    task_digest: str
    owner: str | None
    created_at: float
    parent: Trace | None = None
    parent_rev: int | None = None
    parent_step: int | None = None
    floor: Marks = attrs.field(factory=Marks)
    epoch: int = 1
    rev: int = -1
    step: int = 0
    status: Status = "running"
    updated_at: float = 0.0
    error: bytes | None = None
    checkpoints: list[Checkpoint] = attrs.field(factory=list)
    history: list[MessageRow] = attrs.field(factory=list)
    loose: dict[int, MessageRow] = attrs.field(factory=dict)
    """Messages that are not history, by seq; and how many kept rows still read each:"""
    readers: dict[int, int] = attrs.field(factory=dict)
    activations: dict[int, Activation] = attrs.field(factory=dict)
    live: dict[int, Activation] = attrs.field(factory=dict)
    arrivals: defaultdict[int, list[ArrivalRow]] = attrs.field(factory=lambda: defaultdict(list))
    """By the round that they reached."""
    variables: defaultdict[str, list[VariableRow]] = attrs.field(factory=lambda: defaultdict(list))
    steps: list[StepRow] = attrs.field(factory=list)

    # -- writing -----------------------------------------------------------------------------------------------

    def add(self, delta: Delta, now: float) -> None:
        """Take over `delta`, as the checkpoint of the next rev."""
        rev = self.rev + 1
        for message in delta.messages:
            if message.history:
                self.history.append(message)
            elif message.consumers:
                self.loose[message.seq] = message
                self.readers[message.seq] = message.consumers
        for row in delta.activations:
            self.activations[row.seq] = self.live[row.seq] = Activation(row, row)
        for arrival in delta.arrivals:
            self.arrivals[arrival.activation].append(arrival)
        for fired in delta.fired:
            round_ = self.live[fired.activation]
            round_.fired = rev
            round_.now = attrs.evolve(round_.now, id=fired.id, depth=fired.depth, state="planned")
        for change in delta.changed:
            activation = self.live[change.activation]
            activation.now = attrs.evolve(
                activation.now, state=change.state, attempts=change.attempts, error=change.error
            )
        ended = [self.live.pop(seq) for seq in delta.ended]
        for activation in ended:
            activation.done = rev
        keys = set()
        for variable in delta.variables:
            self.variables[variable.key].append(variable)
            keys.add(variable.key)
        self.steps.extend(delta.steps)
        self.checkpoints.append(
            Checkpoint(
                self.epoch, rev, delta.step, delta.status, delta.node, delta.marks, delta.counts, now, ended, keys
            )
        )
        self.rev = rev
        self.step = delta.step
        self.status = delta.status
        self.error = delta.error
        self.updated_at = now

    # -- reading -----------------------------------------------------------------------------------------------

    def checkpoint(self, rev: int) -> Checkpoint | None:
        at = bisect_left(self.checkpoints, rev, key=_rev)
        return self.checkpoints[at] if at < len(self.checkpoints) and self.checkpoints[at].rev == rev else None

    def kept(self) -> str:
        """The steps whose checkpoints are kept, as ranges: `steps 0, 90-189`."""
        ranges: list[list[int]] = []
        for step in sorted({at.step for at in self.checkpoints}):
            if ranges and step == ranges[-1][-1] + 1:
                ranges[-1][1:] = [step]
            else:
                ranges.append([step])
        return "steps " + ", ".join("-".join(map(str, ends)) for ends in ranges)

    def frontier(self, at: Checkpoint) -> list[ActivationRow]:
        """By seq, as each was at the checkpoint."""
        if at is self.checkpoints[-1]:
            return sorted((activation.now for activation in self.live.values()), key=_seq)
        return [
            _as_it_was(activation, at.rev)
            for seq, activation in self.activations.items()
            if seq <= at.marks.activation and (activation.done is None or activation.done > at.rev)
        ]

    def arrived(self, frontier: list[ActivationRow], at: Checkpoint) -> list[ArrivalRow]:
        """What the rounds of `frontier` had collected at the checkpoint, by seq."""
        rows = [
            arrival for row in frontier for arrival in self.arrivals.get(row.seq, ()) if arrival.seq <= at.marks.arrival
        ]
        return sorted(rows, key=_seq)

    def message(self, seq: int) -> MessageRow:
        trace = self
        while seq <= trace.floor.message and trace.parent is not None:
            trace = trace.parent
        if (message := trace.loose.get(seq)) is None:
            message = trace.history[bisect_left(trace.history, seq, key=_seq)]
        return message

    def present(self, at: Checkpoint) -> dict[str, tuple[VariableRow, ...]]:
        """The variables of the checkpoint: each with the full row it starts from, and what was appended since."""
        found: dict[str, list[VariableRow]] = {}
        for trace, marks, _ in self._line(at):
            for key, rows in trace.variables.items():
                # A key that was found needs the older trace only if its chain starts there.
                chain = found.get(key)
                if chain is not None and chain[0].seq <= chain[-1].base:
                    continue
                end = _end(rows, marks.variable)
                if chain is None and end == 0:
                    continue
                base = chain[-1].base if chain else rows[end - 1].base
                start = bisect_left(rows, base, 0, end, key=_seq)
                found[key] = rows[start:end] + (chain or [])
        return {key: tuple(chain) for key, chain in found.items() if chain[-1].kind != "deleted"}

    def said(self, at: Checkpoint, after: int, limit: int) -> list[MessageRow]:
        """A page of the history at the checkpoint."""
        found: list[MessageRow] = []
        for trace, marks, _ in reversed(list(self._line(at))):
            start = bisect_right(trace.history, after, key=_seq)
            end = _end(trace.history, marks.message)
            found += trace.history[start : min(end, start + limit - len(found))]
        return found

    def finished(self, after: int, limit: int) -> list[StepRow]:
        """A page of the steps."""
        found: list[StepRow] = []
        for trace, _, step in reversed(list(self._line(self.checkpoints[-1]))):
            start = bisect_right(trace.steps, after, key=_step)
            end = bisect_right(trace.steps, step, key=_step)
            found += trace.steps[start : min(end, start + limit - len(found))]
        return found

    def _line(self, at: Checkpoint) -> Iterator[tuple[Trace, Marks, int]]:
        """This trace and its forebears, each with the marks and the step up to which it belongs to the checkpoint."""
        yield self, at.marks, at.step
        child = self
        while child.parent is not None and child.parent_step is not None:
            yield child.parent, child.floor, child.parent_step
            child = child.parent

    # -- freeing -----------------------------------------------------------------------------------------------

    def prune(self, keep: int, limit: int) -> int:
        """Drop at most `limit` checkpoints older than the newest `keep`; returns how many."""
        at, dropped = 1, 0
        while dropped < limit and at < len(self.checkpoints) - max(keep, 1):
            if self.checkpoints[at].pins or self.checkpoints[at].label is not None:
                at += 1
            else:
                self._drop(at)
                dropped += 1
        return dropped

    def bury(self) -> bool:
        """Free all that no fork shares; returns whether nothing at all is left."""
        while self.checkpoints and not self.checkpoints[-1].pins:
            self.checkpoints.pop()
        if not self.checkpoints:
            return True
        self._cut(self.checkpoints[-1])
        for at in reversed(range(len(self.checkpoints) - 1)):
            if not self.checkpoints[at].pins:
                self._drop(at)
        return False

    def unpin(self) -> Trace | None:
        """Give up what the parent keeps for this trace; returns the parent."""
        if self.parent and self.parent_rev is not None and (start := self.parent.checkpoint(self.parent_rev)):
            start.pins -= 1
        return self.parent

    def _drop(self, at: int) -> None:
        """Drop a checkpoint that is not the newest, and the rows that neither neighbour sees.

        An activation noted at the newer neighbour is seen by the older one or by nobody; the same goes for a variable's
        rows below the version that the newer one sees. What the dropped checkpoint had noted, the older neighbour sees,
        or it would not have been kept: so only the newer one's notes are looked at, and the notes move on to it.
        """
        seen = self.checkpoints[at - 1].marks if at else self.floor
        dropped, newer = self.checkpoints[at], self.checkpoints[at + 1]
        for activation in newer.ended:
            if activation.planned.seq <= seen.activation:
                dropped.ended.append(activation)
            else:
                self._free(activation)
        newer.ended = dropped.ended
        for key in newer.keys:
            if key in self.variables:
                self._supersede(key, seen.variable, newer.marks.variable)
                dropped.keys.add(key)
        newer.keys = dropped.keys
        del self.checkpoints[at]

    def _free(self, activation: Activation) -> None:
        seq = activation.planned.seq
        del self.activations[seq]
        for message in (activation.planned.message, *(arrival.message for arrival in self.arrivals.pop(seq, ()))):
            if message in self.readers:  # else it is history, none, or a forebear's, which the fork keeps pinned
                self.readers[message] -= 1
                if not self.readers[message]:
                    del self.readers[message], self.loose[message]

    def _supersede(self, key: str, seen: int, mark: int) -> None:
        """Free the rows of `key` above `seen` that the version visible at `mark` does not need."""
        rows = self.variables[key]
        if not (end := _end(rows, mark)):
            return  # what was visible there was a deletion that went already
        visible = rows[end - 1]
        start = bisect_right(rows, seen, key=_seq)
        del rows[start : bisect_left(rows, visible.base, key=_seq)]
        if visible.kind == "deleted" and rows[0] is visible and self.parent is None:
            del rows[0]  # it hides nothing any more
            if not rows:
                del self.variables[key]

    def _cut(self, last: Checkpoint) -> None:
        """Free all rows that came after the checkpoint `last`."""
        marks = last.marks
        self.live.clear()
        del self.history[_end(self.history, marks.message) :]
        del self.steps[bisect_right(self.steps, last.step, key=_step) :]
        for seq in [seq for seq in self.loose if seq > marks.message]:
            del self.loose[seq], self.readers[seq]
        for seq in [seq for seq in self.activations if seq > marks.activation]:
            del self.activations[seq]
            self.arrivals.pop(seq, None)
        for arrivals in self.arrivals.values():
            del arrivals[_end(arrivals, marks.arrival) :]
        for key, rows in list(self.variables.items()):
            del rows[_end(rows, marks.variable) :]
            if not rows:
                del self.variables[key]


def _end(rows: list[MessageRow] | list[VariableRow] | list[ArrivalRow], mark: int) -> int:
    """How many of `rows` are not above `mark`."""
    return len(rows) if rows and rows[-1].seq <= mark else bisect_right(rows, mark, key=_seq)


def _as_it_was(activation: Activation, rev: int) -> ActivationRow:
    if activation.planned.state == "buffered" and (activation.fired is None or activation.fired > rev):
        return activation.planned
    return attrs.evolve(activation.now, state="planned", attempts=0, error=None)
