"""What a store knows of the processes that execute its traces, dead and alive."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from tests.storage.deltas import Writer
from tinyllm.errors import StorageError, StorageNotOpen, StoragePathError
from tinyllm.storage.contract import Acquired, Owner, Release, Status, TraceRecord
from tinyllm.storage.owners import alive, this_process
from tinyllm.storage.sqlite import SQLiteCheckpointStorage, owned
from tinyllm.storage.sqlite.library import sqlite3

pytestmark = pytest.mark.anyio


@pytest.fixture
async def storage(tmp_path: Path, anyio_backend: str) -> AsyncIterator[SQLiteCheckpointStorage]:
    opened = SQLiteCheckpointStorage(tmp_path)
    await opened.initialize()
    yield opened
    await opened.close()


def dead() -> Owner:
    """An owner that this machine knows to be dead."""
    owner = attrs.evolve(this_process(), pid=2**31 - 1)
    assert alive(owner) is False
    return owner


async def owned_by(storage: SQLiteCheckpointStorage, owner: Owner, trace_id: str = "t") -> Writer:
    storage.renew(owner)
    writer = Writer(trace_id, owner.id)
    return writer.admitted((await storage.commit([writer.admit()]))[0])


async def record(storage: SQLiteCheckpointStorage, trace_id: str = "t") -> TraceRecord:
    found = await storage.trace(trace_id)
    assert found is not None
    return found


async def test_running_or_interrupted_is_judged_by_the_owner(storage: SQLiteCheckpointStorage) -> None:
    living, gone = this_process(), dead()
    elsewhere = attrs.evolve(this_process(), host="elsewhere", boot_id="another")
    for name, owner in (("living", living), ("gone", gone), ("elsewhere", elsewhere)):
        await owned_by(storage, owner, name)
    writer = await owned_by(storage, living, "released")
    await storage.commit([Release(writer.key, 1)])
    await storage.commit([Writer("never", None).admit(), Writer("done", living.id).admit(status="completed")])
    judged = {
        found.trace_id: (found.status, found.owner.id if found.owner else None, found.owner_alive)
        for found in await storage.traces()
    }
    assert judged == {
        "living": ("running", living.id, True),
        "gone": ("interrupted", gone.id, False),
        "elsewhere": ("running", elsewhere.id, None),
        "released": ("interrupted", None, False),
        "never": ("interrupted", None, False),
        "done": ("completed", None, False),
    }
    statuses: list[Status] = ["running", "interrupted", "completed", "failed"]
    for status in statuses:
        listed = {found.trace_id for found in await storage.traces(status=status)}
        assert listed == {name for name, (was, _, _) in judged.items() if was == status}


async def test_what_a_retired_owner_still_had_is_interrupted(storage: SQLiteCheckpointStorage) -> None:
    owner = this_process()
    await owned_by(storage, owner)
    storage.retire(owner)
    found = await record(storage)
    assert (found.status, found.owner, found.owner_beat) == ("interrupted", None, 0)
    storage.retire(owner)


@pytest.mark.parametrize("how", ["retired on a full disk", "closed early"])
async def test_a_process_is_not_locked_out_by_a_lease_it_could_not_remove(
    storage: SQLiteCheckpointStorage, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, successor = this_process(), this_process()
    writer = await owned_by(storage, owner)
    storage.high_water(owner, writer.key, writer.epoch).note(3, 1)
    if how == "closed early":
        await storage.close()
        await storage.initialize()
    else:

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(owned, "retire", full)
            with pytest.raises(StorageError, match="full"):
                storage.retire(owner)
    found = await record(storage)
    assert (found.status, found.owner, found.owner_alive) == ("interrupted", owner, False)
    assert found.high_water == (3, 1)
    storage.renew(successor)
    assert await storage.commit([writer.acquire(successor.id)]) == [Acquired(2)]
    assert (await record(storage)).owner_alive is True


async def test_a_closed_store_keeps_no_owner(storage: SQLiteCheckpointStorage) -> None:
    owner = this_process()
    storage.renew(owner)
    await storage.close()
    with pytest.raises(StorageNotOpen):
        storage.renew(owner)  # the lease keeper's thread, late
    assert alive(owner) is False
    await storage.initialize()


async def test_an_owner_has_a_place_for_marks_before_it_has_a_trace(
    storage: SQLiteCheckpointStorage, tmp_path: Path
) -> None:
    owner, unlucky = this_process(), this_process()
    storage.renew(owner)
    (file,) = (tmp_path / "owners").iterdir()
    storage.retire(owner)
    assert not file.exists()
    (tmp_path / "owners").rmdir()
    (tmp_path / "owners").write_text("a file")
    storage.renew(unlucky)  # a lease it can have all the same
    with pytest.raises(StoragePathError, match="owners"):
        storage.high_water(unlucky, 1, 1)
    (tmp_path / "owners").unlink()


async def test_whoever_notes_something_does_not_wait_for_a_lease(
    storage: SQLiteCheckpointStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may wait as long as another process has the database's lock, and who notes something is the event loop."""
    owner = this_process()
    storage.renew(owner)
    waits, go_on = threading.Event(), threading.Event()

    def renew(*_: object) -> None:
        waits.set()
        assert go_on.wait(30)

    monkeypatch.setattr(owned, "renew", renew)
    keeper = threading.Thread(target=storage.renew, args=(owner,))
    keeper.start()
    try:
        assert waits.wait(30)
        storage.high_water(owner, 1, 1).close()
    finally:
        go_on.set()
        keeper.join()


async def test_how_far_a_dead_owner_was_is_known_until_another_takes_over(
    storage: SQLiteCheckpointStorage, tmp_path: Path
) -> None:
    gone = dead()
    writer = await owned_by(storage, gone)
    mark = storage.high_water(gone, writer.key, writer.epoch)
    mark.note(17, 3)
    assert (await record(storage)).high_water == (17, 3)
    await storage.close()
    await storage.initialize()
    assert (await record(storage)).high_water == (17, 3)
    successor = this_process()
    storage.renew(successor)
    await storage.commit([writer.acquire(successor.id)])
    assert (await record(storage)).high_water is None
    storage.high_water(successor, writer.key, 2).note(18, 0)
    assert (await record(storage)).high_water == (18, 0)
    storage.retire(successor)
    assert list((tmp_path / "owners").iterdir()) == []  # the dead owner's went with it: no trace names it


async def test_dead_owners_are_forgotten_once_no_trace_names_them(
    storage: SQLiteCheckpointStorage, tmp_path: Path
) -> None:
    idle, needed, living = dead(), dead(), this_process()
    writer = await owned_by(storage, needed)
    for owner in (idle, needed, living):
        storage.renew(owner)
        storage.high_water(owner, writer.key, 1)
    assert len(list((tmp_path / "owners").iterdir())) == 3
    another = SQLiteCheckpointStorage(tmp_path)
    await another.initialize()
    kept = {path.name.removesuffix(".marks") for path in (tmp_path / "owners").iterdir()}
    assert kept == {needed.id, living.id}
    await storage.close()  # early: nobody keeps what it kept
    await another.close()
    await storage.initialize()
    kept = {path.name.removesuffix(".marks") for path in (tmp_path / "owners").iterdir()}
    assert kept == {needed.id}


_DIES = """
import os, signal, sys
import anyio
from tests.storage.deltas import Writer
from tinyllm.storage.owners import this_process
from tinyllm.storage.sqlite import SQLiteCheckpointStorage
async def main():
    storage = SQLiteCheckpointStorage(sys.argv[1])
    await storage.initialize()
    owner = this_process()
    storage.renew(owner)
    writer = Writer("t", owner.id)
    writer.admitted((await storage.commit([writer.admit()]))[0])
    mark = storage.high_water(owner, writer.key, writer.epoch)
    await storage.commit([writer.append(end=1, plan=["b", "b"])])
    mark.note(4, 2)
    os.kill(os.getpid(), signal.SIGKILL)
anyio.run(main, backend=sys.argv[2])
"""


async def test_a_killed_process_leaves_what_was_durable_and_how_much_was_not(
    storage: SQLiteCheckpointStorage, tmp_path: Path, anyio_backend: str
) -> None:
    killed = subprocess.run([sys.executable, "-c", _DIES, str(tmp_path), anyio_backend], check=False)
    assert killed.returncode == -signal.SIGKILL
    found = await record(storage)
    assert (found.status, found.step, found.high_water) == ("interrupted", 1, (4, 2))
    assert len((await storage.load("t")).frontier) == 2
