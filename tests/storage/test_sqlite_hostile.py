"""A store that somebody else prepared is refused as what it is: in little time and memory, and without doing what it
wants."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.storage.deltas import Writer
from tinyllm.errors import CheckpointDamaged, DatabaseCorrupt, StoragePathError, ValueNotStorable
from tinyllm.storage import high_water
from tinyllm.storage.contract import Admitted, Fork
from tinyllm.storage.owners import this_process
from tinyllm.storage.sqlite import SQLiteCheckpointStorage
from tinyllm.storage.sqlite.database import FILE_NAME
from tinyllm.storage.sqlite.health import examine
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.salvage import salvage

pytestmark = pytest.mark.anyio

FOR_EVER = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # what is tested is behind the threads of the store, where there is no loop


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: str) -> Path:
    """With a trace `t` and a fork of it, `f`."""
    storage = SQLiteCheckpointStorage(tmp_path / "store")
    await storage.initialize()
    writer = Writer("t")
    writer.admitted((await storage.commit([writer.admit(plan=["a"])]))[0])
    await storage.commit([writer.append(end=1, plan=["b"], set=[("x", b"1")])])
    first = Writer("f").admit(plan=["b"]).first
    (forked,) = await storage.commit([Fork(parent=1, rev=1, trace_id="f", owner=None, first=first)])
    assert isinstance(forked, Admitted)
    await storage.close()
    return tmp_path / "store"


def change(store: Path, *statements: str, values: tuple[Any, ...] = ()) -> None:
    with closing(sqlite3.connect(store / FILE_NAME, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement, values)


@asynccontextmanager
async def opened(store: Path) -> AsyncIterator[SQLiteCheckpointStorage]:
    storage = SQLiteCheckpointStorage(store)
    await storage.initialize()
    try:
        yield storage
    finally:
        await storage.close()


@pytest.mark.parametrize(
    ("statements", "what"),
    [
        ([f"CREATE TRIGGER evil AFTER UPDATE ON transactions BEGIN {FOR_EVER}; END"], "the trigger 'evil'"),
        (["ALTER TABLE traces RENAME TO t", f"CREATE VIEW traces AS {FOR_EVER}"], "the view 'traces'"),
        (["CREATE VIRTUAL TABLE more USING fts5 (a)"], "the virtual table 'more'"),
        (
            ["ALTER TABLE steps ADD COLUMN more AS (hex(zeroblob(400000000)))"],
            "the computed column 'steps.more'",
        ),
    ],
)
async def test_sql_of_somebody_else_is_not_run(store: Path, statements: list[str], what: str) -> None:
    change(store, *statements)
    with pytest.raises(StoragePathError, match=what):
        await SQLiteCheckpointStorage(store).initialize()
    with pytest.raises(StoragePathError, match=what):
        examine(store)


async def test_tables_and_indexes_of_somebody_else_do_no_harm(store: Path) -> None:
    change(store, "CREATE TABLE notes (text)", "CREATE INDEX by_status ON traces (status)", "ANALYZE")
    async with opened(store) as storage:
        assert (await storage.load("t")).rev == 1


@pytest.mark.parametrize("name", [FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", f"{FILE_NAME}-journal", "owners"])
async def test_links_out_of_the_store_are_not_followed(store: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    if name == FILE_NAME:
        (store / name).rename(elsewhere)
    elif name == "owners":
        elsewhere.mkdir()
        (elsewhere / "x.marks").write_text("mine")
    else:
        elsewhere.write_text("mine")
    (store / name).unlink(missing_ok=True)
    (store / name).symlink_to(elsewhere)
    with pytest.raises(StoragePathError, match="is a symbolic link"):
        await SQLiteCheckpointStorage(store).initialize()
    with pytest.raises(StoragePathError, match="is a symbolic link"):
        examine(store)
    if elsewhere.is_dir():
        assert (elsewhere / "x.marks").read_text() == "mine"


async def test_a_link_to_a_store_is_its_users_own(store: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(store)
    async with opened(tmp_path / "link") as storage:
        assert (await storage.load("t")).rev == 1


@pytest.mark.parametrize("parent", ["key", "key + 1", "'x'", "-1", "0", "1000"])
async def test_a_trace_is_not_its_own_forebear(store: Path, parent: str) -> None:
    change(store, f"UPDATE traces SET parent = {parent} WHERE trace_id = 'f'")
    async with opened(store) as storage:
        with anyio.fail_after(10), pytest.raises(CheckpointDamaged, match="'f' is damaged"):
            await storage.load("f")
        with pytest.raises(CheckpointDamaged):
            await storage.steps("f")
        assert (await storage.load("t")).rev == 1


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("step", "text"),
        ("step", -1),
        ("rev", "text"),
        ("graph", "text"),
        ("status", "weird"),
        ("updated_at", 1e300),
        ("updated_at", float("inf")),
        ("created_at", b"bytes"),
        ("history", -5),
        ("graph_path", b"bytes"),
        ("error", 7),
    ],
)
async def test_a_trace_whose_row_makes_no_sense(store: Path, column: str, value: Any) -> None:
    change(store, f"UPDATE traces SET {column} = ? WHERE trace_id = 't'", values=(value,))
    async with opened(store) as storage:
        with pytest.raises((CheckpointDamaged, DatabaseCorrupt)):
            await storage.load("t")


async def test_an_owner_that_makes_no_sense(store: Path) -> None:
    columns = "id, host, boot_id, pid_namespace, pid, started, since, beat, renewed_at"
    change(store, f"INSERT INTO owners ({columns}) VALUES ('x', 1, 2, 3, 'four', 5, 'six', 7, 8)")
    with pytest.raises(DatabaseCorrupt, match="Owner"):
        await SQLiteCheckpointStorage(store).initialize()


async def test_a_length_that_is_not_there_is_not_made_room_for(store: Path) -> None:
    body = b"\x01" + (2**31).to_bytes(4, "big") + b"x"
    change(store, "UPDATE messages SET body = ?", values=(body,))
    async with opened(store) as storage:
        with pytest.raises(CheckpointDamaged, match="cannot be decoded"):
            await storage.messages("t")


@pytest.mark.parametrize("prefix", ["%", "_", "t%", "[t]", "*", "' OR 1 --"])
async def test_what_is_looked_for_is_looked_for_literally(store: Path, prefix: str) -> None:
    async with opened(store) as storage:
        assert await storage.traces(prefix=prefix) == []
        assert await storage.traces(graph_id=prefix) == []
        assert await storage.trace(prefix) is None


async def test_half_a_character_is_looked_for_nowhere(store: Path) -> None:
    async with opened(store) as storage:
        with pytest.raises(ValueNotStorable, match="lone surrogate"):
            await storage.trace("\ud800")
        with pytest.raises(ValueNotStorable, match="lone surrogate"):
            await storage.traces(prefix="\ud800")


@pytest.mark.parametrize(
    "saved",
    [{"graph_id": "\ud800"}, {"node_id": "\ud800"}, {"state": {"visited_nodes": ["\ud800"]}}, {"trace_id": "\ud800"}],
)
async def test_half_a_character_is_not_saved_by_hand(store: Path, saved: dict[str, Any]) -> None:
    async with opened(store) as storage:
        with pytest.raises(ValueNotStorable, match="lone surrogate"):
            await storage.save_checkpoint(**{"graph_id": "g", "trace_id": "by-hand", "step": 1, **saved})
        assert await storage.save_checkpoint(graph_id="g", trace_id="by-hand", step=1, node_id="n")


# -- the marks of owners -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["../x", "a/b", "..", "/etc/passwd", "a\0b", "", "."])
def test_the_marks_of_an_owner_stay_in_their_directory(tmp_path: Path, owner: str) -> None:
    path = high_water.path_in(tmp_path, owner)
    assert path.parent == tmp_path / "owners"
    assert Path(os.path.normpath(path)) == path
    assert high_water.read(path) == {}


@pytest.mark.timeout(10)
def test_marks_that_are_none_tell_nothing(tmp_path: Path) -> None:
    (tmp_path / "garbage").write_bytes(os.urandom(100_000))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 2**33)
    for path in tmp_path.iterdir():
        assert high_water.read(path) == {}, path.name


def test_marks_are_not_written_where_a_link_leads(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = high_water.path_in(tmp_path, "owner")
    path.parent.mkdir()
    path.symlink_to(victim)
    with pytest.raises(StoragePathError):
        high_water.HighWaterFile(path).make()
    assert victim.read_text() == "mine"


# -- who may read what is made -----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o777])
@pytest.mark.parametrize("journal", ["wal", "truncate"])
async def test_every_file_that_is_made_is_its_users_alone(
    tmp_path: Path, umask: int, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllm.storage.sqlite.database._journal_mode", lambda: journal)
    before = os.umask(umask)
    try:
        storage = SQLiteCheckpointStorage(tmp_path / "store")
        await storage.initialize()
        owner = this_process()
        storage.renew(owner)
        storage.high_water(owner, 1, 1).note(1, 1)
        writer = Writer("t", owner.id)
        await storage.commit([writer.admit(plan=["a"])])
        salvage(tmp_path / "store", ["t"], tmp_path / "deep" / "saved")
    finally:
        os.umask(before)
    made = [path for name in ("store", "deep") for path in (tmp_path / name, *(tmp_path / name).rglob("*"))]
    assert {path.name for path in made} >= {FILE_NAME, "owners", "saved"}
    if journal == "wal":
        assert {path.name for path in made} >= {f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"}
    else:
        assert f"{FILE_NAME}-journal" in {path.name for path in made}
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    storage.retire(owner)
    await storage.close()
