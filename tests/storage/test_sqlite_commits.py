"""A store that lost its end is noticed, although what is left of it is valid."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.storage.deltas import Writer
from tinyllm.errors import CommitsMissing, StoragePathError
from tinyllm.storage.sqlite import SQLiteCheckpointStorage
from tinyllm.storage.sqlite.commits import FILE_NAME, CommitNotes, acknowledged
from tinyllm.storage.sqlite.health import examine
from tinyllm.storage.sqlite.library import has_wal_reset_bug

pytestmark = pytest.mark.anyio

needs_wal = pytest.mark.skipif(has_wal_reset_bug(), reason="this SQLite is used without a write-ahead log")


async def store_of_a_killed_process(directory: Path, commits: int) -> Path:
    """A copy of a store as it lies there while it is open: with a write-ahead log."""
    storage = SQLiteCheckpointStorage(directory)
    await storage.initialize()
    writer = Writer("t")
    writer.admitted((await storage.commit([writer.admit()]))[0])
    for step in range(1, commits):
        await storage.commit([writer.append(end=step, plan=["a"])])
    copy = directory.with_name("copy")
    shutil.copytree(directory, copy)
    await storage.close()
    return copy


@needs_wal
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
async def test_a_log_that_was_cut_off_is_noticed(tmp_path: Path, kept: float) -> None:
    copy = await store_of_a_killed_process(tmp_path / "store", 8)
    log = copy / "tinyllm.db-wal"
    os.truncate(log, int(log.stat().st_size * kept))
    storage = SQLiteCheckpointStorage(copy)
    with pytest.raises(CommitsMissing, match=FILE_NAME) as refused:
        await storage.initialize()
    assert 1 <= refused.value.count <= 8
    if kept:  # else there is not even a schema
        assert not examine(copy).sound
    (copy / FILE_NAME).unlink()
    await storage.initialize()
    record = await storage.trace("t")
    assert record is None or record.step < 7
    assert bool(kept) >= (record is not None)
    await storage.close()


async def test_a_killed_process_or_a_closed_store_misses_nothing(tmp_path: Path) -> None:
    copy = await store_of_a_killed_process(tmp_path / "store", 3)
    assert acknowledged(copy) == acknowledged(tmp_path / "store") == 3
    for directory in (copy, tmp_path / "store", copy):
        storage = SQLiteCheckpointStorage(directory)
        await storage.initialize()
        assert (await storage.load("t")).step == 2
        await storage.close()
    assert oct((copy / FILE_NAME).stat().st_mode & 0o777) == "0o600"


def test_the_highest_note_counts_and_a_torn_one_does_not(tmp_path: Path) -> None:
    assert acknowledged(tmp_path) == 0
    notes = CommitNotes(tmp_path)
    notes.note(7)
    other = CommitNotes(tmp_path)
    other._at = (other._at + 16) % 1024
    other.note(5)
    assert acknowledged(tmp_path) == 7
    notes._slots[notes._at] ^= 1
    assert acknowledged(tmp_path) == 5


@pytest.mark.parametrize("kind", ["link", "pipe"])
async def test_what_is_no_file_of_ours_is_refused(tmp_path: Path, kind: str) -> None:
    store, victim = tmp_path / "store", tmp_path / "victim"
    await store_of_a_killed_process(store, 1)
    victim.write_bytes(b"something else")
    (store / FILE_NAME).unlink()
    if kind == "link":
        (store / FILE_NAME).symlink_to(victim)
    else:
        os.mkfifo(store / FILE_NAME)
    storage = SQLiteCheckpointStorage(store)
    with pytest.raises(StoragePathError, match=FILE_NAME):
        await storage.initialize()
        await storage.commit([Writer("w").admit()])
    await storage.close()
    assert victim.read_bytes() == b"something else"
