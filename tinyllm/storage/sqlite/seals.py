"""Checksums of rows: over what a row says and where it stands, so that a changed, moved or renamed one is noticed.

What is written once has one checksum. What may change later has another, of its own: so that whoever changes it need
not know the rest. What changes with every checkpoint of a trace (its rev, step and status) has none: its newest
checkpoint says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from struct import error as StructError
from typing import NamedTuple
from zlib import crc32

from tinyllm.storage.framing import Frame, checksum_of
from tinyllm.storage.sqlite.library import sqlite3

TRACE = """key, trace_id, graph_id, graph_version, graph_path, graph, fingerprint, task_digest, last_task, history,
created_at, parent, parent_rev, parent_step, low_message, low_activation, low_arrival, low_variable"""
"""The columns of a trace that change seldom or never."""

CHECKPOINT = """id, epoch, step, status, node, message, activation, arrival, variable,
messages, frontier, arrivals, variables, created_at, generation, generation_step, elapsed, tokens_in, tokens_out,
changes"""
"""The columns of a checkpoint that are written once."""

CHANGE = "id, state, attempts, error, tries, due, progress, asked"
"""The columns of an activation that a change replaces."""

_ACTIVATION = Struct("<4q?")
_ARRIVAL = Struct("<4q")
_STEP = Struct("<3q2d")
_CHECKPOINT = Struct("<16q2d")
NO_SEAL = -1
"""What no checksum is."""

_READ_NOTES = "SELECT label, task, pins, notes_crc FROM checkpoints WHERE id = ?"
_NOTE = "UPDATE checkpoints SET label = ?, task = ?, pins = ?, notes_crc = ? WHERE id = ?"
_READ_TRACE = f"SELECT {TRACE} FROM traces WHERE key = ?"
_SEAL_TRACE = "UPDATE traces SET crc = ? WHERE key = ?"


class Notes(NamedTuple):
    """What is noted at a checkpoint after it was written. `pins`: how many forks start from it."""

    label: str | None
    task: str | None
    pins: int


def seal(values: Sequence[object]) -> int:
    """The checksum of columns, as they are stored."""
    return crc32(repr(tuple(values)).encode("utf-8", "surrogatepass"))


def seal_trace(connection: sqlite3.Connection, trace: int) -> None:
    """Say of a trace that it is as it was written: for whoever has just written it."""
    connection.execute(_SEAL_TRACE, (seal(connection.execute(_READ_TRACE, (trace,)).fetchone()), trace))


def message_seal(row: int, node: str, history: int | None, consumers: int, body: bytes) -> int:
    # The text of the tuple, as `seal` would have it; but a tuple takes twice as long to say what it holds.
    return checksum_of(body, f"({row}, {node!r}, {history}, {consumers})")


def variable_seal(row: int, key: str, kind: str, base: int, order: bytes | None, body: bytes) -> int:
    return checksum_of(body, f"({row}, {key!r}, {kind!r}, {base}, {order!r})")


def activation_seal(
    row: int, id_: bytes, node: str, message: int | None, item: int | None, path: str | None, depth: int, buffered: bool
) -> int:
    """Of an activation as it was born. `buffered`: as a join's round, which has no id before it fires."""
    numbers = (row, -1 if message is None else message, -1 if item is None else item, depth, buffered)
    return _packed(_ACTIVATION, numbers, node, path, id_)


def arrival_seal(row: int, activation: int, message: int | None, id_: bytes, path: str | None, depth: int) -> int:
    return _packed(_ARRIVAL, (row, activation, -1 if message is None else message, depth), path, None, id_)


def step_seal(
    row: int, activation: int, node: str, ended_at: float, duration_ms: float, attempts: int, status: str | None
) -> int:
    return _packed(_STEP, (row, activation, attempts, ended_at, duration_ms), node, status)


def checkpoint_seal(
    row: int,
    epoch: int,
    step: int,
    status: str,
    node: str | None,
    message: int,
    activation: int,
    arrival: int,
    variable: int,
    messages: int,
    frontier: int,
    arrivals: int,
    variables: int,
    created_at: float,
    generation: int,
    generation_step: int,
    elapsed: float,
    tokens_in: int,
    tokens_out: int,
    changes: int | None,
) -> int:
    numbers = (
        *(row, epoch, step, message, activation, arrival, variable, messages, frontier, arrivals, variables),
        *(generation, generation_step, tokens_in, tokens_out, -1 if changes is None else changes, created_at, elapsed),
    )
    return _packed(_CHECKPOINT, numbers, status, node)


def _packed(kind: Struct, numbers: tuple[float, ...], text: str | None, other: str | None, id_: bytes = b"") -> int:
    """Of a row of which there is one for every node that runs: to write its numbers out would take four times as long.
    (No number of these is negative, so that -1 stands for none.)"""
    try:
        return crc32(kind.pack(*numbers), crc32(id_, crc32(f"{text!r}{other!r}".encode("utf-8", "surrogatepass"))))
    except StructError:  # there is something else in the place of a number
        return NO_SEAL


def error_seal(trace: int, error: Frame | None) -> int | None:
    """Of the error of a trace, which only a failed one has."""
    return None if error is None else seal((trace, error))


def deaths_seal(trace: int, deaths: Frame | None) -> int | None:
    """Of what is known of the deaths at which a trace ran."""
    return None if deaths is None else seal((trace, "deaths", deaths))


def notes_seal(row: int, label: str | None, task: str | None, pins: int) -> int | None:
    """Of what is noted at a checkpoint later, which most have nothing of."""
    return None if label is None and task is None and not pins else seal((row, label, task, pins))


def note(connection: sqlite3.Connection, checkpoint: int, *, pins: int = 0, **to: str | None) -> bool:
    """Change what is noted at a checkpoint, by its row id: its `label`, its `task`, and how many pins it has by `pins`.
    Returns whether it is there. What is damaged stays so, whatever is changed in it."""
    found = connection.execute(_READ_NOTES, (checkpoint,)).fetchone()
    if found is None:
        return False
    *written, crc = found
    whole = notes_seal(checkpoint, *written) == crc
    notes = Notes(*written)
    notes = notes._replace(pins=notes.pins + pins, **to)
    crc = notes_seal(checkpoint, *notes) if whole else NO_SEAL
    connection.execute(_NOTE, (notes.label, notes.task, notes.pins, crc, checkpoint))
    return True
