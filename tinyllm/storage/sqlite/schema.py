"""The tables, and how an older database becomes one of this version.

A row that belongs to a trace has the id `trace key << 32 | number`, the number being the row's seq, step or rev: what
belongs together lies together, and loading, pruning and deleting are ranges of row ids. (A composite primary key
WITHOUT ROWID took five times as long with bodies of 1 KiB.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tinyllm.storage.sqlite import seals
from tinyllm.storage.sqlite.library import sqlite3

if TYPE_CHECKING:
    from sqlite_utils import Database

SHIFT = 32
LAST = (1 << SHIFT) - 1
"""The highest number, and the mask that takes it out of a row id."""

APPLICATION_ID = 0x544C4C4D  # "TLLM"

_FIRST = """
-- A trace whose id is null was deleted; forks may still read what they share with it.
-- owner: the id in `owners` of the process that executes it. graph: the digest of its definition.
-- low_*: a fork's rows have higher numbers than these; rows with lower ones are its parent's.
CREATE TABLE traces (
    key INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: a late writer must not meet another trace
    trace_id TEXT UNIQUE,
    graph_id TEXT NOT NULL,
    graph_version TEXT NOT NULL,
    graph_path TEXT,
    graph BLOB NOT NULL,
    fingerprint TEXT NOT NULL,
    task_digest TEXT NOT NULL,
    status TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    owner TEXT,
    rev INTEGER NOT NULL,
    step INTEGER NOT NULL,
    parent INTEGER,
    parent_rev INTEGER,
    parent_step INTEGER,
    low_message INTEGER NOT NULL DEFAULT 0,
    low_activation INTEGER NOT NULL DEFAULT 0,
    low_arrival INTEGER NOT NULL DEFAULT 0,
    low_variable INTEGER NOT NULL DEFAULT 0,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    error
);
CREATE INDEX traces_owner ON traces (owner) WHERE owner IS NOT NULL;
CREATE INDEX traces_graph ON traces (graph);

CREATE TABLE graphs (
    digest BLOB NOT NULL UNIQUE,
    body NOT NULL,
    crc INTEGER NOT NULL
);

-- history: the how-manieth message of the history it is, from 1; null if it is not one of it. A gap shows a lost row.
-- consumers: how many activations and arrivals written with it read it; pruned: how many of those are gone.
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    node TEXT NOT NULL,
    history INTEGER,
    consumers INTEGER NOT NULL,
    pruned INTEGER NOT NULL DEFAULT 0,
    body NOT NULL,
    crc INTEGER NOT NULL
);

-- fired_rev: when a join's round became a planned activation; null while it is buffered, 0 if it never was a round.
-- What it fired with stands beside what it was born with: an older checkpoint sees the latter.
CREATE TABLE activations (
    id INTEGER PRIMARY KEY,
    hash BLOB NOT NULL,
    node TEXT NOT NULL,
    message INTEGER,
    item INTEGER,
    path TEXT,
    depth INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    error,
    done_rev INTEGER,
    fired_rev INTEGER,
    fired_hash BLOB,
    fired_depth INTEGER
);
CREATE INDEX activations_live ON activations (id) WHERE done_rev IS NULL;

CREATE TABLE arrivals (
    id INTEGER PRIMARY KEY,
    activation INTEGER NOT NULL, -- a row id
    message INTEGER,
    hash BLOB NOT NULL,
    path TEXT,
    depth INTEGER NOT NULL
);
CREATE INDEX arrivals_of ON arrivals (activation);

-- base: the number of the full row that an appended one belongs to.
CREATE TABLE variables (
    id INTEGER PRIMARY KEY,
    trace INTEGER NOT NULL,
    key TEXT NOT NULL,
    kind TEXT NOT NULL,
    base INTEGER NOT NULL,
    sort BLOB,
    body NOT NULL,
    crc INTEGER NOT NULL
);
CREATE INDEX variables_of ON variables (trace, key);

CREATE TABLE steps (
    id INTEGER PRIMARY KEY,
    activation INTEGER NOT NULL,
    node TEXT NOT NULL,
    ended_at REAL NOT NULL,
    duration_ms REAL NOT NULL,
    attempts INTEGER NOT NULL
);

-- The marks are the highest number of each kind of row that the checkpoint sees; the counts tell how many rows.
-- pins: how many forks start from it.
CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    step INTEGER NOT NULL,
    status TEXT NOT NULL,
    node TEXT,
    message INTEGER NOT NULL,
    activation INTEGER NOT NULL,
    arrival INTEGER NOT NULL,
    variable INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    frontier INTEGER NOT NULL,
    arrivals INTEGER NOT NULL,
    variables INTEGER NOT NULL,
    created_at REAL NOT NULL,
    label TEXT,
    pins INTEGER NOT NULL DEFAULT 0
);

-- beat rises with every renewal; renewed_at is the renewing machine's CLOCK_BOOTTIME, for people.
CREATE TABLE owners (
    id TEXT NOT NULL UNIQUE,
    host TEXT NOT NULL,
    boot_id TEXT NOT NULL,
    pid_namespace TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    since REAL NOT NULL,
    beat INTEGER NOT NULL,
    renewed_at REAL NOT NULL
);

-- One row, changed by every transaction: it tells whether one whose COMMIT failed is there all the same.
CREATE TABLE transactions (token INTEGER NOT NULL);
INSERT INTO transactions VALUES (0);
"""


_SECOND = """
-- history: how many of its newest messages are kept, null: all. last_task: the digest of the task last added to it.
ALTER TABLE traces ADD COLUMN history INTEGER;
ALTER TABLE traces ADD COLUMN last_task TEXT NOT NULL DEFAULT '';
UPDATE traces SET last_task = task_digest;

-- held: of a history with a window, while a kept checkpoint's window holds it: trace key << 32 | history.
ALTER TABLE messages ADD COLUMN held INTEGER;
CREATE INDEX messages_held ON messages (held) WHERE held IS NOT NULL;

ALTER TABLE activations ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE activations ADD COLUMN due REAL;
ALTER TABLE activations ADD COLUMN progress;
ALTER TABLE activations ADD COLUMN asked;

ALTER TABLE steps ADD COLUMN status TEXT;

-- task: the digest of the last task that was added to the history since the kept checkpoint before it.
ALTER TABLE checkpoints ADD COLUMN generation INTEGER NOT NULL DEFAULT 1;
ALTER TABLE checkpoints ADD COLUMN generation_step INTEGER NOT NULL DEFAULT 0;
ALTER TABLE checkpoints ADD COLUMN elapsed REAL NOT NULL DEFAULT 0;
ALTER TABLE checkpoints ADD COLUMN tokens_in INTEGER NOT NULL DEFAULT 0;
ALTER TABLE checkpoints ADD COLUMN tokens_out INTEGER NOT NULL DEFAULT 0;
ALTER TABLE checkpoints ADD COLUMN task TEXT;

-- An answer that was consumed stays, without its body: it refuses the next one.
CREATE TABLE commands (
    id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: a delta must not consume another command than it meant
    trace INTEGER NOT NULL,
    kind TEXT NOT NULL,
    activation BLOB,
    name TEXT,
    body,
    created_at REAL NOT NULL,
    consumed INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX commands_once ON commands (trace, kind, activation, name);
CREATE INDEX commands_left ON commands (trace) WHERE consumed = 0;
"""

_THIRD = """
-- crc: of what the row was written with. Others are of what was changed later, and null until then.
ALTER TABLE traces ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
ALTER TABLE traces ADD COLUMN error_crc INTEGER;
ALTER TABLE activations ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
ALTER TABLE activations ADD COLUMN changed_crc INTEGER;
ALTER TABLE activations ADD COLUMN fired_crc INTEGER;
ALTER TABLE arrivals ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
ALTER TABLE steps ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
ALTER TABLE checkpoints ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
ALTER TABLE checkpoints ADD COLUMN notes_crc INTEGER;
ALTER TABLE checkpoints ADD COLUMN changes INTEGER;
ALTER TABLE commands ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;

-- number: of transactions that were told to be durable. The other column has a new name so that a process of an older
-- version, which has the database open meanwhile, fails in its next transaction: its rows would have no checksums.
ALTER TABLE transactions ADD COLUMN number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE transactions RENAME COLUMN token TO sign;
"""

_FOURTH = """
-- What waits to be claimed: priority, the highest first; due: not before that; apart: only by who executes it alone.
-- died: the owner at whose death it was taken away from it, until it has another one. deaths: what is known of those.
ALTER TABLE traces ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE traces ADD COLUMN due REAL;
ALTER TABLE traces ADD COLUMN apart INTEGER NOT NULL DEFAULT 0;
ALTER TABLE traces ADD COLUMN died TEXT;
ALTER TABLE traces ADD COLUMN deaths;
ALTER TABLE traces ADD COLUMN deaths_crc INTEGER;
CREATE INDEX traces_died ON traces (died) WHERE died IS NOT NULL;

-- The queue. No column of it says that a trace waits, which every write would have to see to: SQLite does. The owner is
-- asked for first: to a checkpoint of a trace that has one, these indexes cost no more than that.
CREATE INDEX traces_ready ON traces (graph_id, apart, priority DESC)
WHERE owner IS NULL AND due IS NULL AND status IN ('queued', 'running') AND trace_id IS NOT NULL;
CREATE INDEX traces_later ON traces (graph_id, apart, due)
WHERE owner IS NULL AND due IS NOT NULL AND status IN ('queued', 'running') AND trace_id IS NOT NULL;
CREATE INDEX traces_quarantined ON traces (graph_id)
WHERE owner IS NULL AND status = 'quarantined' AND trace_id IS NOT NULL;
"""
# A process of the third version that has the database open meanwhile breaks nothing: what it lets go of waits as what
# has no priority does, SQLite sees to the indexes whoever writes, and what was taken away from it has another epoch.

_SEAL_ALL = f"""
UPDATE traces SET crc = seal({seals.TRACE}), error_crc = CASE WHEN error IS NOT NULL THEN seal(key, error) END;
UPDATE activations SET
    crc = seal_activation(id, hash, node, message, item, path, depth, fired_rev IS NULL OR fired_rev > 0),
    changed_crc = CASE WHEN attempts > 0 OR tries > 0 OR state NOT IN ('planned', 'buffered')
                       OR coalesce(error, due, progress, asked) IS NOT NULL THEN seal({seals.CHANGE}) END,
    fired_crc = CASE WHEN fired_rev > 0 THEN seal(id, fired_rev, fired_hash, fired_depth) END;
UPDATE arrivals SET crc = seal_arrival(id, activation, message, hash, path, depth);
UPDATE steps SET crc = seal_step(id, activation, node, ended_at, duration_ms, attempts, status);
UPDATE checkpoints SET
    crc = seal_checkpoint({seals.CHECKPOINT}),
    notes_crc = CASE WHEN coalesce(label, task) IS NOT NULL OR pins > 0 THEN seal(id, label, task, pins) END;
UPDATE commands SET crc = seal(trace, kind, activation, name, body) WHERE consumed = 0;
"""


def _first(db: Database) -> None:
    _execute_all(db.conn, _FIRST)


def _second(db: Database) -> None:
    _execute_all(db.conn, _SECOND)


def _third(db: Database) -> None:
    _execute_all(db.conn, _THIRD)
    seal_all(db.conn)


def _fourth(db: Database) -> None:
    _execute_all(db.conn, _FOURTH)


def seal_all(connection: sqlite3.Connection) -> None:
    """Make the checksums of all rows what they are to be, but for those of bodies, which were there from the first."""
    for name, function in (
        ("seal", lambda *values: seals.seal(values)),
        ("seal_activation", seals.activation_seal),
        ("seal_arrival", seals.arrival_seal),
        ("seal_step", seals.step_seal),
        ("seal_checkpoint", seals.checkpoint_seal),
    ):
        connection.create_function(name, -1, function)
    _execute_all(connection, _SEAL_ALL)


_STEPS: tuple[tuple[str, Callable[[Database], None]], ...] = (
    ("first", _first),
    ("second", _second),
    ("third", _third),
    ("fourth", _fourth),
)

VERSION = len(_STEPS)
"""`PRAGMA user_version` of a database that has every migration."""


def migrate(connection: sqlite3.Connection) -> None:
    """Make the schema that of this version, inside the transaction that is open."""
    # Costs some 80 ms, so only where there is something to migrate.
    from sqlite_utils import Database, Migrations

    migrations = Migrations("tinyllm")
    for name, step in _STEPS:
        migrations(name=name)(step)
    # Plugins are the user's, installed for the user's own databases.
    migrations.apply(Database(connection, execute_plugins=False))
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _execute_all(connection: sqlite3.Connection, script: str) -> None:
    # `executescript` would commit the transaction first.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
