"""Loading the state at a checkpoint, and the history that led to it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import attrs

from tinyllm.errors import CheckpointDamaged, TraceUnreadable
from tinyllm.storage.contract import (
    ActivationRow,
    ActivationState,
    ArrivalRow,
    Intact,
    MessageRow,
    Snapshot,
    TraceRecord,
    VariableRow,
    sum_of_changes,
)
from tinyllm.storage.framing import Frame
from tinyllm.storage.sqlite.read import Catalog, Point, Segment, unframed, verified
from tinyllm.storage.sqlite.rows import path_of
from tinyllm.storage.sqlite.schema import LAST, SHIFT
from tinyllm.storage.sqlite.seals import activation_seal, arrival_seal, message_seal, seal
from tinyllm.storage.sqlite.sense import sensible

_ACTIVATION = """
SELECT id, hash, node, message, item, path, depth, state, attempts, error,
       tries, due, progress, asked, fired_rev, fired_hash, fired_depth, done_rev, crc, changed_crc, fired_crc
FROM activations
"""
# Left to itself, SQLite would walk through all rows of the trace: it knows that `id` is the row's own.
_LIVE = f"{_ACTIVATION} INDEXED BY activations_live WHERE id BETWEEN ? AND ? AND done_rev IS NULL ORDER BY id"
_LIVED = f"{_ACTIVATION} WHERE id BETWEEN ? AND ? AND (done_rev IS NULL OR done_rev > ?) ORDER BY id"
_UNENDED = "SELECT node FROM activations WHERE id BETWEEN ? AND ? AND done_rev IS NULL ORDER BY id"
_ARRIVALS = "SELECT id, activation, message, hash, path, depth, crc FROM arrivals WHERE activation = ? AND id <= ?"
_MESSAGE = "SELECT id, node, history, consumers, body, crc FROM messages"
_ONE = f"{_MESSAGE} WHERE id = ?"
_HISTORY = f"{_MESSAGE} WHERE id BETWEEN ? AND ? AND history > ? ORDER BY id LIMIT ?"
_LAST_SAID = "SELECT history FROM messages WHERE id BETWEEN ? AND ? AND history IS NOT NULL ORDER BY id DESC LIMIT 1"
# From key to key by the index, without a look at the rows between: a key may have been set ten thousand times.
_SEEN = """
WITH RECURSIVE keys (key) AS (
    SELECT min(key) FROM variables WHERE trace = :trace
    UNION ALL
    SELECT (SELECT min(v.key) FROM variables v WHERE v.trace = :trace AND v.key > keys.key) FROM keys
    WHERE keys.key IS NOT NULL
)
SELECT v.key, v.id, v.kind, v.base FROM keys JOIN variables v ON v.id = (
    SELECT max(id) FROM variables w WHERE w.trace = :trace AND w.key = keys.key AND w.id <= :upto
)
"""
_CHAIN = """
SELECT id, key, kind, base, sort, body, crc FROM variables
WHERE trace = ? AND key = ? AND id BETWEEN ? AND ? ORDER BY id
"""


class Loader(Catalog):
    """Reads states. A fork's rows are its own and its forebears': `segments` tells whose are seen how far."""

    @sensible
    def load(self, trace_id: str, rev: int | None) -> Snapshot:
        record = self.found(trace_id)
        return self._load(record, self.point(record, rev))

    @sensible
    def _load(self, record: TraceRecord, point: Point) -> Snapshot:
        segments = self.segments(record, point)
        frontier = self._frontier(record, point, segments[0])
        if len(frontier) != point.counts.frontier:
            raise _short(record, point, "activations of the frontier", len(frontier), point.counts.frontier)
        arrivals = self._arrivals(frontier, point, record)
        if len(arrivals) != point.counts.arrivals:
            raise _short(record, point, "arrivals at joins", len(arrivals), point.counts.arrivals)
        variables = self._variables(record, point, segments)
        if len(variables) != point.counts.variables:
            raise _short(record, point, "variables", len(variables), point.counts.variables)
        if point.counts.changes not in (None, sum_of_changes(variables.values())):
            raise CheckpointDamaged(record.trace_id, point.step, "the newest change of a variable is missing")
        said = self._said(segments, point.marks.message)
        if said != point.counts.messages and point.counts.shown(record.history):
            raise _short(record, point, "messages of the history", said, point.counts.messages)
        read = {row.message for row in frontier} | {arrival.message for arrival in arrivals}
        return Snapshot(
            record=record,
            rev=point.rev,
            step=point.step,
            status=point.status,
            marks=point.marks,
            counts=point.counts,
            frontier=tuple(frontier),
            arrivals=tuple(arrivals),
            messages={seq: self._message(record, point, segments, seq) for seq in read if seq is not None},
            variables=variables,
            generation=point.generation,
            generation_step=point.generation_step,
            elapsed=point.elapsed,
            tokens_in=point.tokens_in,
            tokens_out=point.tokens_out,
        )

    def load_intact(self, trace_id: str) -> Intact:
        record = self.found(trace_id, forgiving=True)
        for rev in self.revs(record):
            with suppress(CheckpointDamaged):
                good = self._load(record, self.point(record, rev))
                first = record.trace << SHIFT
                span = (first | good.marks.activation) + 1, first | LAST
                return Intact(good, tuple(node for (node,) in self.connection.execute(_UNENDED, span)))
        raise TraceUnreadable(trace_id, None, "none of its checkpoints can be read")

    @sensible
    def messages(self, trace_id: str, rev: int | None, after: int, limit: int) -> list[MessageRow]:
        record = self.found(trace_id)
        point = self.point(record, rev)
        segments = self.segments(record, point)
        before = point.counts.messages - point.counts.shown(record.history)
        number = max(before, self._said(segments, min(after, point.marks.message)))
        after = max(after, before)  # a message's seq is not below its place in the history
        found: list[MessageRow] = []
        for part in reversed(segments):
            first = part.trace << SHIFT
            span = (first + max(part.low.message, after) + 1, first | part.high.message, before, limit - len(found))
            for row in self.connection.execute(_HISTORY, span):
                id_, node, history, consumers, frame, crc = row
                number += 1
                if history != number:
                    raise _lost(record, point, number)
                # What nearly every message is, without a call for each thing that could be wrong with it.
                body = frame.encode() if type(frame) is str else None
                if body is not None and message_seal(id_, node, history, consumers, body) == crc:
                    found.append(MessageRow(id_ & LAST, node, consumers, body))
                else:
                    found.append(_message_row(row, record, point))
        if len(found) < limit and number != point.counts.messages:
            raise _lost(record, point, number + 1)
        return found

    # -- the frontier ------------------------------------------------------------------------------------------

    def _frontier(self, record: TraceRecord, point: Point, own: Segment) -> list[ActivationRow]:
        first = record.trace << SHIFT
        span = (first + own.low.activation + 1, first | point.marks.activation)
        if point.rev == record.rev:
            return [_activation(row, record, point) for row in self.connection.execute(_LIVE, span)]
        return [_activation(row, record, point) for row in self.connection.execute(_LIVED, (*span, point.rev))]

    def _arrivals(self, frontier: list[ActivationRow], point: Point, record: TraceRecord) -> list[ArrivalRow]:
        first = record.trace << SHIFT
        found = [
            _arrival(row, record, point)
            for round_ in frontier
            if round_.message is None
            for row in self.connection.execute(_ARRIVALS, (first | round_.seq, first | point.marks.arrival))
        ]
        found.sort(key=lambda arrival: arrival.seq)
        return found

    # -- messages ----------------------------------------------------------------------------------------------

    def _message(self, record: TraceRecord, point: Point, segments: list[Segment], seq: int) -> MessageRow:
        owner = next(part for part in segments if seq > part.low.message)
        row = self.connection.execute(_ONE, (owner.trace << SHIFT | seq,)).fetchone()
        if row is None:
            raise CheckpointDamaged(record.trace_id, point.step, f"message {seq} is missing")
        return _message_row(row, record, point)

    def _said(self, segments: list[Segment], upto: int) -> int:
        """How many messages the history has, up to the seq `upto`."""
        for part in segments:
            first = part.trace << SHIFT
            span = (first + part.low.message + 1, first | min(part.high.message, upto))
            row = self.connection.execute(_LAST_SAID, span).fetchone()
            if row is not None:
                return int(row[0])
        return 0

    # -- variables ---------------------------------------------------------------------------------------------

    def _variables(
        self, record: TraceRecord, point: Point, segments: list[Segment]
    ) -> dict[str, tuple[VariableRow, ...]]:
        seen: dict[str, tuple[int, str, int]] = {}
        for at, part in enumerate(segments):
            if part.high.variable == part.low.variable:  # none was set there
                continue
            values = {"trace": part.trace, "upto": part.trace << SHIFT | part.high.variable}
            for key, _, kind, base in self.connection.execute(_SEEN, values):
                seen.setdefault(key, (at, kind, base))
        return {
            key: self._chain(record, point, segments, at, key, base)
            for key, (at, kind, base) in seen.items()
            if kind != "deleted"
        }

    def _chain(
        self, record: TraceRecord, point: Point, segments: list[Segment], at: int, key: str, base: int
    ) -> tuple[VariableRow, ...]:
        rows: list[tuple[Any, ...]] = []
        for part in segments[at:]:
            first = part.trace << SHIFT
            span = (first | max(base, part.low.variable + 1), first | part.high.variable)
            rows[:0] = self.connection.execute(_CHAIN, (part.trace, key, *span)).fetchall()
            if base > part.low.variable:
                break
        chain = tuple(_variable_row(row, record, point) for row in rows)
        if not chain or chain[0].kind != "full":
            raise CheckpointDamaged(record.trace_id, point.step, f"the start of variable {key!r} is missing")
        return chain


def _activation(row: tuple[Any, ...], record: TraceRecord, point: Point) -> ActivationRow:
    id_, hash_, node, message, item, path, depth, state, attempts, error, tries, due, progress, asked, *later = row
    fired, fired_hash, fired_depth, done, crc, changed_crc, fired_crc = later
    change = (id_, state, attempts, error, tries, due, progress, asked)
    plain = ("buffered" if fired is None else "planned", 0, None, 0, None, None, None)
    firing = (id_, fired, fired_hash, fired_depth)
    if (
        crc != activation_seal(id_, hash_, node, message, item, path, depth, fired != 0)
        or (changed_crc != seal(change) and (changed_crc is not None or change[1:] != plain))
        or fired_crc != (seal(firing) if fired else None)
        or (done is not None and done <= point.rev)  # an index led here
    ):
        what = f"activation {id_ & LAST}, of node {node!r}, does not say what was written"
        raise CheckpointDamaged(record.trace_id, point.step, what)
    state_then: ActivationState
    if fired is None or fired > point.rev:
        state_then = "buffered"
    else:
        state_then = "planned"
        if fired:
            hash_, depth = fired_hash, fired_depth
    then = ActivationRow(id_ & LAST, hash_, node, message, item, path_of(path), depth, state_then)
    if point.rev != record.rev:
        return then

    def body(frame: Frame | None, what: str) -> bytes | None:
        return None if frame is None else unframed(frame, record.trace_id, point.step, f"the {what} of node {node!r}")

    return attrs.evolve(
        then,
        state=state,
        attempts=attempts,
        error=body(error, "error"),
        tries=tries,
        due=due,
        progress=body(progress, "progress"),
        asked=body(asked, "questions"),
    )


def _arrival(row: tuple[Any, ...], record: TraceRecord, point: Point) -> ArrivalRow:
    id_, activation, message, hash_, path, depth, crc = row
    if crc != arrival_seal(id_, activation, message, hash_, path, depth):
        what = f"arrival {id_ & LAST} at a join does not say what was written"
        raise CheckpointDamaged(record.trace_id, point.step, what)
    return ArrivalRow(id_ & LAST, activation & LAST, message, hash_, path_of(path), depth)


def _message_row(row: tuple[Any, ...], record: TraceRecord, point: Point) -> MessageRow:
    id_, node, history, consumers, frame, crc = row
    seq = id_ & LAST
    body = verified(frame, crc, (id_, node, history, consumers), record.trace_id, point.step, f"message {seq}")
    return MessageRow(seq, node, consumers, body, history is not None)


def _variable_row(row: tuple[Any, ...], record: TraceRecord, point: Point) -> VariableRow:
    id_, key, kind, base, order, frame, crc = row
    what = f"variable {key!r}, change {id_ & LAST}"
    body = verified(frame, crc, (id_, key, kind, base, order), record.trace_id, point.step, what)
    return VariableRow(id_ & LAST, key, kind, base, body, order)


def _short(record: TraceRecord, point: Point, what: str, found: int, expected: int) -> CheckpointDamaged:
    return CheckpointDamaged(record.trace_id, point.step, f"it has {found} {what} where {expected} were written")


def _lost(record: TraceRecord, point: Point, number: int) -> CheckpointDamaged:
    return CheckpointDamaged(record.trace_id, point.step, f"message {number} of the history is missing")
