"""Rows on their way into the database: from deltas to values, and one statement per table for many of them.

SQLite works without the interpreter lock, and has to get it back after each statement: while a program keeps its event
loop busy, that takes far longer than to insert a row. `executemany` is a statement for each row in that regard.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import attrs

from tinyllm.storage.contract import TERMINAL, ActivationRow, Delta, StateChange
from tinyllm.storage.framing import Frame, encode
from tinyllm.storage.sqlite.commands import ANSWERED, CARRIED_OUT, OUTLIVED
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.schema import SHIFT
from tinyllm.storage.sqlite.seals import (
    CHECKPOINT,
    activation_seal,
    arrival_seal,
    checkpoint_seal,
    message_seal,
    notes_seal,
    seal,
    seal_trace,
    step_seal,
    variable_seal,
)

_AT_ONCE = 32
"""Rows of one statement. (Twenty-one columns of each are fewer than the 999 parameters that every SQLite takes.)"""

# The first line of a statement for many rows; `{rows}` is where their values go.
_MESSAGES = "INSERT INTO messages (id, node, history, consumers, body, crc, held) VALUES {rows}"
_ACTIVATIONS = """
INSERT INTO activations (id, hash, node, message, item, path, depth, state, attempts, crc, fired_rev, done_rev)
VALUES {rows}
"""
_ARRIVALS = "INSERT INTO arrivals (id, activation, message, hash, path, depth, crc) VALUES {rows}"
_VARIABLES = "INSERT INTO variables (id, trace, key, kind, base, sort, body, crc) VALUES {rows}"
_STEPS = "INSERT INTO steps (id, activation, node, ended_at, duration_ms, attempts, status, crc) VALUES {rows}"
_CHECKPOINTS = f"INSERT INTO checkpoints ({CHECKPOINT}, crc) VALUES {{rows}}"
_ENDED_ONE = "UPDATE activations SET done_rev = ? WHERE id = ?"
_ENDED = "UPDATE activations SET done_rev = v.column1 FROM (VALUES {rows}) AS v WHERE id = v.column2"

_TASK = "UPDATE checkpoints SET task = ?, notes_crc = ? WHERE id = ?"
_LAST_TASK = "UPDATE traces SET last_task = ? WHERE key = ?"
_FIRED = """
UPDATE activations SET state = 'planned', fired_rev = ?2, fired_hash = ?3, fired_depth = ?4, fired_crc = ?5
WHERE id = ?1
"""
_CHANGED = """
UPDATE activations SET
    state = ?2, attempts = ?3, error = ?4, tries = ?5, due = ?6, progress = ?7, asked = ?8, changed_crc = ?9
WHERE id = ?1
"""

Row = tuple[Any, ...]
Values = list[Any]
"""Of rows of one width, one after the other: a tuple for each would be taken apart again at once."""


@attrs.define(eq=False)
class Rows:
    """What a batch of deltas adds and changes, by table.

    What most rows do not have is written after them, for those that do: to bind a None costs more than to insert a row.
    """

    messages: Values = attrs.field(factory=list)
    activations: Values = attrs.field(factory=list)
    done: dict[int, int] = attrs.field(factory=dict)
    """By id, where among the values of `activations` it says when it ended: what the batch itself ends is written as
    ended, and never stands in the index of what lives."""
    arrivals: Values = attrs.field(factory=list)
    variables: Values = attrs.field(factory=list)
    steps: Values = attrs.field(factory=list)
    checkpoints: Values = attrs.field(factory=list)
    fired: list[Row] = attrs.field(factory=list)
    changed: list[Row] = attrs.field(factory=list)
    ended: Values = attrs.field(factory=list)
    tasks: list[Row] = attrs.field(factory=list)
    last_tasks: list[tuple[str, int]] = attrs.field(factory=list)
    consumed: list[Row] = attrs.field(factory=list)
    """Commands of either kind."""
    over: list[Row] = attrs.field(factory=list)
    """Traces that have ended."""

    def add(self, trace: int, epoch: int, rev: int, delta: Delta, now: float, window: int | None) -> None:
        """Take in `delta` as what the checkpoint `rev` of `trace` adds; `window`: how many messages of its history are
        kept, None for all."""
        first = trace << SHIFT
        if delta.messages:
            self._add_messages(first, delta, window)
        for row in delta.activations:
            id_, path, buffered = first | row.seq, path_text(row.path) if row.path else None, row.state == "buffered"
            self.activations += (
                id_,
                bytearray(row.id),
                row.node,
                row.message,
                row.item,
                path,
                row.depth,
                row.state,
                row.attempts,
                activation_seal(id_, row.id, row.node, row.message, row.item, path, row.depth, buffered),
                None if buffered else 0,
                None,
            )
            self.done[id_] = len(self.activations) - 1
            added = (row.error, row.due, row.progress, row.asked) != (None, None, None, None)
            if added or row.attempts or row.tries or (row.state != "planned" and not buffered):
                self._change(id_, row)
        for arrival in delta.arrivals:
            id_, round_, path = first | arrival.seq, first | arrival.activation, path_text(arrival.path)
            crc = arrival_seal(id_, round_, arrival.message, arrival.id, path, arrival.depth)
            self.arrivals += (id_, round_, arrival.message, bytearray(arrival.id), path, arrival.depth, crc)
        for fired in delta.fired:
            firing = (first | fired.activation, rev, fired.id, fired.depth)
            self.fired.append((*firing, seal(firing)))
        for change in delta.changed:
            self._change(first | change.activation, change)
        for activation in delta.ended:
            at = self.done.get(first | activation)
            if at is None:
                self.ended += (rev, first | activation)
            else:
                self.activations[at] = rev
        for variable in delta.variables:
            id_ = first | variable.seq
            crc = variable_seal(id_, variable.key, variable.kind, variable.base, variable.order, variable.body)
            self.variables += (
                id_,
                trace,
                variable.key,
                variable.kind,
                variable.base,
                variable.order,
                encode(variable.body),
                crc,
            )
        for step in delta.steps:
            ended = (
                first | step.step,
                step.activation,
                step.node,
                step.ended_at,
                step.duration_ms,
                step.attempts,
                step.status,
            )
            self.steps += (*ended, step_seal(*ended))
        for command in delta.consumed:
            self.consumed.append((command, trace))
        if delta.status in TERMINAL:
            self.over.append((trace,))
        marks, counts = delta.marks, delta.counts
        checkpoint = (
            first | rev,
            epoch,
            delta.step,
            delta.status,
            delta.node,
            marks.message,
            marks.activation,
            marks.arrival,
            marks.variable,
            counts.messages,
            counts.frontier,
            counts.arrivals,
            counts.variables,
            now,
            delta.generation,
            delta.generation_step,
            float(delta.elapsed),
            delta.tokens_in,
            delta.tokens_out,
            counts.changes,
        )
        self.checkpoints += (*checkpoint, checkpoint_seal(*checkpoint))
        if delta.task is not None:
            self.tasks.append((delta.task, notes_seal(first | rev, None, delta.task, 0), first | rev))
            self.last_tasks.append((delta.task, trace))

    def _change(self, activation: int, to: ActivationRow | StateChange) -> None:
        due = None if to.due is None else float(to.due)
        values = (
            *(activation, to.state, to.attempts, frame(to.error), to.tries, due),
            *(frame(to.progress), frame(to.asked)),
        )
        self.changed.append((*values, seal(values)))

    def _add_messages(self, first: int, delta: Delta, window: int | None) -> None:
        ordinal = delta.counts.messages
        for message in delta.messages:
            ordinal -= message.history
        for message in delta.messages:
            place = None
            if message.history:
                ordinal += 1
                place = ordinal
            elif not message.consumers:
                continue  # nobody will ever read it, so nobody would ever prune it
            held = None
            if window is not None and place is not None and place > delta.counts.messages - window:
                held = first | place
            elif window is not None and not message.consumers:
                continue  # it lies before its window already, where it would be for its readers only
            row = first | message.seq
            crc = message_seal(row, message.node, place, message.consumers, message.body)
            self.messages += (row, message.node, place, message.consumers, encode(message.body), crc, held)

    def insert(self, connection: sqlite3.Connection) -> None:
        """Write everything, and be empty again."""
        execute_all(connection, _MESSAGES, self.messages, 7, nullable=(2, 6))
        execute_all(connection, _ACTIVATIONS, self.activations, 12, nullable=(3, 4, 5, 10, 11))
        execute_all(connection, _ARRIVALS, self.arrivals, 7, nullable=(2, 4))
        execute_all(connection, _ENDED, self.ended, 2, one=_ENDED_ONE)
        execute_all(connection, _VARIABLES, self.variables, 8, nullable=(5,))
        execute_all(connection, _STEPS, self.steps, 8, nullable=(6,))
        execute_all(connection, _CHECKPOINTS, self.checkpoints, 21, nullable=(4, 19))
        statements = (
            (_FIRED, self.fired),
            (_CHANGED, self.changed),
            (_TASK, self.tasks),
            (_LAST_TASK, self.last_tasks),
            (ANSWERED, self.consumed),
            (CARRIED_OUT, self.consumed),
            (OUTLIVED, self.over),
        )
        for statement, rows in statements:
            if rows:
                connection.executemany(statement, rows)
        for _, trace in self.last_tasks:
            seal_trace(connection, trace)
        inserted = (self.messages, self.activations, self.arrivals, self.ended, self.variables, self.steps)
        for values in (*inserted, self.checkpoints):
            values.clear()
        self.done.clear()
        for _, rows in statements:
            rows.clear()


def execute_all(
    connection: sqlite3.Connection,
    statement: str,
    values: Values,
    width: int,
    *,
    nullable: tuple[int, ...] = (),
    one: str | None = None,
) -> list[Row]:
    """Execute `statement`, in which `{rows}` stands for the values of many rows, for the rows of `width` columns whose
    values are `values`; what it returns. `one` does the same for a single row: SQLite makes a table of the values of an
    UPDATE first.

    A column of `nullable` that is None in all of them is not bound: to bind a None, or bytes, takes Python's module
    longer than it takes SQLite to insert a row. (A bytearray is as quick as a text.)
    """
    if one is not None and len(values) == width:
        return connection.execute(one, values).fetchall()
    found: list[Row] = []
    for at in range(0, len(values), _AT_ONCE * width):
        some = values[at : at + _AT_ONCE * width]
        rows = len(some) // width
        empty = tuple(column for column in nullable if some[column::width].count(None) == rows)
        for left, column in enumerate(reversed(empty)):
            del some[column :: width - left]
        found += connection.execute(_for(statement, rows, width, empty), some)
    return found


@lru_cache(maxsize=512)
def _for(statement: str, rows: int, columns: int, empty: tuple[int, ...]) -> str:
    row = f"({', '.join('NULL' if column in empty else '?' for column in range(columns))})"
    return statement.format(rows=", ".join([row] * rows))


def frame(body: bytes | None) -> Frame | None:
    return None if body is None else encode(body)


def path_text(path: tuple[int, ...]) -> str | None:
    return ".".join(map(str, path)) if path else None


def path_of(text: str | None) -> tuple[int, ...]:
    return tuple(map(int, text.split("."))) if text else ()
