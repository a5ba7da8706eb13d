"""Valid writes for tests, as the owner of a trace would build them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import attrs

from tinyllm.storage.contract import (
    Acquire,
    ActivationRow,
    ActivationState,
    Admit,
    Admitted,
    Append,
    ArrivalRow,
    Counts,
    Delta,
    Fired,
    Fork,
    Marks,
    MessageRow,
    Snapshot,
    StateChange,
    Status,
    StepRow,
    VariableRow,
    sum_of_changes,
)

DELETED = object()
"""As a variable's new value: the key goes."""


@attrs.frozen
class Item:
    """As a variable's new value: one item is appended."""

    body: bytes


class Writer:
    """Counts what the owner of a trace counts, and builds its deltas in order.

    Nodes whose name begins with `join` collect arrivals; all others are planned one by one.
    """

    def __init__(self, trace_id: str, owner: str | None = None, window: int | None = None) -> None:
        self.trace_id = trace_id
        self.owner = owner
        self.window = window
        """Of the history; with 0, none of its messages is one of it."""
        self.key = 0
        self.epoch = 0
        self.rev = -1
        self.step = 0
        self.marks = Marks()
        self.live: dict[int, ActivationRow] = {}
        self.rounds: dict[str, int] = {}
        """The open round of each join."""
        self.arrived: Counter[int] = Counter()
        """By live round, how many arrivals it has."""
        self.bases: dict[str, int] = {}
        self.changes: dict[str, int] = {}
        """By variable, the sum of the seqs of its rows."""
        self.history = 0
        self.generation = 1
        self.generation_step = 0
        self.elapsed = 0.0
        self.tokens_in = 0
        self.tokens_out = 0

    # -- whole writes ------------------------------------------------------------------------------------------

    def admit(self, *, graph_id: str = "g", definition: bytes = b"{}", **first: Any) -> Admit:
        first.setdefault("plan", ["a"])
        return Admit(
            trace_id=self.trace_id,
            graph_id=graph_id,
            graph_version="1.0.0",
            fingerprint="f",
            definition=definition,
            graph_path="/graphs/g.yaml",
            task_digest="digest",
            owner=self.owner,
            history=self.window,
            first=self.delta(**first),
        )

    def append(self, **what: Any) -> Append:
        return Append(self.trace_id, self.delta(**what))

    def acquire(self, owner: str, **graph: Any) -> Acquire:
        given = {"fingerprint": "f", "definition": b"{}", "graph_path": "/graphs/g.yaml"} | graph
        return Acquire(self.key, self.trace_id, self.epoch, owner, **given)

    def fork(
        self, snapshot: Snapshot, trace_id: str, owner: str | None = None, *, set: Iterable[tuple[str, object]] = ()
    ) -> tuple[Writer, Fork]:
        """A child that starts at `snapshot`, whose frontier it copies under new ids and numbers; and its creation."""
        child = Writer(trace_id, owner, self.window)
        child.rev, child.step, child.marks = snapshot.rev, snapshot.step, snapshot.marks
        child.history = snapshot.counts.messages
        child.generation, child.generation_step = snapshot.generation, snapshot.generation_step
        child.elapsed, child.tokens_in, child.tokens_out = snapshot.elapsed, snapshot.tokens_in, snapshot.tokens_out
        child.bases = {key: rows[0].seq for key, rows in snapshot.variables.items()}
        child.changes = {key: sum_of_changes([rows]) for key, rows in snapshot.variables.items()}
        marks = snapshot.marks
        renamed = {row.seq: marks.activation + at for at, row in enumerate(snapshot.frontier, 1)}
        rows = [
            attrs.evolve(row, seq=renamed[row.seq], id=row.id and identity(trace_id, renamed[row.seq]))
            for row in snapshot.frontier
        ]
        arrivals = [
            attrs.evolve(row, seq=marks.arrival + at, activation=renamed[row.activation], id=identity(trace_id, at))
            for at, row in enumerate(snapshot.arrivals, 1)
        ]
        child.live = {row.seq: row for row in rows}
        child.arrived.update(row.activation for row in arrivals)
        child.rounds = {row.node: row.seq for row in rows if row.state == "buffered"}
        child.marks = attrs.evolve(
            marks, activation=marks.activation + len(rows), arrival=marks.arrival + len(arrivals)
        )
        first = attrs.evolve(child.delta(body=None, set=set), activations=tuple(rows), arrivals=tuple(arrivals))
        return child, Fork(parent=self.key, rev=snapshot.rev, trace_id=trace_id, owner=owner, first=first)

    def admitted(self, outcome: object) -> Writer:
        """Take over what the store gave."""
        assert isinstance(outcome, Admitted), outcome
        self.key, self.epoch = outcome.trace, outcome.epoch
        assert outcome.rev == self.rev
        return self

    # -- deltas ------------------------------------------------------------------------------------------------

    def delta(
        self,
        *,
        end: int | None = None,
        plan: Sequence[str] = (),
        items: bool = False,
        arrive: Sequence[str] = (),
        awaited: Sequence[str] = (),
        fire: Iterable[str] = (),
        change: Iterable[tuple[int, ActivationState]] = (),
        set: Iterable[tuple[str, object]] = (),
        body: bytes | None = b"{}",
        history: bool = True,
        status: Status = "running",
        error: bytes | None = None,
        task: str | None = None,
        consumed: Sequence[int] = (),
    ) -> Delta:
        """The next delta: activation `end` finishes with a message of `body` (or none), from which `plan` follows and
        which arrives at the joins `arrive`; at those of `awaited` arrives nothing, those of `fire` fire. A `task`
        begins a generation."""
        self.rev += 1
        history = history and self.window != 0
        if task is not None:
            self.generation += 1
            self.generation_step = self.step
        node = self.live[end].node if end is not None else None
        messages: list[MessageRow] = []
        rows: list[ActivationRow] = []
        arrivals: list[ArrivalRow] = []
        fired: list[Fired] = []
        message: int | None = None
        readers = len(plan) + len(arrive)
        if body is not None and (history or readers):
            message = self.marks.message + 1
            self.history += history
            messages.append(MessageRow(message, node or "", readers, body, history))
        assert message is not None or not readers
        activation, arrival, variable = self.marks.activation, self.marks.arrival, self.marks.variable
        path, depth = (end or 0,), self.step + 1
        for index, name in enumerate(plan):
            activation += 1
            item = index if items else None
            rows.append(
                ActivationRow(activation, identity(self.trace_id, activation), name, message, item, path, depth)
            )
        for name, given in [(name, message) for name in arrive] + [(name, None) for name in awaited]:
            if name not in self.rounds:
                activation += 1
                self.rounds[name] = activation
                rows.append(ActivationRow(activation, b"", name, None, state="buffered"))
            arrival += 1
            arrivals.append(
                ArrivalRow(arrival, self.rounds[name], given, identity(self.trace_id, -arrival), path, depth)
            )
        self.arrived.update(row.activation for row in arrivals)
        self.live |= {row.seq: row for row in rows}
        for name in fire:
            seq = self.rounds.pop(name)
            fired.append(Fired(seq, identity(self.trace_id, seq), depth))
            self.live[seq] = attrs.evolve(self.live[seq], id=fired[-1].id, depth=depth, state="planned")
        changes = [_changed(seq, state, self.live[seq].attempts + 1) for seq, state in change]
        for new in changes:
            values = attrs.asdict(new)
            seq = values.pop("activation")
            self.live[seq] = attrs.evolve(self.live[seq], **values)
        variables: list[VariableRow] = []
        for key, value in set:
            variable += 1
            match value:
                case bytes():
                    self.bases[key] = self.changes[key] = variable
                    variables.append(VariableRow(variable, key, "full", variable, value))
                case Item():
                    self.changes[key] += variable
                    variables.append(
                        VariableRow(variable, key, "append", self.bases[key], value.body, b'[%d,[],0,"",0]' % variable)
                    )
                case _:
                    del self.bases[key], self.changes[key]
                    variables.append(VariableRow(variable, key, "deleted", variable, b""))
        steps: list[StepRow] = []
        if end is not None:
            del self.live[end], self.arrived[end]
            self.step += 1
            self.elapsed += 0.25
            self.tokens_in += 10 * end
            self.tokens_out += end
            said = "odd" if end % 2 else None
            steps.append(StepRow(self.step, end, node or "", 1000.0 + self.step, 1.5, 1 + end % 2, said))
        self.marks = Marks(message or self.marks.message, activation, arrival, variable)
        return Delta(
            trace=self.key,
            epoch=self.epoch,
            number=self.rev + 1,
            rev=self.rev,
            step=self.step,
            status=status,
            node=node,
            marks=self.marks,
            counts=Counts(
                self.history, len(self.live), self.arrived.total(), len(self.bases), sum(self.changes.values())
            ),
            messages=tuple(messages),
            activations=tuple(rows),
            arrivals=tuple(arrivals),
            fired=tuple(fired),
            changed=tuple(changes),
            ended=() if end is None else (end,),
            variables=tuple(variables),
            steps=tuple(steps),
            error=error,
            generation=self.generation,
            generation_step=self.generation_step,
            elapsed=self.elapsed,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            task=task,
            consumed=tuple(consumed),
            size=_size(messages, variables, rows, changes),
        )


def identity(trace_id: str, number: int) -> bytes:
    """16 bytes that no other pair gives in a test."""
    return (trace_id.encode()[-8:]).rjust(8, b"_") + number.to_bytes(8, "big", signed=True)


def _changed(activation: int, state: ActivationState, attempts: int) -> StateChange:
    progress, asked = b"[%d]" % attempts, b'["a question"]' if state == "paused" else None
    return StateChange(activation, state, attempts, b"error", attempts - 1, 2000.5 + attempts, progress, asked)


def merge(deltas: Sequence[Delta]) -> Delta:
    """One delta for several: the newest versions, the difference of the frontier, at the first one's rev."""
    born = {row.seq for delta in deltas for row in delta.activations}
    ended = [seq for delta in deltas for seq in delta.ended]
    brief = born & set(ended)
    rows = [row for delta in deltas for row in delta.activations if row.seq not in brief]
    arrivals = [row for delta in deltas for row in delta.arrivals if row.activation not in brief]
    messages = []
    for delta in deltas:
        for message in delta.messages:
            consumers = [row.message for row in rows].count(message.seq) + [row.message for row in arrivals].count(
                message.seq
            )
            if consumers or message.history:
                messages.append(attrs.evolve(message, consumers=consumers))
    newest = {row.key: row.base for delta in deltas for row in delta.variables}
    variables = [row for delta in deltas for row in delta.variables if row.seq >= newest[row.key]]
    gone = set(ended)
    changed = {row.activation: row for delta in deltas for row in delta.changed if row.activation not in gone}
    return attrs.evolve(
        deltas[-1],
        rev=deltas[0].rev,
        messages=tuple(messages),
        activations=tuple(rows),
        arrivals=tuple(arrivals),
        fired=tuple(row for delta in deltas for row in delta.fired if row.activation not in gone),
        changed=tuple(changed.values()),
        ended=tuple(seq for seq in ended if seq not in brief),
        variables=tuple(variables),
        steps=tuple(step for delta in deltas for step in delta.steps),
        task=next((delta.task for delta in reversed(deltas) if delta.task), None),
        consumed=tuple(command for delta in deltas for command in delta.consumed),
        size=_size(messages, variables, rows, tuple(changed.values())),
    )


def _size(
    messages: Iterable[MessageRow],
    variables: Iterable[VariableRow],
    rows: Iterable[ActivationRow],
    changes: Iterable[StateChange],
) -> int:
    bodies = [row.body for row in messages] + [row.body for row in variables]
    bodies += [body or b"" for row in rows for body in (row.progress, row.asked)]
    bodies += [body or b"" for change in changes for body in (change.progress, change.asked)]
    return sum(map(len, bodies))
