"""What every store promises about leases and high-water marks, on every backend and both event loops."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from tests.storage.backends import CLOCKS, admit, backend_of, commit_one, found, ids, run_steps
from tinyllm.storage.contract import CheckpointStorage, Owner, Release
from tinyllm.storage.owners import alive, this_process

pytestmark = pytest.mark.anyio
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")


async def test_each_renewal_raises_the_beat_by_one(storage: CheckpointStorage, owner: Owner) -> None:
    await admit(storage, owner=owner)
    before = (await found(storage)).owner_beat
    for count in range(1, 4):
        storage.renew(owner)
        assert (await found(storage)).owner_beat == before + count


async def test_commits_renew_the_leases_of_what_they_write_at_most_once_a_second(
    storage: CheckpointStorage, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1e9
    monkeypatch.setattr(CLOCKS[backend_of(storage)], lambda: now)
    storage.renew(owner)
    other = attrs.evolve(owner, id="other")
    storage.renew(other)
    writer = await admit(storage, owner=owner)
    await admit(storage, "others", other)
    beats = []
    for now in (1e9 + 10, 1e9 + 10.5, 1e9 + 10.9, 1e9 + 11.5, 1e9 + 12):  # noqa: B007 - the clock reads it
        await run_steps(storage, writer, 3)
        beats.append((await found(storage)).owner_beat)
    assert [beat - beats[0] for beat in beats] == [0, 0, 0, 1, 1]
    before = (await found(storage, "others")).owner_beat
    now = 1e9 + 20
    await run_steps(storage, writer, 1)
    assert (await found(storage, "others")).owner_beat == before


async def test_a_trace_is_interrupted_when_its_owner_retires(storage: CheckpointStorage, owner: Owner) -> None:
    await admit(storage, owner=owner)
    assert (await found(storage)).status == "running"
    storage.retire(owner)
    record = await found(storage)
    assert (record.status, record.owner, record.owner_alive) == ("interrupted", None, False)
    assert await ids(storage, status="interrupted") == ["t"]
    storage.retire(owner)


@linux
async def test_an_owner_lives_from_its_first_renewal_until_it_retires(storage: CheckpointStorage) -> None:
    """Not as long as its process: else that would be locked out of its own traces where a lease cannot be removed."""
    this = this_process()
    assert alive(this) is False
    storage.renew(this)
    storage.renew(this)
    assert alive(this) is True
    storage.retire(this)
    assert alive(this) is False


@linux
async def test_no_owner_outlives_the_store_that_kept_it(storage: CheckpointStorage) -> None:
    this, other = this_process(), this_process()
    storage.renew(this)
    storage.renew(other)
    await storage.close()
    assert alive(this) is False
    assert alive(other) is False


async def test_a_dead_owner_leaves_its_trace_interrupted(storage: CheckpointStorage, owner: Owner) -> None:
    dead = attrs.evolve(owner, id="dead", started="0")  # its process id was given again since
    storage.renew(dead)
    await admit(storage, owner=dead)
    record = await found(storage)
    assert (record.status, record.owner, record.owner_alive) == ("interrupted", dead, False)


async def test_an_owner_elsewhere_cannot_be_judged(storage: CheckpointStorage, owner: Owner) -> None:
    away = attrs.evolve(owner, id="away", host="elsewhere", boot_id="another")
    storage.renew(away)
    await admit(storage, owner=away)
    record = await found(storage)
    assert (record.status, record.owner, record.owner_alive) == ("running", away, None)
    assert await ids(storage, status="running") == ["t"]


async def test_the_high_water_mark_is_the_last_note(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, owner=owner)
    other = await admit(storage, "other", owner)
    assert (await found(storage)).high_water is None
    mark = storage.high_water(owner, writer.key, writer.epoch)
    others = storage.high_water(owner, other.key, other.epoch)
    others.note(1, 1)
    for step in range(3):
        mark.note(step, 2)
    assert (await found(storage)).high_water == (2, 2)
    mark.note(7, 4_000_000)
    assert (await found(storage)).high_water == (7, 4_000_000)
    mark.close()
    mark.close()
    assert (await found(storage)).high_water is None
    assert (await found(storage, "other")).high_water == (1, 1)
    others.close()


async def test_the_high_water_mark_is_the_last_owners(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, owner=owner)
    old = storage.high_water(owner, writer.key, writer.epoch)
    old.note(5, 1)
    taker = attrs.evolve(owner, id="taker")
    storage.renew(taker)
    await commit_one(storage, writer.acquire(taker.id))
    assert (await found(storage)).high_water is None
    new = storage.high_water(taker, writer.key, writer.epoch + 1)
    new.note(2, 3)
    old.note(6, 1)  # a late note of the one before
    assert (await found(storage)).high_water == (2, 3)
    old.close()
    assert (await found(storage)).high_water == (2, 3)
    new.close()
    await commit_one(storage, Release(writer.key, writer.epoch + 1))
    assert (await found(storage)).high_water is None
