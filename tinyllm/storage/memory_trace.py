"""One trace in memory: its rows, and what a checkpoint sees of them.

Rows are kept as they came, by sequence number; nothing is ever copied to make a checkpoint. What pruning has to look
at is noted at the checkpoint whose delta ended or superseded it: dropping one costs what its neighbour changed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from operator import attrgetter

import attrs

from tinyllm.errors import AlreadyAnswered, TraceEnded
from tinyllm.graph.values import digest
from tinyllm.storage.contract import (
    TERMINAL,
    ActivationRow,
    ArrivalRow,
    Command,
    Counts,
    Delta,
    Leave,
    Left,
    Marks,
    MessageRow,
    Status,
    StepRow,
    VariableRow,
)
from tinyllm.storage.memory_leases import Lease

by_seq = attrgetter("seq")
by_step = attrgetter("step")
_rev = attrgetter("rev")


@attrs.frozen(eq=False, weakref_slot=True)
class Definition:
    """A graph's definition, shared by all traces that have the same."""

    body: bytes
    digest: str = attrs.field(init=False)

    @digest.default
    def _digest(self) -> str:
        return digest(self.body)


@attrs.define(eq=False)
class Activation:
    """`planned` is the row as it came, `now` as it has become. `fired`, `done`: the revs at which it did so."""

    planned: ActivationRow
    now: ActivationRow
    fired: int | None = None
    done: int | None = None


@attrs.define(eq=False)
class Checkpoint:
    """`ended`, `keys` and `task`: the activations that ended, the variables that changed, and the last task that was
    added, since the checkpoint before it, as far as their rows are kept. `pins`: how many forks start here."""

    epoch: int
    rev: int
    step: int
    status: Status
    node: str | None
    marks: Marks
    counts: Counts
    generation: int
    generation_step: int
    elapsed: float
    tokens_in: int
    tokens_out: int
    created_at: float
    ended: list[Activation]
    keys: set[str]
    task: str | None
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
    last_task: str
    window: int | None
    """How many messages of the history are kept; None: all."""
    owner: str | None
    created_at: float
    priority: int = 0
    due: float | None = None
    """UTC seconds before which it is not to be claimed."""
    apart: bool = False
    died: Lease | None = None
    """Of the owner at whose death it was taken away from it, until it has another one."""
    deaths: bytes | None = None
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
    """Messages that are not history, or not any more, by seq."""
    readers: dict[int, int] = attrs.field(factory=dict)
    """By seq, how many kept rows still read a message that is loose, or may come to be."""
    activations: dict[int, Activation] = attrs.field(factory=dict)
    live: dict[int, Activation] = attrs.field(factory=dict)
    arrivals: defaultdict[int, list[ArrivalRow]] = attrs.field(factory=lambda: defaultdict(list))
    """By the round that they reached."""
    variables: defaultdict[str, list[VariableRow]] = attrs.field(factory=lambda: defaultdict(list))
    steps: list[StepRow] = attrs.field(factory=list)
    commands: dict[int, Command] = attrs.field(factory=dict)
    """What was left and not yet consumed, by id."""
    answers: defaultdict[bytes | None, dict[str | None, int]] = attrs.field(factory=lambda: defaultdict(dict))
    """By activation and question, the command that is its answer, consumed or not."""

    # -- writing -----------------------------------------------------------------------------------------------

    def add(self, delta: Delta, now: float) -> None:
        """Take over `delta`, as the checkpoint of the next rev."""
        rev = self.rev + 1
        said = [message for message in delta.messages if message.history]
        held = said if self.window is None else said[max(len(said) - self.window, 0) :]
        self.history += held
        for message in delta.messages:
            if message.consumers and not (message.history and self.window is None):
                self.readers[message.seq] = message.consumers
                if not (message.history and held and message.seq >= held[0].seq):
                    self.loose[message.seq] = message
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
            activation.now = change.applied_to(activation.now)
        ended = [self.live.pop(seq) for seq in delta.ended]
        for activation in ended:
            activation.done = rev
        keys = set()
        for variable in delta.variables:
            self.variables[variable.key].append(variable)
            keys.add(variable.key)
        self.steps.extend(delta.steps)
        for command in delta.consumed:
            self.commands.pop(command, None)
        if delta.status in TERMINAL:
            self._outlive_commands()
        self.checkpoints.append(
            Checkpoint(
                epoch=self.epoch,
                rev=rev,
                step=delta.step,
                status=delta.status,
                node=delta.node,
                marks=delta.marks,
                counts=delta.counts,
                generation=delta.generation,
                generation_step=delta.generation_step,
                elapsed=delta.elapsed,
                tokens_in=delta.tokens_in,
                tokens_out=delta.tokens_out,
                created_at=now,
                ended=ended,
                keys=keys,
                task=delta.task,
            )
        )
        self.last_task = delta.task or self.last_task
        self.rev = rev
        self.step = delta.step
        self.status = delta.status
        self.error = delta.error
        self.updated_at = now

    def quarantine(self, error: bytes) -> None:
        """Take it out of service, if it was going on."""
        if self.status in ("queued", "running"):
            self.status, self.error, self.due = "quarantined", error, None
            self._outlive_commands()

    def leave(self, write: Leave, number: int, now: float) -> Left | AlreadyAnswered | TraceEnded:
        """Leave a command, as that of the id `number` if there is none like it."""
        if self.status in TERMINAL:
            return TraceEnded(self.trace_id, self.status)
        if write.kind == "answer":
            if self.answers[write.activation].setdefault(write.name, number) != number:
                return AlreadyAnswered(self.trace_id, write.name or "")
        else:
            for command in self.commands.values():
                if command.kind == write.kind:
                    return Left(command.id)
        self.commands[number] = Command(number, self.key, write.kind, write.activation, write.name, write.body, now)
        return Left(number)

    def _outlive_commands(self) -> None:
        self.commands = {number: left for number, left in self.commands.items() if left.kind == "answer"}

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
            return sorted((activation.now for activation in self.live.values()), key=by_seq)
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
        return sorted(rows, key=by_seq)

    def message(self, seq: int) -> MessageRow:
        trace = self
        while seq <= trace.floor.message and trace.parent is not None:
            trace = trace.parent
        if (message := trace.loose.get(seq)) is None:
            message = trace.history[bisect_left(trace.history, seq, key=by_seq)]
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
                end = count_to(rows, marks.variable)
                if chain is None and end == 0:
                    continue
                base = chain[-1].base if chain else rows[end - 1].base
                start = bisect_left(rows, base, 0, end, key=by_seq)
                found[key] = rows[start:end] + (chain or [])
        return {key: tuple(chain) for key, chain in found.items() if chain[-1].kind != "deleted"}

    def said(self, at: Checkpoint, after: int, limit: int) -> list[MessageRow]:
        """A page of the history at the checkpoint."""
        parts = []
        shown = at.counts.shown(self.window)
        for trace, marks, _ in self._line(at):
            end = count_to(trace.history, marks.message)
            start = max(end - shown, 0)
            shown -= end - start
            parts.append((trace.history, start, end))
        found: list[MessageRow] = []
        for history, start, end in reversed(parts):
            start = max(start, bisect_right(history, after, key=by_seq))
            found += history[start : min(end, start + limit - len(found))]
        return found

    def task_at(self, rev: int) -> str:
        """The task that was last added to the history at the checkpoint of `rev`."""
        tasks = [at.task for at in self.checkpoints if at.rev <= rev and at.task is not None]
        return tasks[-1] if tasks else self.task_digest

    def finished(self, after: int, limit: int) -> list[StepRow]:
        """A page of the steps."""
        found: list[StepRow] = []
        for trace, _, step in reversed(list(self._line(self.checkpoints[-1]))):
            start = bisect_right(trace.steps, after, key=by_step)
            end = bisect_right(trace.steps, step, key=by_step)
            found += trace.steps[start : min(end, start + limit - len(found))]
        return found

    def _line(self, at: Checkpoint) -> Iterator[tuple[Trace, Marks, int]]:
        """This trace and its forebears, each with the marks and the step up to which it belongs to the checkpoint."""
        yield self, at.marks, at.step
        child = self
        while child.parent is not None and child.parent_step is not None:
            yield child.parent, child.floor, child.parent_step
            child = child.parent

    # -- forks -------------------------------------------------------------------------------------------------

    def unpin(self) -> Trace | None:
        """Give up what the parent keeps for this trace; returns the parent."""
        if self.parent and self.parent_rev is not None and (start := self.parent.checkpoint(self.parent_rev)):
            start.pins -= 1
        return self.parent


def count_to(rows: list[MessageRow] | list[VariableRow] | list[ArrivalRow], mark: int) -> int:
    """How many of `rows` are not above `mark`."""
    return len(rows) if rows and rows[-1].seq <= mark else bisect_right(rows, mark, key=by_seq)


def _as_it_was(activation: Activation, rev: int) -> ActivationRow:
    if activation.planned.state == "buffered" and (activation.fired is None or activation.fired > rev):
        return activation.planned
    row = activation.now
    return ActivationRow(row.seq, row.id, row.node, row.message, row.item, row.path, row.depth)
