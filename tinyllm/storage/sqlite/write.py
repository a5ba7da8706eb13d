"""Carrying out writes, in the transaction that is open."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import assert_never

import attrs

from tinyllm.errors import CheckpointNotFound, OwnershipLost, TraceExists, TraceNotFound
from tinyllm.graph.values import digest
from tinyllm.storage.caps import answer_too_big, definition_too_big, too_big
from tinyllm.storage.contract import (
    UNOWNED,
    Acquire,
    Acquired,
    Acquit,
    Admit,
    Admitted,
    Append,
    Appended,
    Claim,
    Delete,
    Delta,
    Disown,
    Done,
    Drop,
    FallBack,
    Fork,
    Label,
    Leave,
    Outcome,
    Prune,
    Pruned,
    Release,
    Write,
)
from tinyllm.storage.framing import checksum, encode
from tinyllm.storage.sqlite import claims, commands, prune
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.read import kept
from tinyllm.storage.sqlite.rows import Rows, execute_all, frame
from tinyllm.storage.sqlite.schema import LAST, SHIFT
from tinyllm.storage.sqlite.seals import error_seal, note, seal_trace

_ADMIT = """
INSERT INTO traces (trace_id, graph_id, graph_version, graph_path, graph, fingerprint, task_digest, last_task,
                    history, status, epoch, owner, rev, step, created_at, updated_at, priority, due)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, 0, ?, ?, ?, ?, ?)
ON CONFLICT (trace_id) DO NOTHING
"""
# The last task is that of the checkpoint: the parent may have been given others since.
_FORK = f"""
INSERT INTO traces (trace_id, graph_id, graph_version, graph_path, graph, fingerprint, task_digest, last_task,
                    history, status, epoch, owner, rev, step, created_at, updated_at, priority,
                    parent, parent_rev, parent_step, low_message, low_activation, low_arrival, low_variable)
SELECT :trace_id, t.graph_id, t.graph_version, t.graph_path, t.graph, t.fingerprint, t.task_digest,
       coalesce(:task, (SELECT task FROM checkpoints WHERE id BETWEEN :parent << {SHIFT} AND :checkpoint
                        AND task IS NOT NULL ORDER BY id DESC LIMIT 1), t.task_digest),
       t.history, :status, 1, :owner, :rev + 1, :step, :now, :now, t.priority,
       t.key, :rev, c.step, c.message, c.activation, c.arrival, c.variable
FROM traces t JOIN checkpoints c ON c.id = :checkpoint WHERE t.key = :parent
ON CONFLICT (trace_id) DO NOTHING
"""
_LIVES = "SELECT 1 FROM traces WHERE key = ? AND trace_id IS NOT NULL"
# Epoch check, gap check and idempotence in one: a trace for which one of them fails is not among the keys returned.
# Two statements, so that the usual one leaves the index on owners alone.
_APPEND = """
UPDATE traces SET status = v.column1, step = v.column2, rev = v.column3, updated_at = v.column4, error = v.column5,
                  error_crc = v.column6
FROM (VALUES {rows}) AS v WHERE key = v.column7 AND epoch = v.column8 AND rev = v.column9 RETURNING key, history
"""
_APPEND_LAST = _APPEND.replace("error = v.column5", "error = v.column5, owner = NULL")
_APPEND_ONE = """
UPDATE traces SET status = ?, step = ?, rev = ?, updated_at = ?, error = ?, error_crc = ?
WHERE key = ? AND epoch = ? AND rev = ? RETURNING key, history
"""
_ACQUIRE = """
UPDATE traces SET epoch = epoch + 1, owner = ?, updated_at = ?, due = NULL, died = NULL
WHERE key = ? AND epoch = ? AND trace_id IS NOT NULL
RETURNING rev, graph, EXISTS (SELECT 1 FROM commands WHERE trace = traces.key AND consumed = 0)
"""
_REDEFINE = """
UPDATE traces SET status = 'running', error = NULL, error_crc = NULL, fingerprint = ?, graph = ?, graph_path = ?
WHERE key = ?
"""
_ERROR = "UPDATE traces SET error = ?, error_crc = ? WHERE key = ?"
_QUARANTINE = """
UPDATE traces SET trace_id = ?, status = 'quarantined', owner = NULL, died = NULL, epoch = epoch + 1,
                  updated_at = ?, error = ?, error_crc = ?
WHERE key = ?
"""
_NAMED = "SELECT 1 FROM traces WHERE trace_id = ?"
_RELEASE = "UPDATE traces SET owner = NULL, due = ?, updated_at = ? WHERE key = ? AND epoch = ?"
_POSITION = "SELECT epoch, rev FROM traces WHERE key = ?"
_WRITTEN = "SELECT epoch, step, message, activation, arrival, variable FROM checkpoints WHERE id = ?"
_LAST_TASK = "SELECT last_task, history FROM traces WHERE key = ?"
_DEFINE = "INSERT INTO graphs (digest, body, crc) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_RENEW = """
UPDATE owners SET beat = beat + 1, renewed_at = ?
WHERE id IN (SELECT owner FROM traces WHERE key IN (SELECT value FROM json_each(?)))
"""


Run = Sequence[tuple[int, Append]]
"""Deltas of one trace, each with its place in the batch."""


class Writing:
    """The writes of one transaction. Rows are gathered and inserted together; all else happens at once and in order."""

    def __init__(self, connection: sqlite3.Connection, store: str, now: float) -> None:
        self._connection = connection
        self._store = store
        self._now = now
        self._rows = Rows()
        self._digests: dict[bytes, bytes] = {}
        self._touched: set[int] = set()

    def carry_out(self, writes: Sequence[Write]) -> list[Outcome]:
        outcomes: list[Outcome] = [Done()] * len(writes)
        runs: dict[int, list[tuple[int, Append]]] = {}
        for place, write in enumerate(writes):
            if isinstance(write, Append):
                runs.setdefault(write.delta.trace, []).append((place, write))
                continue
            if runs and not isinstance(write, Admit):  # a trace is not appended to before it is admitted
                self._append_runs(runs, outcomes)
            if not isinstance(write, Admit):
                self._rows.insert(self._connection)
            outcomes[place] = self._carry_out(write)
        self._append_runs(runs, outcomes)
        self._rows.insert(self._connection)
        return outcomes

    def renew(self, boottime: float) -> None:
        """Renew the leases of the owners of all traces written."""
        self._connection.execute(_RENEW, (boottime, json.dumps(sorted(self._touched))))

    def _carry_out(
        self,
        write: Admit
        | Fork
        | FallBack
        | Acquire
        | Release
        | Claim
        | Disown
        | Acquit
        | Leave
        | Label
        | Drop
        | Prune
        | Delete,
    ) -> Outcome:
        match write:
            case Admit():
                return self._admit(write)
            case Fork():
                return self._fork(write)
            case FallBack():
                return self._fall_back(write)
            case Acquire():
                return self._acquire(write)
            case Release():
                self._connection.execute(_RELEASE, (write.not_before, self._now, write.trace, write.epoch))
                return Done()
            case Claim():
                claimed = claims.claim(self._connection, write, self._now)
                self._touched.update(held.trace for held in claimed.traces)
                return claimed
            case Disown():
                return claims.disown(self._connection, write, self._now)
            case Acquit():
                return claims.acquit(self._connection, write)
            case Leave():
                return self._leave(write)
            case Label():
                return self._label(write)
            case Drop():
                dropped = prune.drop(self._connection, write.trace, write.trace_id, row_id(write.trace, write.rev))
                return Pruned(dropped) if isinstance(dropped, int) else dropped
            case Prune():
                return Pruned(prune.prune(self._connection, write.trace, write.keep, write.limit))
            case Delete():
                prune.delete(self._connection, write.trace)
                return Done()
        assert_never(write)

    # -- new traces --------------------------------------------------------------------------------------------

    def _admit(self, write: Admit) -> Outcome:
        first = write.first
        if refused := too_big(first) or definition_too_big(write.definition):
            return refused
        digest = self._define(write.definition)
        cursor = self._connection.execute(
            _ADMIT,
            (
                write.trace_id,
                write.graph_id,
                write.graph_version,
                write.graph_path,
                digest,
                write.fingerprint,
                write.task_digest,
                write.task_digest,
                write.history,
                first.status,
                None if first.status in UNOWNED or first.status == "queued" else write.owner,
                first.step,
                self._now,
                self._now,
                write.priority,
                write.not_before,
            ),
        )
        if cursor.rowcount != 1:
            self._undefine(digest)
            return TraceExists(write.trace_id)
        return self._begin(cursor, 0, first, write.history)

    def _fork(self, write: Fork) -> Outcome:
        first = write.first
        if refused := too_big(first):
            return refused
        checkpoint = row_id(write.parent, write.rev)
        # Pinned first: that finds out whether it is there and whether its trace was deleted.
        if not self._note(write.parent, checkpoint, pins=1):
            return self._not_kept(write.parent, write.trace_id, write.rev)
        values = {
            "trace_id": write.trace_id,
            "task": first.task,
            "status": first.status,
            "owner": None if first.status in UNOWNED else write.owner,
            "rev": write.rev,
            "step": first.step,
            "now": self._now,
            "parent": write.parent,
            "checkpoint": checkpoint,
        }
        cursor = self._connection.execute(_FORK, values)
        if cursor.rowcount != 1:
            note(self._connection, checkpoint, pins=-1)
            return TraceExists(write.trace_id)
        task, window = self._connection.execute(_LAST_TASK, (cursor.lastrowid,)).fetchone()
        return self._begin(cursor, write.rev + 1, attrs.evolve(first, task=task), window)

    def _fall_back(self, write: FallBack) -> Outcome:
        if self._connection.execute(_POSITION, (write.trace,)).fetchone() != (write.epoch, write.reached):
            return OwnershipLost(write.trace_id)
        if self._connection.execute(_NAMED, (write.kept_as,)).fetchone() is not None:
            return TraceExists(write.kept_as)
        self._connection.execute("SAVEPOINT fall_back")  # half of it would leave nothing under the trace's own id
        error = frame(write.error)
        values = (write.kept_as, self._now, error, error_seal(write.trace, error), write.trace)
        self._connection.execute(_QUARANTINE, values)
        outcome = self._fork(write.fork)
        if isinstance(outcome, Admitted):
            seal_trace(self._connection, write.trace)
        else:
            self._connection.execute("ROLLBACK TO fall_back")
        self._connection.execute("RELEASE fall_back")
        return outcome

    def _begin(self, cursor: sqlite3.Cursor, rev: int, first: Delta, window: int | None) -> Admitted:
        trace = cursor.lastrowid or 0
        seal_trace(self._connection, trace)
        if (error := frame(first.error)) is not None:
            self._connection.execute(_ERROR, (error, error_seal(trace, error), trace))
        self._rows.add(trace, 1, rev, first, self._now, window)
        self._touched.add(trace)
        return Admitted(trace, 1, rev)

    def _define(self, definition: bytes) -> bytes:
        """Store a graph's definition once; returns its digest."""
        digest = self._digests.get(definition)
        if digest is None:
            digest = self._digests[definition] = _digest(definition)
            self._connection.execute(_DEFINE, (digest, encode(definition), checksum(definition, digest)))
        return digest

    def _undefine(self, digest: bytes) -> None:
        """Drop a definition that no trace has any more."""
        prune.drop_graph(self._connection, digest)
        self._digests.clear()

    # -- deltas ------------------------------------------------------------------------------------------------

    def _append_runs(self, runs: dict[int, list[tuple[int, Append]]], outcomes: list[Outcome]) -> None:
        self._touched.update(runs)
        for parts in zip_longest(*map(_gapless, runs.values()), fillvalue=()):  # nearly always one of each trace
            self._append([run for part in parts if (run := _storable(part, outcomes))], outcomes)
        runs.clear()

    def _append(self, runs: list[Run], outcomes: list[Outcome]) -> None:
        """Append runs of deltas whose revs follow one another, each of another trace."""
        windows: dict[int, int | None] = {}
        on: list[Run] = []
        ending: list[Run] = []
        for run in runs:
            (ending if any(append.delta.status in UNOWNED for _, append in run) else on).append(run)
        for statement, some, one in ((_APPEND, on, _APPEND_ONE), (_APPEND_LAST, ending, None)):
            positions = [value for run in some for value in self._position(run)]
            windows.update(execute_all(self._connection, statement, positions, 9, nullable=(4, 5), one=one))
        again = []
        for run in runs:
            trace = run[0][1].delta.trace
            if trace in windows:
                for place, append in run:
                    delta = append.delta
                    self._rows.add(trace, delta.epoch, delta.rev, delta, self._now, windows[trace])
                    outcomes[place] = Appended(delta.rev)
            elif left := self._already_there(trace, run, outcomes):
                again.append(left)
        if again:
            self._append(again, outcomes)

    def _position(self, run: Run) -> tuple[object, ...]:
        """Where a run leaves its trace, and from where it must begin."""
        first, last = run[0][1].delta, run[-1][1].delta
        position = (last.trace, first.epoch, first.rev - 1)
        error = frame(last.error)
        return (last.status, last.step, last.rev, self._now, error, error_seal(last.trace, error), *position)

    def _already_there(self, trace: int, run: Run, outcomes: list[Outcome]) -> Run:
        """Settle what cannot be appended; returns what is left and can be, now that the rest is known to be there."""
        self._rows.insert(self._connection)
        position = self._connection.execute(_POSITION, (trace,)).fetchone()
        for at, (place, append) in enumerate(run):
            delta = append.delta
            if position == (delta.epoch, delta.rev - 1):
                return run[at:]
            written = self._connection.execute(_WRITTEN, (trace << SHIFT | delta.rev,)).fetchone()
            marks = delta.marks
            there = position is not None and position[0] == delta.epoch and delta.rev <= position[1]
            # Without its checkpoint it was written and pruned: in that epoch nobody else has written.
            if there and written in (
                None,
                (delta.epoch, delta.step, marks.message, marks.activation, marks.arrival, marks.variable),
            ):
                outcomes[place] = Appended(delta.rev)
            else:
                outcomes[place] = OwnershipLost(append.trace_id)
        return []

    # -- ownership ---------------------------------------------------------------------------------------------

    def _acquire(self, write: Acquire) -> Outcome:
        if write.definition is not None and (refused := definition_too_big(write.definition)):
            return refused
        taken = self._connection.execute(_ACQUIRE, (write.owner, self._now, write.trace, write.epoch)).fetchone()
        if taken is None:
            return OwnershipLost(write.trace_id)
        rev, before, told = taken
        if write.definition is not None:
            changed = _digest(write.definition) != before
            graph = self._define(write.definition) if changed else before
            self._connection.execute(_REDEFINE, (write.fingerprint, graph, write.graph_path, write.trace))
            seal_trace(self._connection, write.trace)
            if changed:
                self._undefine(before)
        self._touched.add(write.trace)
        return Acquired(write.epoch + 1, rev, bool(told))

    # -- what others than the owner write ----------------------------------------------------------------------

    def _leave(self, write: Leave) -> Outcome:
        if refused := answer_too_big(write):
            return refused
        left = commands.leave(self._connection, write, self._now)
        return TraceNotFound(write.trace_id, self._store) if left is None else left

    def _label(self, write: Label) -> Outcome:
        checkpoint = row_id(write.trace, write.rev)
        if not self._note(write.trace, checkpoint, label=write.label):
            return self._not_kept(write.trace, write.trace_id, write.rev)
        return Done()

    def _note(self, trace: int, checkpoint: int, *, pins: int = 0, **to: str | None) -> bool:
        """As `note`, of a trace that is not deleted."""
        lives = self._connection.execute(_LIVES, (trace,)).fetchone() is not None
        return lives and note(self._connection, checkpoint, pins=pins, **to)

    def _not_kept(self, trace: int, trace_id: str, rev: int) -> CheckpointNotFound:
        name, steps = kept(self._connection, trace)
        return CheckpointNotFound(name or trace_id, f"at rev {rev}", steps)


def row_id(trace: int, rev: int) -> int:
    """Of a checkpoint; -1, which none has, for what cannot be a rev and would be another trace's."""
    return trace << SHIFT | rev if 0 <= rev <= LAST else -1


def _digest(definition: bytes) -> bytes:
    return bytes.fromhex(digest(definition))


def _storable(run: Run, outcomes: list[Outcome]) -> Run:
    """`run` up to the first delta that is too big; that makes a gap before those after it."""
    for at, (place, append) in enumerate(run):
        if refused := too_big(append.delta):
            outcomes[place] = refused
            for later, lost in run[at + 1 :]:
                outcomes[later] = OwnershipLost(lost.trace_id)
            return run[:at]
    return run


def _gapless(run: Run) -> Iterator[Run]:
    part = [run[0]]
    for entry in run[1:]:
        last, delta = part[-1][1].delta, entry[1].delta
        if delta.rev != last.rev + 1 or delta.epoch != last.epoch:
            yield part
            part = []
        part.append(entry)
    yield part
