"""What a store makes on disk, and what it refuses to touch."""

from __future__ import annotations

import logging
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import anyio
import attrs
import pytest

from tests.storage.deltas import Writer
from tinyllm.errors import (
    DatabaseCorrupt,
    DatabaseLocked,
    DatabaseTooNew,
    StorageError,
    StorageNotOpen,
    StoragePathError,
    StorageUnavailable,
)
from tinyllm.storage.contract import Admitted, StorageConfig
from tinyllm.storage.owners import this_process
from tinyllm.storage.sqlite import SQLiteCheckpointStorage, database, faults
from tinyllm.storage.sqlite.library import has_wal_reset_bug, sqlite3
from tinyllm.storage.sqlite.schema import VERSION

pytestmark = pytest.mark.anyio


def connected(directory: Path) -> sqlite3.Connection:
    """A connection beside the store's. (The same library: two in one process would drop each other's locks.)"""
    return sqlite3.connect(directory / "tinyllm.db", isolation_level=None)


async def make(directory: Path) -> None:
    storage = SQLiteCheckpointStorage(directory)
    await storage.initialize()
    writer = Writer("t")
    assert isinstance((await storage.commit([writer.admit()]))[0], Admitted)
    await storage.close()


# -- where it is -----------------------------------------------------------------------------------------------


async def test_the_path_may_be_given_in_any_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert SQLiteCheckpointStorage().name == str(tmp_path / ".tinyllm/data")
    for given in (tmp_path / "x", str(tmp_path / "x"), StorageConfig(sqlite_path="~/x")):
        assert SQLiteCheckpointStorage(given).name == str(tmp_path / "x")


async def test_it_stays_where_it_is_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = SQLiteCheckpointStorage("here")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await storage.initialize()
    await storage.close()
    assert (tmp_path / "here" / "tinyllm.db").exists()


@pytest.mark.parametrize("umask", [0, 0o777])
async def test_nobody_else_may_read_it_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        storage = SQLiteCheckpointStorage(tmp_path / "a" / "b")
        await storage.initialize()
        writer = Writer("t")
        await storage.commit([writer.admit()])
        owner = this_process()
        storage.renew(owner)
        storage.high_water(owner, 1, 1).note(1, 1)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("a/**/*") if path.is_file()}
    assert len(modes) == 5  # the database, -wal, -shm, the marks, the note of commits
    assert set(modes.values()) == {0o600}
    for directory in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    storage.retire(owner)
    await storage.close()


async def test_initialize_and_close_may_be_called_twice(tmp_path: Path) -> None:
    storage = SQLiteCheckpointStorage(tmp_path)
    await storage.close()
    for _ in range(2):
        await storage.initialize()
        await storage.initialize()
        assert await storage.traces() == []
        await storage.close()
        await storage.close()
    await storage.initialize()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(storage.close)
    refusal = f"^{re.escape(storage.name)} cannot be used: it is not open"
    with pytest.raises(StorageNotOpen, match=refusal):
        await storage.traces()
    with pytest.raises(StorageNotOpen, match=refusal):
        await storage.commit([])
    with pytest.raises(StorageNotOpen, match=refusal):
        storage.renew(this_process())


# -- how it is made --------------------------------------------------------------------------------------------


async def test_the_settings_that_only_a_new_database_takes_were_taken(tmp_path: Path) -> None:
    await make(tmp_path)
    connection = connected(tmp_path)
    facts = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_size", "auto_vacuum", "journal_mode", "user_version", "integrity_check")
    }
    connection.close()
    assert facts == {
        "page_size": 4096,
        "auto_vacuum": 2,
        "journal_mode": "wal",
        "user_version": VERSION,
        "integrity_check": "ok",
    }


async def test_every_connection_is_set_up(tmp_path: Path) -> None:
    storage = SQLiteCheckpointStorage(tmp_path)
    await storage.initialize()
    await storage.traces()
    for connection, synchronous, query_only in (
        (storage._connection, 2, 0),
        (storage._reading, 2, 1),
        (storage._leasing, 1, 0),
    ):
        assert connection is not None
        assert connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert connection.execute("PRAGMA query_only").fetchone() == (query_only,)
        assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
    await storage.close()


async def test_opening_what_exists_does_not_import_what_only_migrations_need(tmp_path: Path) -> None:
    await make(tmp_path)
    program = (
        "import sys, anyio\n"
        "from tinyllm.storage.sqlite import SQLiteCheckpointStorage\n"
        "async def main():\n"
        "    storage = SQLiteCheckpointStorage(sys.argv[1])\n"
        "    await storage.initialize()\n"
        "    print(len(await storage.traces()), 'sqlite_utils' in sys.modules)\n"
        "    await storage.close()\n"
        "anyio.run(main)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1 False\n"


@pytest.mark.parametrize(
    ("version", "bad"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 4), False),
    ],
)
async def test_which_versions_may_use_wal(version: tuple[int, ...], bad: bool) -> None:
    assert has_wal_reset_bug(version) is bad


async def test_a_library_that_must_not_use_wal_does_without_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database, "has_wal_reset_bug", lambda: True)
    monkeypatch.setattr(database, "_warned", False)
    with caplog.at_level(logging.WARNING, "tinyllm.storage"):
        storage = SQLiteCheckpointStorage(tmp_path)
        for _ in range(2):
            await storage.initialize()
            assert storage._connection is not None
            assert storage._leasing is not None
            assert storage._connection.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
            assert storage._leasing.execute("PRAGMA synchronous").fetchone() == (2,)
            owner = this_process()
            storage.renew(owner)
            writer = Writer(f"t{storage._pid}", owner.id)
            await storage.commit([writer.admit()])
            assert len(await storage.traces()) == 1
            storage.retire(owner)
            await storage.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pysqlite3" in caplog.text


_INITIALIZES = """
import sys, anyio
from tests.storage.deltas import Writer
from tinyllm.storage.sqlite import SQLiteCheckpointStorage
async def main():
    storage = SQLiteCheckpointStorage(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.read()
    await storage.initialize()
    print((await storage.commit([Writer(sys.argv[2]).admit()]))[0], flush=True)
    await storage.close()
anyio.run(main, backend=sys.argv[3])
"""


async def test_processes_that_initialize_at_once(tmp_path: Path, anyio_backend: str) -> None:
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", _INITIALIZES, str(tmp_path / "data"), f"t{number}", anyio_backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in starting:
        assert process.stdout
        process.stdout.readline()
    for process in starting:
        assert process.stdin
        process.stdin.close()
    for process in starting:
        with process:
            assert process.stdout
            assert "Admitted" in process.stdout.read()
        assert process.returncode == 0
    storage = SQLiteCheckpointStorage(tmp_path / "data")
    await storage.initialize()
    assert len(await storage.traces()) == 4
    await storage.close()


# -- what it refuses -------------------------------------------------------------------------------------------


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("journal", ["wal", "delete"])
async def test_a_newer_database_is_not_touched(tmp_path: Path, journal: str) -> None:
    await make(tmp_path)
    connection = connected(tmp_path)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    before = contents(tmp_path)
    storage = SQLiteCheckpointStorage(tmp_path)
    for _ in range(2):
        with pytest.raises(DatabaseTooNew, match=f"schema {VERSION + 1}.*not touched") as caught:
            await storage.initialize()
        assert caught.value.path == str(tmp_path / "tinyllm.db")
    await storage.close()
    assert contents(tmp_path) == before


async def test_a_newer_database_in_use_is_not_touched(tmp_path: Path) -> None:
    await make(tmp_path)
    connection = connected(tmp_path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")  # stands in the WAL only
    before = contents(tmp_path)
    with pytest.raises(DatabaseTooNew):
        await SQLiteCheckpointStorage(tmp_path).initialize()
    after = contents(tmp_path)
    connection.close()
    assert {name: body for name, body in after.items() if not name.endswith("-shm")} == {
        name: body for name, body in before.items() if not name.endswith("-shm")
    }


async def test_another_programs_database_is_not_touched(tmp_path: Path) -> None:
    connection = connected(tmp_path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = contents(tmp_path)
    with pytest.raises(StoragePathError, match="another program's database"):
        await SQLiteCheckpointStorage(tmp_path).initialize()
    assert contents(tmp_path) == before


async def test_what_is_no_database_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "tinyllm.db").write_text("a letter to my aunt\n" * 100)
    with pytest.raises(StoragePathError, match="not an SQLite database; move it away"):
        await SQLiteCheckpointStorage(tmp_path).initialize()
    assert (tmp_path / "tinyllm.db").read_text().startswith("a letter")


async def test_a_path_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for path, reason in ((file, "not a directory"), (file / "below" / "it", "not a directory")):
        with pytest.raises(StoragePathError, match=reason) as caught:
            await SQLiteCheckpointStorage(path).initialize()
        assert caught.value.path == str(path)
    (tmp_path / "data" / "tinyllm.db").mkdir(parents=True)
    with pytest.raises(StoragePathError, match="not a file"):
        await SQLiteCheckpointStorage(tmp_path / "data").initialize()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StoragePathError, match="not a directory"):
        await SQLiteCheckpointStorage(tmp_path / "dangling").initialize()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
async def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for path in (tmp_path, tmp_path / "below"):
        with pytest.raises(StoragePathError, match="cannot be made"):
            await SQLiteCheckpointStorage(path).initialize()


async def test_a_database_without_auto_vacuum_is_refused(tmp_path: Path) -> None:
    connection = connected(tmp_path)
    connection.execute("PRAGMA journal_mode = WAL")  # too early: from here on auto_vacuum is ignored
    connection.close()
    with pytest.raises(StoragePathError, match="without auto_vacuum"):
        await SQLiteCheckpointStorage(tmp_path).initialize()


_LOCKS = """
import sys
from tinyllm.storage.sqlite.library import sqlite3
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print(flush=True)
sys.stdin.read()
"""


async def test_a_lock_is_reported_with_the_process_that_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (database, faults):
        monkeypatch.setattr(module, "LOCK_TIMEOUT", 0.05)
    storage = SQLiteCheckpointStorage(tmp_path)
    await storage.initialize()
    storage.renew(attrs.evolve(this_process(), pid=2**31 - 1))  # it is dead, and who opens the store would remove it
    command = [sys.executable, "-c", _LOCKS, str(tmp_path / "tinyllm.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdin
        holder.stdout.readline()
        with pytest.raises(DatabaseLocked, match=r"locked.* for 0\.05 s") as caught:
            await storage.commit([Writer("t").admit()])
        if Path("/proc/locks").exists():
            assert caught.value.pid == holder.pid
        assert await storage.traces() == []  # readers are not held up
        another = SQLiteCheckpointStorage(tmp_path)
        await another.initialize()  # nor are those who open it to read
        assert await another.traces() == []
        await another.close()
        holder.stdin.close()
    assert isinstance((await storage.commit([Writer("t").admit()]))[0], Admitted)
    await storage.close()


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (8, StorageUnavailable, "read-only"),
        (8 | 3 << 8, StorageUnavailable, "read-only"),
        (10 | 4 << 8, StorageUnavailable, r"the disk failed \(oops\)"),
        (11, DatabaseCorrupt, r"corrupt \(oops\).*salvage"),
        (13, StorageUnavailable, "disk is full; free some space"),
        (14, StorageUnavailable, "cannot be opened"),
        (26, StoragePathError, "not an SQLite database"),
        (1, StorageError, "oops"),
    ],
)
async def test_sqlites_errors_become_ours(tmp_path: Path, code: int, kind: type[StorageError], text: str) -> None:
    error = sqlite3.OperationalError("oops")
    error.sqlite_errorcode = code
    with pytest.raises(kind, match=text) as caught, faults.translated(tmp_path):
        raise error
    assert type(caught.value) is kind
    assert str(tmp_path) in str(caught.value)
    assert caught.value.__cause__ is error


# -- forks of the process --------------------------------------------------------------------------------------


_FORKS = """
import os, sys, warnings
import anyio
from tinyllm.errors import StorageNotOpen
from tinyllm.storage.owners import this_process
from tinyllm.storage.sqlite import SQLiteCheckpointStorage
warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads is dangerous is the point
backend = sys.argv[2]
storage = SQLiteCheckpointStorage(sys.argv[1])
async def open_it():
    await storage.initialize()
    await storage.traces()
async def in_child():
    refused = 0
    for use in (storage.traces, storage.initialize, lambda: storage.commit([])):
        try:
            await use()
        except StorageNotOpen as error:
            refused += "parent process" in str(error)
    try:
        storage.renew(this_process())
    except StorageNotOpen as error:
        refused += "parent process" in str(error)
    await storage.close()
    own = SQLiteCheckpointStorage(sys.argv[1])
    await own.initialize()
    refused += await own.traces() == []
    await own.close()
    return refused
async def in_parent():
    await storage.commit([])
    await storage.close()
anyio.run(open_it, backend=backend)
if not os.fork():
    os._exit(anyio.run(in_child, backend=backend))
print(os.waitstatus_to_exitcode(os.wait()[1]))
anyio.run(in_parent, backend=backend)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
async def test_a_forked_child_is_refused_and_may_open_its_own(tmp_path: Path, anyio_backend: str) -> None:
    command = [sys.executable, "-c", _FORKS, str(tmp_path), anyio_backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("5\n", "", 0)


_CHILD_ENDS = """
import gc, os, subprocess, sys, threading, warnings
import anyio
from tests.storage.deltas import Writer
from tinyllm.storage.sqlite import SQLiteCheckpointStorage, database
warnings.simplefilter("ignore", DeprecationWarning)  # that forking with threads is dangerous is the point
path = sys.argv[1]
if sys.argv[2] == "truncate":
    database.has_wal_reset_bug, database._warned = lambda *_: True, True
LOOK = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT max(rev) FROM traces').fetchone())"
writer, storage = Writer("t"), SQLiteCheckpointStorage(path)
async def begin():
    await storage.initialize()
    writer.admitted((await storage.commit([writer.admit()]))[0])
async def own():
    mine = SQLiteCheckpointStorage(path)
    await mine.initialize()
    await mine.close()
async def go_on():
    for _ in range(2):
        await storage.commit([writer.append(body=b"1")])
        subprocess.run([sys.executable, "-c", LOOK, path + "/tinyllm.db"])
    await storage.close()
locked, over = threading.Event(), threading.Event()
def hold():
    with database._opening:  # as a thread that opens another store just now
        locked.set()
        over.wait()
anyio.run(begin)
holder = threading.Thread(target=hold)
holder.start()
locked.wait()
if not os.fork():
    anyio.run(own)
    del storage
    gc.collect()
    sys.exit(3)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 3
over.set()
anyio.run(go_on)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("journal", ["wal", "truncate"])
async def test_the_end_of_a_forked_child_does_its_parent_no_harm(tmp_path: Path, journal: str) -> None:
    """What it closes takes neither the WAL nor a lock from the parent, and it waits for no thread of the parent."""
    command = [sys.executable, "-c", _CHILD_ENDS, str(tmp_path), journal]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("1\n2\n", "", 0)
