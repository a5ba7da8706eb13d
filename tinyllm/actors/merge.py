"""Neighbouring deltas as one: what was born and died in between is never written."""

from __future__ import annotations

import attrs

from tinyllm.storage.contract import (
    ActivationRow,
    ArrivalRow,
    Delta,
    Fired,
    MessageRow,
    StateChange,
    StepRow,
    VariableRow,
)


class Merged:
    """Deltas of one trace and epoch, one after the other, on their way to become one. To add one costs what it holds.

    Ended activations that none of them plans are kept as ended; of a variable only the rows that its newest version
    needs are kept; a message that is not history and whose readers have all gone is dropped.
    """

    def __init__(self, first: Delta) -> None:
        self._last = first
        self._messages: dict[int, MessageRow] = {}
        self._gone: dict[int, int] = {}
        """Of each message, how many of its readers will not be written."""
        self._activations: dict[int, ActivationRow] = {}
        self._arrivals: dict[int, list[ArrivalRow]] = {}
        """By the round that they reached."""
        self._fired: dict[int, Fired] = {}
        self._changed: dict[int, StateChange] = {}
        self._ended: list[int] = []
        self._variables: dict[str, list[VariableRow]] = {}
        self._steps: list[StepRow] = []
        self._task: str | None = None
        self._consumed: list[int] = []
        self.size = 0
        """Bytes of all bodies: of those that will be written, and perhaps of some messages that will not."""
        self.add(first)

    def add(self, delta: Delta) -> None:
        self._last = delta
        self.size += delta.size
        for message in delta.messages:
            self._messages[message.seq] = message
        for row in delta.activations:
            self._activations[row.seq] = row
        for arrival in delta.arrivals:
            self._arrivals.setdefault(arrival.activation, []).append(arrival)
        for fired in delta.fired:
            if (born := self._activations.get(fired.activation)) is None:
                self._fired[fired.activation] = fired
            else:
                fresh = attrs.evolve(born, id=fired.id, depth=fired.depth, state="planned")
                self._activations[fired.activation] = fresh
        for change in delta.changed:
            if (born := self._activations.get(change.activation)) is None:
                before = self._changed.pop(change.activation, None)
                self._changed[change.activation] = change
                self.size -= 0 if before is None else _state_size(before)
            else:
                self._activations[change.activation] = change.applied_to(born)
                self.size -= _state_size(born)
        for seq in delta.ended:
            self._end(seq)
        for variable in delta.variables:
            self._set(variable)
        self._steps += delta.steps
        self._task = delta.task or self._task
        self._consumed += delta.consumed

    def _end(self, seq: int) -> None:
        born = self._activations.pop(seq, None)
        if born is None:
            self._ended.append(seq)
            self._fired.pop(seq, None)
            if (change := self._changed.pop(seq, None)) is not None:
                self.size -= _state_size(change)
            return
        self.size -= _state_size(born)
        self._read(born.message)
        for arrival in self._arrivals.pop(seq, ()):
            self._read(arrival.message)

    def _read(self, message: int | None) -> None:
        """A reader of `message` has come and gone."""
        if message is not None and message in self._messages:
            self._gone[message] = self._gone.get(message, 0) + 1

    def _set(self, row: VariableRow) -> None:
        rows = self._variables.setdefault(row.key, [])
        if rows and rows[-1].base != row.base:  # what was written before is superseded
            self.size -= sum(len(before.body) for before in rows)
            rows.clear()
        rows.append(row)

    def delta(self) -> Delta:
        """What they have become, with the number of the last."""
        messages = []
        for row in self._messages.values():
            if gone := self._gone.get(row.seq):  # of a chain nearly every one: `evolve` takes as long as to merge it
                row = MessageRow(row.seq, row.node, row.consumers - gone, row.body, row.history)
            if row.history or row.consumers:
                messages.append(row)
        variables = sorted((row for rows in self._variables.values() for row in rows), key=lambda row: row.seq)
        planned, changed = tuple(self._activations.values()), tuple(self._changed.values())
        return attrs.evolve(
            self._last,
            messages=tuple(messages),
            activations=planned,
            arrivals=tuple(row for rows in self._arrivals.values() for row in rows),
            fired=tuple(self._fired.values()),
            changed=changed,
            ended=tuple(self._ended),
            variables=tuple(variables),
            steps=tuple(self._steps),
            task=self._task,
            consumed=tuple(self._consumed),
            size=sum(len(row.body) for row in messages)
            + sum(len(row.body) for row in variables)
            + sum(_state_size(row) for row in planned)
            + sum(_state_size(change) for change in changed),
        )


def _state_size(row: ActivationRow | StateChange) -> int:
    return len(row.progress or b"") + len(row.asked or b"")
