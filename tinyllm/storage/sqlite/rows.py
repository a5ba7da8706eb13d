"""Rows on their way into the database: from deltas to tuples, and one statement per table for a whole batch."""

from __future__ import annotations

from typing import Any

import attrs

from tinyllm.storage.contract import TERMINAL, ActivationRow, Delta, StateChange
from tinyllm.storage.framing import Frame, checksum, encode
from tinyllm.storage.sqlite.commands import ANSWERED, CARRIED_OUT, OUTLIVED
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.schema import SHIFT

# ?7: how many messages the history has. One that lies before its window already is there for its readers only.
_MESSAGE = f"""
INSERT INTO messages (id, node, history, consumers, body, crc, held)
SELECT ?1, ?2, ?3, ?4, ?5, ?6, CASE WHEN ?3 > ?7 - history THEN key << {SHIFT} | ?3 END
FROM traces WHERE key = ?1 >> {SHIFT} AND (history IS NULL OR ?4 > 0 OR ?3 > ?7 - history)
"""
_ACTIVATION = """
INSERT INTO activations (id, hash, node, message, item, path, depth, state, attempts, fired_rev)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_ARRIVAL = "INSERT INTO arrivals (id, activation, message, hash, path, depth) VALUES (?, ?, ?, ?, ?, ?)"
_VARIABLE = "INSERT INTO variables (id, trace, key, kind, base, sort, body, crc) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_STEP = "INSERT INTO steps (id, activation, node, ended_at, duration_ms, attempts) VALUES (?, ?, ?, ?, ?, ?)"
_SAID = "UPDATE steps SET status = ? WHERE id = ?"
_CHECKPOINT = """
INSERT INTO checkpoints (id, epoch, step, status, node, message, activation, arrival, variable,
                         messages, frontier, arrivals, variables, created_at,
                         generation, generation_step, elapsed, tokens_in, tokens_out)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_TASK = "UPDATE checkpoints SET task = ? WHERE id = ?"
_LAST_TASK = f"UPDATE traces SET last_task = ? WHERE key = ? >> {SHIFT}"
_FIRED = """
UPDATE activations SET state = 'planned', fired_rev = ?, fired_hash = ?, fired_depth = ? WHERE id = ?
"""
_CHANGED = """
UPDATE activations SET state = ?, attempts = ?, error = ?, tries = ?, due = ?, progress = ?, asked = ? WHERE id = ?
"""
_ENDED = "UPDATE activations SET done_rev = ? WHERE id = ?"

Row = tuple[Any, ...]


@attrs.define(eq=False)
class Rows:
    """What a batch of deltas adds and changes, by table.

    What most rows do not have is written after them, for those that do: to bind a None costs more than to insert a row.
    """

    messages: list[Row] = attrs.field(factory=list)
    activations: list[Row] = attrs.field(factory=list)
    arrivals: list[Row] = attrs.field(factory=list)
    variables: list[Row] = attrs.field(factory=list)
    steps: list[Row] = attrs.field(factory=list)
    said: list[Row] = attrs.field(factory=list)
    checkpoints: list[Row] = attrs.field(factory=list)
    fired: list[Row] = attrs.field(factory=list)
    changed: list[Row] = attrs.field(factory=list)
    ended: list[Row] = attrs.field(factory=list)
    tasks: list[Row] = attrs.field(factory=list)
    consumed: list[Row] = attrs.field(factory=list)
    """Commands of either kind."""
    over: list[Row] = attrs.field(factory=list)
    """Traces that have ended."""

    def add(self, trace: int, epoch: int, rev: int, delta: Delta, now: float) -> None:
        """Take in `delta` as what the checkpoint `rev` of `trace` adds."""
        first = trace << SHIFT
        if delta.messages:
            self._add_messages(first, delta)
        for row in delta.activations:
            self.activations.append(
                (
                    first | row.seq,
                    row.id,
                    row.node,
                    row.message,
                    row.item,
                    path_text(row.path),
                    row.depth,
                    row.state,
                    row.attempts,
                    None if row.state == "buffered" else 0,
                )
            )
            if row.tries or (row.error, row.due, row.progress, row.asked) != (None, None, None, None):
                self._change(first | row.seq, row)
        for arrival in delta.arrivals:
            self.arrivals.append(
                (
                    first | arrival.seq,
                    first | arrival.activation,
                    arrival.message,
                    arrival.id,
                    path_text(arrival.path),
                    arrival.depth,
                )
            )
        for fired in delta.fired:
            self.fired.append((rev, fired.id, fired.depth, first | fired.activation))
        for change in delta.changed:
            self._change(first | change.activation, change)
        for activation in delta.ended:
            self.ended.append((rev, first | activation))
        for variable in delta.variables:
            crc = variable_checksum(
                first | variable.seq, variable.key, variable.kind, variable.base, variable.order, variable.body
            )
            self.variables.append(
                (
                    first | variable.seq,
                    trace,
                    variable.key,
                    variable.kind,
                    variable.base,
                    variable.order,
                    encode(variable.body),
                    crc,
                )
            )
        for step in delta.steps:
            self.steps.append(
                (
                    first | step.step,
                    step.activation,
                    step.node,
                    step.ended_at,
                    step.duration_ms,
                    step.attempts,
                )
            )
            if step.status is not None:
                self.said.append((step.status, first | step.step))
        for command in delta.consumed:
            self.consumed.append((command, trace))
        if delta.status in TERMINAL:
            self.over.append((trace,))
        marks, counts = delta.marks, delta.counts
        self.checkpoints.append(
            (
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
                delta.elapsed,
                delta.tokens_in,
                delta.tokens_out,
            )
        )
        if delta.task is not None:
            self.tasks.append((delta.task, first | rev))

    def _change(self, activation: int, to: ActivationRow | StateChange) -> None:
        self.changed.append(
            (to.state, to.attempts, frame(to.error), to.tries, to.due, frame(to.progress), frame(to.asked), activation)
        )

    def _add_messages(self, first: int, delta: Delta) -> None:
        ordinal = delta.counts.messages - sum(message.history for message in delta.messages)
        for message in delta.messages:
            place = None
            if message.history:
                ordinal += 1
                place = ordinal
            elif not message.consumers:
                continue  # nobody will ever read it, so nobody would ever prune it
            row = first | message.seq
            crc = message_checksum(row, message.node, place, message.consumers, message.body)
            self.messages.append(
                (row, message.node, place, message.consumers, encode(message.body), crc, delta.counts.messages)
            )

    def insert(self, connection: sqlite3.Connection) -> None:
        """Write everything, and be empty again."""
        statements = (
            (_MESSAGE, self.messages),
            (_ACTIVATION, self.activations),
            (_ARRIVAL, self.arrivals),
            (_FIRED, self.fired),
            (_CHANGED, self.changed),
            (_ENDED, self.ended),
            (_VARIABLE, self.variables),
            (_STEP, self.steps),
            (_SAID, self.said),
            (_CHECKPOINT, self.checkpoints),
            (_TASK, self.tasks),
            (_LAST_TASK, self.tasks),
            (ANSWERED, self.consumed),
            (CARRIED_OUT, self.consumed),
            (OUTLIVED, self.over),
        )
        for statement, rows in statements:
            if rows:
                connection.executemany(statement, rows)
        for _, rows in statements:
            rows.clear()


def frame(body: bytes | None) -> Frame | None:
    return None if body is None else encode(body)


def message_checksum(row: int, node: str, history: int | None, consumers: int, body: bytes) -> int:
    return checksum(body, row, node, history, consumers)


def variable_checksum(row: int, key: str, kind: str, base: int, order: bytes | None, body: bytes) -> int:
    return checksum(body, row, key, kind, base, order)


def path_text(path: tuple[int, ...]) -> str | None:
    return ".".join(map(str, path)) if path else None


def path_of(text: str | None) -> tuple[int, ...]:
    return tuple(map(int, text.split("."))) if text else ()
