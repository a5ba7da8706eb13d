"""Reading: traces, what they consist of, and any kept state of them.

All of it is read with the connection that is given; whoever gives it has opened a transaction, for one consistent view.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from time import time
from typing import Any

import attrs

from tinyllm.errors import CheckpointDamaged, CheckpointNotFound, DatabaseCorrupt, TraceNotFound, TraceUnreadable
from tinyllm.storage import high_water, near
from tinyllm.storage.contract import (
    CheckpointRecord,
    CheckpointStorage,
    Command,
    Counts,
    Lease,
    Marks,
    Status,
    StepRow,
    TraceRecord,
)
from tinyllm.storage.framing import Frame, FrameDamaged, checksum, decode
from tinyllm.storage.records import BY_HAND
from tinyllm.storage.sqlite import seals
from tinyllm.storage.sqlite.claims import evidence
from tinyllm.storage.sqlite.commands import left
from tinyllm.storage.sqlite.database import FILE_NAME
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.owned import leases
from tinyllm.storage.sqlite.schema import LAST, SHIFT
from tinyllm.storage.sqlite.sense import LATEST, legible, sensible

_log = logging.getLogger("tinyllm.storage")

_SEALED = ", ".join(f"t.{column.strip()}" for column in seals.TRACE.split(","))
_TRACE = f"""
SELECT t.crc, {_SEALED}, t.status, t.step, t.rev, t.epoch, t.owner, t.updated_at, t.error, t.error_crc,
       t.priority, t.due, t.apart, t.died, t.deaths, t.deaths_crc, p.trace_id
FROM traces t LEFT JOIN traces p ON p.key = t.parent
"""
_BY_ID = f"{_TRACE} WHERE t.trace_id = ?"
_LISTED = f"""{_TRACE}
WHERE t.trace_id IS NOT NULL AND substr(t.trace_id, 1, length(:prefix)) = :prefix
  AND (:graph_id IS NULL OR t.graph_id = :graph_id)
  AND (:status IS NULL OR :status = CASE
       WHEN t.status = 'running' AND (t.owner IS NULL OR t.owner NOT IN (SELECT value FROM json_each(:living)))
       THEN 'interrupted' ELSE t.status END)
ORDER BY t.updated_at DESC, t.key DESC LIMIT :limit OFFSET :offset
"""
_IDS = "SELECT trace_id FROM traces WHERE trace_id IS NOT NULL ORDER BY key DESC LIMIT ?"
_UNINDEXED = "SELECT 1 FROM traces NOT INDEXED WHERE trace_id = ?"
_NAME = "SELECT trace_id FROM traces WHERE key = ?"
_SEGMENT = f"SELECT crc, {seals.TRACE} FROM traces WHERE key = ?"
_DEFINITION = """
SELECT g.digest, g.body, g.crc FROM traces t LEFT JOIN graphs g ON g.digest = t.graph WHERE t.trace_id = ?
"""

_POINT = f"SELECT crc, notes_crc, label, task, pins, {seals.CHECKPOINT} FROM checkpoints"
_POINTS = f"{_POINT} WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT ? OFFSET ?"
_REVS = "SELECT id FROM checkpoints WHERE id BETWEEN ? AND ? ORDER BY id DESC"
_AT_STEP = f"{_POINT} WHERE id BETWEEN ? AND ? AND step = ? ORDER BY id DESC LIMIT 1"
_KEPT_STEPS = "SELECT DISTINCT step FROM checkpoints WHERE id BETWEEN ? AND ? ORDER BY step"
# An activation waited from the delta that planned it (a join: that fired it) to the one before that which ended it.
# Of those checkpoints the newest is looked for, for each activation of the node, beginning with the last to end.
_WAITING = """
SELECT id, fired_rev, done_rev FROM activations
WHERE id BETWEEN ? AND ? AND node = ? AND fired_rev IS NOT NULL ORDER BY coalesce(done_rev, ?) DESC
"""
_STEPS = """
SELECT id, activation, node, ended_at, duration_ms, attempts, status, crc FROM steps
WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?
"""

_APART: tuple[Status, ...] = ("running", "interrupted", "quarantined")
"""What a trace may be without its newest checkpoint saying so: it was taken up, or taken out of service."""


_FLAG = {0: False, 1: True}
"""Another number makes no sense, and nobody would claim such a trace."""


@attrs.frozen
class Point:
    """A checkpoint."""

    rev: int
    step: int
    status: Status
    node: str | None
    created_at: float
    label: str | None
    marks: Marks
    counts: Counts
    generation: int
    generation_step: int
    elapsed: float
    tokens_in: int
    tokens_out: int


@attrs.frozen
class Segment:
    """A trace, or a forebear of one, and the rows of it that the trace sees: those above `low` and up to the marks of
    the checkpoint, or, for a forebear, of the one its child started from (`high`). Steps likewise."""

    trace: int
    low: Marks
    high: Marks
    low_step: int
    high_step: int


class Catalog:
    """What there is: traces, their checkpoints and steps. All in one transaction of `connection`.

    `storage` is what the records of checkpoints are read from when they are looked at.
    """

    def __init__(self, connection: sqlite3.Connection, directory: Path, storage: CheckpointStorage) -> None:
        self.connection = connection
        self._directory = directory
        self._storage = storage
        self._leases: Mapping[str, Lease] | None = None
        self._marks: dict[str, dict[tuple[int, int], tuple[int, int]]] = {}

    # -- traces ------------------------------------------------------------------------------------------------

    @sensible
    def trace(self, trace_id: str) -> TraceRecord | None:
        row = self.connection.execute(_BY_ID, (trace_id,)).fetchone()
        return self._record(row, trace_id) if row else None

    @sensible
    def found(self, trace_id: str, *, forgiving: bool = False) -> TraceRecord:
        """`forgiving`: a damaged error is none.

        :raises TraceNotFound: with the ids that look like it.
        """
        row = self.connection.execute(_BY_ID, (trace_id,)).fetchone()
        if row is None:
            raise self.missing(trace_id)
        return self._record(row, trace_id, forgiving=forgiving)

    def missing(self, trace_id: str) -> TraceNotFound:
        """:raises DatabaseCorrupt: it is there, and the index does not lead to it."""
        if self.connection.execute(_UNINDEXED, (trace_id,)).fetchone() is not None:
            raise DatabaseCorrupt(str(self._directory / FILE_NAME), f"trace {trace_id!r} is missing from an index")
        ids = self.connection.execute(_IDS, (near.AMONG,))
        return near.not_found(trace_id, str(self._directory), (name for (name,) in ids))

    @sensible
    def traces(
        self, prefix: str, graph_id: str | None, status: Status | None, limit: int, offset: int
    ) -> list[TraceRecord]:
        living = [owner for owner, lease in self._known().items() if lease.alive is not False]
        values = {
            "prefix": prefix,
            "graph_id": graph_id,
            "status": status,
            "living": json.dumps(living),
            "limit": limit,
            "offset": offset,
        }
        try:
            rows = self.connection.execute(_LISTED, values).fetchall()
        except sqlite3.OperationalError:  # a text that is none: that of one trace is no reason to show no other
            with legible(self.connection):
                rows = self.connection.execute(_LISTED, values).fetchall()
        return [self._record(row, None) for row in rows]

    @sensible
    def definition(self, trace_id: str) -> bytes:
        row = self.connection.execute(_DEFINITION, (trace_id,)).fetchone()
        if row is None:
            raise self.missing(trace_id)
        digest, body, crc = row
        if body is None:
            raise CheckpointDamaged(trace_id, None, "the definition of its graph is missing")
        return verified(body, crc, (digest,), trace_id, None, "the definition of its graph")

    def _record(self, row: tuple[Any, ...], asked: str | None, *, forgiving: bool = False) -> TraceRecord:
        """`asked`: the id of the trace that was asked for. A list, which asked for none, shows what is there, that of a
        damaged trace too."""
        crc, *sealed, status, step, rev, epoch, owner, updated_at, error, error_crc, _, _, _, _, _, _, parent = row
        priority, due, apart, died, deaths, deaths_crc = row[-7:-1]
        key, trace_id, graph_id, graph_version, graph_path, graph, fingerprint, task_digest, last_task, *rest = sealed
        history, created_at, _, parent_rev, parent_step, *_ = rest
        if asked is not None and seals.seal(sealed) != crc:
            raise TraceUnreadable(asked, None, "its record does not say what was written")
        if asked is None:  # when it is executed, and where, makes no difference to what it is
            due = due if isinstance(due, (int, float)) and due < LATEST else None
            apart = int(apart == 1)
        lease = self._known().get(died if owner is None else owner)
        living = lease.alive if lease and owner is not None else False
        # What it noted of a trace that was taken away from it, it noted under the epoch before.
        noted = (owner, epoch) if owner is not None else (died, epoch - 1)
        return TraceRecord(
            trace=key,
            trace_id=trace_id,
            graph_id=graph_id,
            graph_version=graph_version,
            graph_path=graph_path,
            fingerprint=fingerprint,
            definition_digest=graph.hex(),
            task_digest=task_digest,
            last_task=last_task,
            history=history,
            status="interrupted" if status == "running" and living is False else status,
            step=step,
            rev=rev,
            epoch=epoch,
            owner=lease.owner if lease else None,
            owner_beat=lease.beat if lease else 0,
            owner_alive=living,
            high_water=self._noted(noted[0]).get((key, noted[1])) if noted[0] else None,
            parent=parent,
            parent_rev=parent_rev,
            parent_step=parent_step,
            created_at=created_at,
            updated_at=updated_at,
            error=self._error(key, None if forgiving else asked, step, error, error_crc),
            priority=priority if isinstance(priority, int) else 0,
            not_before=due if due is not None and due > time() else None,
            apart=_FLAG[apart],
            deaths=evidence(key, deaths, deaths_crc),
        )

    def _error(self, key: int, asked: str | None, step: int, error: Frame | None, crc: int | None) -> bytes | None:
        if seals.error_seal(key, error) == crc:
            return None if error is None else unframed(error, asked or "", step, "its error")
        if asked is None:
            return None
        raise CheckpointDamaged(asked, step, "its error does not have the bytes that were written")

    def _known(self) -> Mapping[str, Lease]:
        if self._leases is None:
            self._leases = leases(self.connection)
        return self._leases

    def _noted(self, owner: str) -> dict[tuple[int, int], tuple[int, int]]:
        if owner not in self._marks:
            self._marks[owner] = high_water.read(high_water.path_in(self._directory, owner))
        return self._marks[owner]

    # -- checkpoints -------------------------------------------------------------------------------------------

    @sensible
    def checkpoints(self, trace_id: str, limit: int, offset: int) -> list[CheckpointRecord]:
        record = self.found(trace_id)
        first = record.trace << SHIFT
        rows = self.connection.execute(_POINTS, (first, first | LAST, limit, offset)).fetchall()
        return [CheckpointRecord.of(self._storage, record, _point(record, row)) for row in rows]

    @sensible
    def point(self, record: TraceRecord, rev: int | None) -> Point:
        """The checkpoint of `rev`, or the newest.

        :raises CheckpointNotFound: it was never made, or is pruned.
        """
        first = record.trace << SHIFT
        low, high = (0, LAST) if rev is None else (rev, rev)
        row = None
        if 0 <= low <= high <= LAST:
            row = self.connection.execute(_POINTS, (first | low, first | high, 1, 0)).fetchone()
        if row is None and rev is None:
            raise CheckpointDamaged(record.trace_id, None, "its newest checkpoint is missing")
        if row is None:
            raise self._none(record, f"at rev {rev}")
        point = _point(record, row)
        if rev is None and (point.rev, point.step) != (record.rev, record.step):
            where = f"rev {point.rev}, step {point.step}"
            what = f"its newest checkpoint is of {where}, and rev {record.rev}, step {record.step}, was written"
            raise CheckpointDamaged(record.trace_id, record.step, what)
        if rev is None and record.status not in (point.status, *_APART):
            what = f"it says that it is {record.status}, and its newest checkpoint that it is {point.status}"
            raise CheckpointDamaged(record.trace_id, record.step, what)
        return point

    def revs(self, record: TraceRecord) -> list[int]:
        """Of all kept checkpoints, the newest first."""
        first = record.trace << SHIFT
        return [id_ & LAST for (id_,) in self.connection.execute(_REVS, (first, first | LAST))]

    @sensible
    def find_checkpoint(self, trace_id: str, node: str | None, step: int | None) -> CheckpointRecord:
        record = self.found(trace_id)
        first = record.trace << SHIFT
        if node is not None:
            point = self._waiting(record, node, step)
        elif step is None:
            point = self.point(record, None)
        else:
            row = self.connection.execute(_AT_STEP, (first, first | LAST, step)).fetchone()
            point = _point(record, row) if row else None
        if point is None:
            wanted = f"at step {step}" if node is None else f"at which node {node!r} was waiting to run"
            raise self._none(record, wanted)
        return CheckpointRecord.of(self._storage, record, point)

    def _waiting(self, record: TraceRecord, node: str, step: int | None) -> Point | None:
        first = record.trace << SHIFT
        found = self.connection.execute(_WAITING, (first, first | LAST, node, LAST)).fetchall()
        for activation, fired, done in found:
            last = LAST if done is None else done - 1
            low = max(fired, 0)
            row = self.connection.execute(_POINTS, (first | low, first | last, 1, 0)).fetchone()
            if row is None:
                continue
            point = _point(record, row)
            if point.marks.activation >= activation & LAST and step in (None, point.step):
                return point
        return None

    def _none(self, record: TraceRecord, wanted: str) -> CheckpointNotFound:
        return CheckpointNotFound(record.trace_id, wanted, kept(self.connection, record.trace)[1])

    # -- commands ----------------------------------------------------------------------------------------------

    @sensible
    def commands(self, owner: str | None, trace: int | None) -> list[Command]:
        found = []
        for trace_id, id_, key, kind, activation, name, frame, created_at, crc in left(self.connection, owner, trace):
            what = kind if name is None else f"the {kind} to {name!r}"
            if seals.seal((key, kind, activation, name, frame)) != crc:
                if trace is None:  # whoever looks for what all its traces are told; the others are to hear
                    _complain(str(self._directory), trace_id, id_, what)
                    continue
                raise CheckpointDamaged(trace_id, None, f"{what} does not have the bytes that were written")
            body = None if frame is None else unframed(frame, trace_id, None, what)
            found.append(Command(id_, key, kind, activation, name, body, created_at))
        return found

    # -- steps -------------------------------------------------------------------------------------------------

    @sensible
    def steps(self, trace_id: str, after: int, limit: int) -> list[StepRow]:
        record, after = self.found(trace_id), max(after, 0)
        found: list[StepRow] = []
        point = self.point(record, None)
        for part in reversed(self.segments(record, point)):
            first = part.trace << SHIFT
            span = (first + max(part.low_step, after) + 1, first | part.high_step, limit - len(found))
            for *row, crc in self.connection.execute(_STEPS, span):
                step = after + len(found) + 1
                if row[0] & LAST != step:
                    raise CheckpointDamaged(trace_id, step, "the record of the step is missing")
                if seals.step_seal(*row) != crc:
                    raise CheckpointDamaged(trace_id, step, "the record of the step does not say what was written")
                found.append(StepRow(step, *row[1:]))
        visited = point.marks.activation if record.fingerprint == BY_HAND else point.step
        if len(found) < min(limit, visited - after):
            raise CheckpointDamaged(trace_id, after + len(found) + 1, "the record of the step is missing")
        return found

    @sensible
    def segments(self, record: TraceRecord, point: Point) -> list[Segment]:
        """Of which rows the state at `point` consists: those of the trace, then those of each forebear."""
        if record.parent_rev is None:
            return [Segment(record.trace, Marks(), point.marks, 0, point.step)]
        found = []
        trace: int | None = record.trace
        high, high_step = point.marks, point.step
        while trace is not None:
            row = self.connection.execute(_SEGMENT, (trace,)).fetchone()
            if row is None:
                raise CheckpointDamaged(record.trace_id, point.step, "the trace that it was forked from is missing")
            crc, *sealed = row
            if seals.seal(sealed) != crc:
                what = "the record of a trace that it was forked from does not say what was written"
                raise CheckpointDamaged(record.trace_id, point.step, what)
            parent, _, parent_step, *marks = sealed[11:]
            if parent is not None and parent >= trace:  # a parent is older; what is not may never come to an end
                raise CheckpointDamaged(record.trace_id, point.step, "it was forked from a trace that is no older")
            low, low_step = Marks(*marks), parent_step or 0
            found.append(Segment(trace, low, high, low_step, high_step))
            trace, high, high_step = parent, low, low_step
        return found


@lru_cache(maxsize=1000)  # once: it is looked for every second
def _complain(store: str, trace_id: str, command: int, what: str) -> None:
    said = "%s, trace %r: %s (command %d) does not have the bytes that were written"
    _log.warning(said, store, trace_id, what, command)


def kept(connection: sqlite3.Connection, trace: int) -> tuple[str | None, str]:
    """The id of the trace of that key, and the steps whose checkpoints are kept: `steps 0, 90-189`."""
    first = trace << SHIFT
    ranges: list[list[int]] = []
    for (step,) in connection.execute(_KEPT_STEPS, (first, first | LAST)):
        if ranges and step == ranges[-1][-1] + 1:
            ranges[-1][1:] = [step]
        else:
            ranges.append([step])
    name = connection.execute(_NAME, (trace,)).fetchone()
    steps = "steps " + ", ".join("-".join(map(str, ends)) for ends in ranges) if ranges else ""
    return (name[0] if name else None), steps


def unframed(frame: Frame, trace_id: str, step: int | None, what: str) -> bytes:
    """The body in `frame`.

    :raises CheckpointDamaged: it is none.
    """
    try:
        return decode(frame)
    except FrameDamaged as error:
        raise CheckpointDamaged(trace_id, step, f"{what} cannot be decoded ({error})") from error


def verified(
    frame: Frame, crc: int, belongs_to: tuple[object, ...], trace_id: str, step: int | None, what: str
) -> bytes:
    """The body in `frame`, which stands in the row it was written for.

    :raises CheckpointDamaged: it is not what was written there.
    """
    body = unframed(frame, trace_id, step, what)
    if checksum(body, *belongs_to) != crc:
        raise CheckpointDamaged(trace_id, step, f"{what} does not have the bytes that were written")
    return body


def _point(record: TraceRecord, row: tuple[Any, ...]) -> Point:
    crc, notes_crc, label, task, pins, *sealed = row
    id_, _, step, status, node, message, activation, arrival, variable, *rest = sealed
    messages, frontier, arrivals, variables, created_at, *counters, changes = rest
    if seals.checkpoint_seal(*sealed) != crc or seals.notes_seal(id_, label, task, pins) != notes_crc:
        raise CheckpointDamaged(record.trace_id, step, f"checkpoint {id_ & LAST} does not say what was written")
    marks = Marks(message, activation, arrival, variable)
    counts = Counts(messages, frontier, arrivals, variables, changes)
    return Point(id_ & LAST, step, status, node, created_at, label, marks, counts, *counters)
