"""A store as simple as can be: a full copy of everything at every rev. What the real ones must look like."""

from __future__ import annotations

from typing import Any

import attrs

from tinyllm.errors import CheckpointNotFound
from tinyllm.storage.contract import (
    TERMINAL,
    UNOWNED,
    ActivationRow,
    ArrivalRow,
    CheckpointRecord,
    CheckpointStorage,
    Command,
    Counts,
    Delta,
    Marks,
    MessageRow,
    Status,
    StepRow,
    VariableRow,
)


@attrs.frozen
class State:
    """All there is to know of a trace at one rev, with the frontier as it is presented later."""

    rev: int
    step: int
    status: Status
    node: str | None
    marks: Marks
    counts: Counts
    frontier: tuple[ActivationRow, ...]
    arrivals: tuple[ArrivalRow, ...]
    messages: dict[int, tuple[str, bytes]]
    history: tuple[tuple[int, str, bytes], ...]
    variables: dict[str, tuple[VariableRow, ...]]
    steps: tuple[StepRow, ...]
    task: str
    counters: tuple[int, int, float, int, int]


@attrs.define(eq=False)
class NaiveTrace:
    trace_id: str
    parent: NaiveTrace | None = None
    parent_rev: int | None = None
    parent_step: int = 0
    floor: Marks = attrs.field(factory=Marks)
    """What is not above it is the parent's."""
    window: int | None = None
    last_task: str = "digest"
    key: int = 0
    owner: str | None = None
    priority: int = 0
    later: bool = False
    """It is not to be claimed yet."""
    died: str | None = None
    """The owner that it was taken away from."""
    deaths: bytes | None = None
    apart: bool = False
    deleted: bool = False
    children: list[NaiveTrace] = attrs.field(factory=list)
    live: dict[int, ActivationRow] = attrs.field(factory=dict)
    ids: dict[int, bytes] = attrs.field(factory=dict)
    arrivals: dict[int, ArrivalRow] = attrs.field(factory=dict)
    messages: dict[int, MessageRow] = attrs.field(factory=dict)
    variables: dict[str, tuple[VariableRow, ...]] = attrs.field(factory=dict)
    steps: list[StepRow] = attrs.field(factory=list)
    status: Status = "running"
    error: bytes | None = None
    kept: dict[int, State] = attrs.field(factory=dict)
    labels: dict[int, str] = attrs.field(factory=dict)
    commands: dict[int, Command] = attrs.field(factory=dict)
    answered: set[tuple[bytes | None, str | None]] = attrs.field(factory=set)

    @property
    def rev(self) -> int:
        return max(self.kept)

    def apply(self, delta: Delta) -> None:
        self.live |= {row.seq: row for row in delta.activations}
        self.ids |= {row.seq: row.id for row in delta.activations} | {row.activation: row.id for row in delta.fired}
        self.arrivals |= {row.seq: row for row in delta.arrivals}
        self.messages |= {row.seq: row for row in delta.messages}
        for fired in delta.fired:
            self.live[fired.activation] = attrs.evolve(
                self.live[fired.activation], id=fired.id, depth=fired.depth, state="planned"
            )
        for change in delta.changed:
            values = attrs.asdict(change)
            seq = values.pop("activation")
            self.live[seq] = attrs.evolve(self.live[seq], **values)
        for seq in delta.ended:
            del self.live[seq]
        for row in delta.variables:
            before = self.variables.pop(row.key, ())
            if row.kind != "deleted":
                self.variables[row.key] = (*before, row) if row.kind == "append" else (row,)
        self.steps += delta.steps
        self.status, self.error = delta.status, delta.error
        self.last_task = delta.task or self.last_task
        for command in delta.consumed:
            self.commands.pop(command, None)
        if delta.status in TERMINAL:
            self.outlive_commands()
        if delta.status in UNOWNED:
            self.owner = None
        self.kept[delta.rev] = self._state(delta)

    def outlive_commands(self) -> None:
        self.commands = {key: left for key, left in self.commands.items() if left.kind == "answer"}

    @property
    def going_on(self) -> bool:
        return self.status in ("queued", "running")

    @property
    def waits(self) -> bool:
        return self.going_on and self.owner is None

    def taken(self, owner: str) -> None:
        """By whoever claims or acquires it."""
        self.owner, self.died, self.later = owner, None, False

    def disowned(self, deaths: bytes | None, apart: bool, error: bytes | None) -> None:
        self.owner, self.died = None, self.owner
        self.deaths, self.apart = deaths, apart
        if error is not None and self.going_on:
            self.status, self.error, self.later = "quarantined", error, False
            self.outlive_commands()

    def _state(self, delta: Delta) -> State:
        frontier = tuple(self.live[seq] for seq in sorted(self.live))
        arrivals = tuple(
            self.arrivals[seq] for seq in sorted(self.arrivals) if self.arrivals[seq].activation in self.live
        )
        read = {row.message for row in frontier} | {row.message for row in arrivals}
        return State(
            delta.rev,
            delta.step,
            delta.status,
            delta.node,
            delta.marks,
            delta.counts,
            tuple(
                row
                if row.state == "buffered"
                else ActivationRow(row.seq, row.id, row.node, row.message, row.item, row.path, row.depth)
                for row in frontier
            ),
            arrivals,
            {seq: (self.messages[seq].node, self.messages[seq].body) for seq in read if seq is not None},
            tuple((row.seq, row.node, row.body) for row in self._shown()),
            dict(self.variables),
            tuple(self.steps),
            self.last_task,
            (delta.generation, delta.generation_step, delta.elapsed, delta.tokens_in, delta.tokens_out),
        )

    def _shown(self) -> list[MessageRow]:
        history = [row for row in self.messages.values() if row.history]
        return history if self.window is None else history[max(len(history) - self.window, 0) :]

    def fork(self, rev: int, trace_id: str, owner: str | None, first: Delta) -> NaiveTrace:
        state = self.kept[rev]
        child = NaiveTrace(trace_id, self, rev, state.step, state.marks, self.window, state.task, owner=owner)
        child.priority = self.priority
        child.messages = {seq: row for seq, row in self.messages.items() if seq <= state.marks.message}
        child.variables = dict(state.variables)
        child.steps = list(state.steps)
        child.apply(first)
        self.children.append(child)
        return child

    def holds(self) -> bool:
        """Whether anything of it must be kept."""
        return not self.deleted or any(child.holds() for child in self.children)

    def pinned(self) -> set[int]:
        return {child.parent_rev for child in self.children if child.parent_rev is not None and child.holds()}

    def prune(self, keep: int, limit: int) -> int:
        candidates = sorted(self.kept)[1:-keep]
        dropped = [rev for rev in candidates if rev not in self.pinned() | self.labels.keys()][:limit]
        self._drop(dropped)
        return len(dropped)

    def stays(self, rev: int) -> bool:
        """Whether the checkpoint is in use."""
        return rev in {min(self.kept), max(self.kept)} | self.pinned()

    def drop(self, rev: int) -> None:
        self.labels.pop(rev, None)
        self._drop([rev])

    def _drop(self, revs: list[int]) -> None:
        before = self._activations()
        for rev in revs:
            del self.kept[rev]
        gone = before - self._activations()
        self.answered = {answer for answer in self.answered if answer[0] not in gone}
        self.commands = {key: left for key, left in self.commands.items() if left.activation not in gone}

    def _activations(self) -> set[bytes | None]:
        """The ids of those whose rows are kept: of a round, the one that it fired with."""
        return {self.ids[row.seq] for state in self.kept.values() for row in state.frontier}

    def census(self) -> dict[str, set[int]]:
        """The rows of its own, by seq, that a kept checkpoint, or a fork, needs."""
        states = [state for rev, state in self.kept.items() if not self.deleted or rev in self.pinned()]
        if not states:
            return {}
        newest = max(states, key=lambda state: state.rev)
        rows = {row.seq: row for state in states for row in state.frontier}
        arrivals = [row for row in self.arrivals.values() if row.activation in rows and row.seq <= newest.marks.arrival]
        messages = {row.message for row in rows.values()} | {row.message for row in arrivals}
        messages |= {seq for state in states for seq, _, _ in state.history}
        return {
            "messages": {seq for seq in messages if seq is not None and seq > self.floor.message},
            "activations": set(rows),
            "arrivals": {row.seq for row in arrivals},
            "variables": {
                row.seq
                for state in states
                for rows in state.variables.values()
                for row in rows
                if row.seq > self.floor.variable
            },
            "steps": {row.step for row in newest.steps if row.step > self.parent_step},
        }

    # -- comparison --------------------------------------------------------------------------------------------

    async def compare_newest(self, storage: CheckpointStorage) -> None:
        """The newest checkpoint, with what only it shows."""
        snapshot = await storage.load(self.trace_id)
        assert snapshot.frontier == tuple(self.live[seq] for seq in sorted(self.live))
        assert (snapshot.rev, snapshot.step) == (self.rev, self.kept[self.rev].step)
        record = snapshot.record
        assert (record.trace, record.trace_id, record.rev) == (self.key, self.trace_id, self.rev)
        assert (record.step, record.error, record.parent_rev) == (snapshot.step, self.error, self.parent_rev)
        assert (record.last_task, record.history) == (self.last_task, self.window)
        assert (record.owner.id if record.owner else None) == (self.owner or self.died)
        assert record.owner_alive is (self.owner is not None)
        assert (record.priority, record.not_before is not None) == (self.priority, self.later)
        assert (record.deaths, record.apart) == (self.deaths, self.apart)
        assert record.status == ("interrupted" if self.status == "running" and not self.owner else self.status)

    async def compare(self, storage: CheckpointStorage) -> None:
        """Everything, at every kept rev."""
        await self.compare_newest(storage)
        listed = await storage.checkpoints(self.trace_id, limit=10_000)
        assert [record.rev for record in listed] == sorted(self.kept, reverse=True)
        for record in listed:
            self._compare_listed(record)
            await self._compare_state(storage, self.kept[record.rev])
        await self._compare_found(storage)
        assert tuple(await storage.steps(self.trace_id)) == self.kept[self.rev].steps
        left = await storage.commands(trace=self.key)
        assert [attrs.evolve(command, created_at=0.0) for command in left] == list(self.commands.values())

    def _compare_listed(self, record: CheckpointRecord) -> None:
        state = self.kept[record.rev]
        assert (record.id, record.trace_id) == (f"{self.trace_id}@{state.rev}", self.trace_id)
        named = self.labels.get(state.rev, state.node)
        assert (record.step, record.status, record.node_id) == (state.step, state.status, named)
        assert (record.message_count, record.frontier_count) == (len(state.history), state.counts.frontier)
        assert record.label == self.labels.get(state.rev)

    async def _compare_state(self, storage: CheckpointStorage, state: State) -> None:
        snapshot = await storage.load(self.trace_id, state.rev)
        assert (snapshot.rev, snapshot.step, snapshot.status) == (state.rev, state.step, state.status)
        assert (snapshot.marks, snapshot.counts) == (state.marks, state.counts)
        counters = snapshot.generation, snapshot.generation_step, snapshot.elapsed
        assert (*counters, snapshot.tokens_in, snapshot.tokens_out) == state.counters
        assert snapshot.counts.arrivals == len(state.arrivals)
        assert snapshot.arrivals == state.arrivals
        assert {seq: (row.node, row.body) for seq, row in snapshot.messages.items()} == state.messages
        assert dict(snapshot.variables) == state.variables
        if state.rev != self.rev:
            assert snapshot.frontier == state.frontier
        said = await storage.messages(self.trace_id, rev=state.rev, limit=10_000)
        assert tuple((row.seq, row.node, row.body) for row in said) == state.history
        for after in {row.seq for row in said[:1]} | {state.marks.message // 2}:
            assert (
                await storage.messages(self.trace_id, rev=state.rev, after=after, limit=2)
                == [row for row in said if row.seq > after][:2]
            )

    async def _compare_found(self, storage: CheckpointStorage) -> None:
        """What is found by step and by node, or by neither."""
        for step in range(self.kept[self.rev].step + 2):
            await self._compare_find(storage, [state for state in self.kept.values() if state.step == step], step=step)
        for node in ("a", "b", "join1"):
            states = [
                state
                for state in self.kept.values()
                if any(row.node == node and row.state != "buffered" for row in state.frontier)
            ]
            await self._compare_find(storage, states, node=node)

    async def _compare_find(self, storage: CheckpointStorage, states: list[State], **what: Any) -> None:
        try:
            found = (await storage.find_checkpoint(self.trace_id, **what)).rev
        except CheckpointNotFound:
            found = None
        assert found == max((state.rev for state in states), default=None)
