"""The queue in SQLite: what a claim reads, what several processes get of it, and what damage does to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from time import time

import anyio
import attrs
import pytest

from tests.storage.backends import admit, commit_one, found
from tests.storage.test_conformance_claims import AN_HOUR, claim, claimed, disown, submit
from tests.storage.test_sqlite_damage import damage
from tinyllm.errors import CheckpointDamaged
from tinyllm.storage.contract import Claim, Delete, Disown, Done, Owned, Release, Wanted
from tinyllm.storage.high_water import path_in
from tinyllm.storage.owners import this_process
from tinyllm.storage.sqlite import SQLiteCheckpointStorage, claims, owned
from tinyllm.storage.sqlite.health import examine
from tinyllm.storage.sqlite.library import sqlite3
from tinyllm.storage.sqlite.salvage import salvage
from tinyllm.storage.sqlite.sense import check

pytestmark = pytest.mark.anyio


@pytest.fixture
async def storage(tmp_path: Path, anyio_backend: str) -> AsyncIterator[SQLiteCheckpointStorage]:
    opened = SQLiteCheckpointStorage(tmp_path / "store")
    await opened.initialize()
    yield opened
    await opened.close()


def connected(storage: SQLiteCheckpointStorage) -> sqlite3.Connection:
    return sqlite3.connect(storage._path, isolation_level=None)


def crowd(storage: SQLiteCheckpointStorage, count: int, **columns: object) -> None:
    """That many more traces that are like `t`, but for these columns."""
    connection = connected(storage)
    names = [row[1] for row in connection.execute("PRAGMA table_info(traces)") if row[1] not in ("key", "trace_id")]
    (number,) = connection.execute("SELECT count(*) FROM traces").fetchone()
    connection.execute(
        f"WITH RECURSIVE n(n) AS (SELECT {number} UNION ALL SELECT n + 1 FROM n WHERE n < {number + count - 1})"
        f" INSERT INTO traces (trace_id, {', '.join(names)})"
        f" SELECT 'u' || n, {', '.join(f':{name}' if name in columns else name for name in names)}"
        " FROM n, traces WHERE trace_id = 't'",
        columns,
    )
    connection.close()


# -- what it costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "index", "values"),
    [
        (claims._FIRST, "traces_ready (graph_id=? AND apart=?)", 3),
        (claims._ANY_READY, "traces_ready (graph_id=? AND apart=?)", 2),
        (claims._COUNT_READY, "traces_ready (graph_id=?)", 1),
        (claims._RIPEN, "traces_later (graph_id=? AND apart=? AND due>? AND due<?)", 3),
        (claims._NEXT, "traces_later (graph_id=? AND apart=? AND due>?)", 2),
        (claims._COUNT_LATER, "traces_later (graph_id=?)", 2),
        (claims._QUARANTINED, "traces_quarantined (graph_id=?)", 1),
        (claims._OWNED, "traces_owner", 1),
        (claims._DEMAND, "USING INDEX traces_ready", 0),
        (claims._HELD, "traces_owner (owner=?)", 1),
        (owned._LET_GO, "traces_owner (owner=?)", 1),
        (owned._IDLE, "traces_died (died=?)", 0),
    ],
)
async def test_it_goes_by_an_index(storage: SQLiteCheckpointStorage, statement: str, index: str, values: int) -> None:
    connection = connected(storage)
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", [1] * values)]
    connection.close()
    assert any(index in line for line in plan), plan
    assert not [line for line in plan if line.startswith("SCAN traces") and "INDEX" not in line], plan
    if statement in (claims._FIRST, claims._NEXT, claims._RIPEN):
        assert not [line for line in plan if "TEMP B-TREE" in line], plan


async def test_what_it_reads_does_not_grow_with_what_waits(storage: SQLiteCheckpointStorage) -> None:
    writer = await submit(storage, "t")
    crowd(storage, 50)

    def steps() -> int:
        """How many of SQLite's instructions a claim and a look at what is due take."""
        connection = connected(storage)
        taken = 0

        def count() -> int:
            nonlocal taken
            taken += 1
            return 0

        connection.execute("BEGIN")
        connection.set_progress_handler(count, 1)
        write = Claim((Wanted("g", "o", 100), Wanted("h", "o")), 16)
        assert len(claims.claim(connection, write, time()).traces) == 16
        assert claims.next_due(connection, ["g", "h"], False, time()) == 0
        connection.close()  # rolls back
        return taken

    few = steps()
    crowd(storage, 2000)
    crowd(storage, 2000, priority=9, due=time() + AN_HOUR)
    crowd(storage, 2000, graph_id="other", priority=9)
    crowd(storage, 2000, apart=1, priority=9)
    crowd(storage, 2000, status="completed", priority=9)
    crowd(storage, 2000, priority=10)
    connection = connected(storage)
    connection.execute("UPDATE traces SET trace_id = NULL WHERE priority = 10")  # deleted, but for what forks share
    connection.close()
    assert steps() < few * 1.05
    await commit_one(storage, Delete(writer.key))


async def test_what_ripens_at_once_ripens_in_slices(
    storage: SQLiteCheckpointStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time()
    await submit(storage, "t", not_before=now + AN_HOUR)
    crowd(storage, 2499)
    monkeypatch.setattr("tinyllm.storage.sqlite.store.time", lambda: now + AN_HOUR)
    ready = []
    for _ in range(4):
        assert len(await claim(storage, limit=10)) == 10
        connection = connected(storage)
        ready += connection.execute("SELECT count(*) FROM traces WHERE owner IS NULL AND due IS NULL").fetchone()
        connection.close()
        backlog = await storage.backlog(["g"])
        assert (backlog.waiting, backlog.later) == (2500 - 10 * len(ready), 0)
    assert ready == [990, 1980, 2470, 2460]


# -- several processes -----------------------------------------------------------------------------------------


async def test_two_stores_share_one_queue(storage: SQLiteCheckpointStorage) -> None:
    await submit(storage, "t")
    crowd(storage, 99)
    other = SQLiteCheckpointStorage(storage._directory)
    await other.initialize()
    taken: list[str] = []

    async def take(at: SQLiteCheckpointStorage, owner: str) -> None:
        while some := await claim(at, owner, 3, at_most=40):
            taken.extend(held.trace_id for held in some)

    async with anyio.create_task_group() as group:
        group.start_soon(take, storage, "a")
        group.start_soon(take, other, "b")
    assert len(taken) == len(set(taken)) == 40
    assert (await storage.backlog(["g"])).running == 40
    await other.close()


async def test_the_lease_and_the_marks_of_who_died_stay_while_a_trace_names_it(
    storage: SQLiteCheckpointStorage,
) -> None:
    this = this_process()
    storage.renew(this)
    await submit(storage, "t")
    (held,) = await claim(storage, this.id)
    storage.high_water(this, held.trace, held.epoch).note(3, 1)
    await storage.close()  # it dies without retiring
    await storage.initialize()
    await commit_one(storage, disown(held, this.id))
    for _ in range(2):
        await storage.close()
        await storage.initialize()  # sweeps
        record = await found(storage)
        assert (record.owner, record.owner_alive, record.high_water) == (this, False, (3, 1))
        assert [holder.traces for holder in examine(storage._directory).holders] == [0]
    await claimed(storage)
    await storage.close()
    await storage.initialize()
    assert not path_in(storage._directory, this.id).exists()
    assert examine(storage._directory).holders == ()


async def test_a_salvaged_trace_waits_as_it_did(storage: SQLiteCheckpointStorage, tmp_path: Path) -> None:
    await submit(storage, "t", 7)
    (held,) = await claim(storage)
    await commit_one(storage, disown(held, deaths=b"[1]", apart=True))
    await storage.close()
    assert salvage(storage._directory, ["t"], tmp_path / "new").copied == ("t",)
    new = SQLiteCheckpointStorage(tmp_path / "new")
    await new.initialize()
    record = await found(new)
    assert (record.priority, record.deaths, record.apart, record.owner) == (7, b"[1]", True, None)
    assert [each.trace_id for each in await claim(new, apart=True)] == ["t"]
    await new.close()
    await storage.initialize()


# -- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", ["priority = 'high'", "priority = x'00'", "trace_id = CAST(x'b1b2' AS TEXT)", "epoch = epoch + 5"]
)
async def test_a_damaged_trace_keeps_no_other_from_being_claimed(storage: SQLiteCheckpointStorage, change: str) -> None:
    await submit(storage, "t")
    await submit(storage, "u", -1)
    damage(storage, f"UPDATE traces SET {change} WHERE trace_id = 't'")
    assert [held.trace for held in await claim(storage)] == [1, 2]
    if change.startswith("priority"):
        assert (await storage.load("t")).record.priority == 0


@pytest.mark.parametrize(
    "change",
    [
        *(f"{column} = {value}" for column in ("apart", "due", "priority") for value in ("'x'", "x'00'", "1.5")),
        *(f"due = {value}" for value in ("1e300", "9e999", "-9e999", "-1")),
        "apart = -1",
        "priority = 9e999",
    ],
)
async def test_where_a_damaged_trace_is_executed_keeps_no_list_from_being_shown(
    storage: SQLiteCheckpointStorage, change: str
) -> None:
    await submit(storage, "t", 7)
    await submit(storage, "u", -1)
    damage(storage, f"UPDATE traces SET {change} WHERE trace_id = 't'")
    shown = {record.trace_id: record for record in await storage.traces()}
    assert (shown["u"].priority, shown["t"].status) == (-1, "queued")
    assert (shown["t"].apart, shown["t"].not_before) == (False, None)
    assert shown["t"].priority == (0 if change.startswith("priority") else 7)


@pytest.mark.parametrize("change", ["due = 'x'", "due = x'00'", "apart = 2", "apart = 'x'"])
async def test_what_nobody_would_claim_any_more_is_said_to_be_damaged(
    storage: SQLiteCheckpointStorage, change: str
) -> None:
    await submit(storage, "t")
    await submit(storage, "u", -1)
    damage(storage, f"UPDATE traces SET {change} WHERE trace_id = 't'")
    assert await claimed(storage) == ["u"]
    assert await storage.next_due(["g"]) is None
    with pytest.raises(CheckpointDamaged, match="'t' is damaged"):
        await storage.load("t")
    damage(storage, "DELETE FROM traces WHERE trace_id = 'u'")


async def test_what_is_in_demand_is_told_of_damaged_traces_too(storage: SQLiteCheckpointStorage) -> None:
    await submit(storage, "t")
    await submit(storage, "u", graph_id="h")
    damage(storage, "UPDATE traces SET graph_id = x'ff', graph_path = x'ff', priority = 'x' WHERE trace_id = 't'")
    found = await storage.demand()
    assert sorted((each.graph_id, each.waiting) for each in found) == [("h", 1), ("\ufffd", 1)]
    check(found)


@pytest.mark.parametrize(
    "change",
    [
        "step = 'x', priority = 'x', status = 'weird', apart = 2",
        "step = x'00', status = x'ff', deaths = CAST(x'b1b2' AS TEXT), deaths_crc = 'x', rev = 'x', updated_at = 'x'",
        "trace_id = CAST(x'b1b2' AS TEXT), graph_id = CAST(x'b1b2' AS TEXT), graph = 'x', error = 7, history = -1",
        "trace_id = x'b1b2', graph_id = x'b1b2', due = 'x', died = x'00', created_at = 'x', step = 1e300",
    ],
)
@pytest.mark.parametrize("how", [Release, Disown])
async def test_a_damaged_trace_can_be_taken_from_its_owner_as_any(
    storage: SQLiteCheckpointStorage, change: str, how: type
) -> None:
    await submit(storage, "t")
    await submit(storage, "u")
    await claimed(storage)
    damage(storage, f"UPDATE traces SET {change} WHERE trace_id = 't'")
    bad, good = await storage.held("o")
    assert good == Owned(2, "u", "g", 2, "queued", 0, None)
    assert (bad.trace, bad.epoch, bad.deaths) == (1, 2, None)
    assert bad.status in ("queued", "running")
    check(bad)
    writes = [Release(each.trace, each.epoch) if how is Release else disown(each) for each in (bad, good)]
    assert await storage.commit(writes) == [Done(), Done()]
    assert await storage.held("o") == []


@pytest.mark.parametrize("change", ["deaths = x'02'", "deaths = '[2]'", "deaths_crc = 7", "deaths_crc = NULL"])
async def test_damaged_deaths_are_none(storage: SQLiteCheckpointStorage, change: str) -> None:
    await submit(storage, "t")
    (held,) = await claim(storage)
    await commit_one(storage, disown(held, deaths=b"[1]"))
    assert (await found(storage)).deaths == b"[1]"
    damage(storage, f"UPDATE traces SET {change}")
    assert (await found(storage)).deaths is None
    assert await claimed(storage) == ["t"]


async def test_an_error_is_not_taken_for_deaths(storage: SQLiteCheckpointStorage) -> None:
    await submit(storage, "t")
    (held,) = await claim(storage)
    await commit_one(storage, disown(held, deaths=b"[1]", error=b"[1]"))
    damage(storage, "UPDATE traces SET deaths_crc = error_crc")
    assert (await found(storage)).deaths is None


async def test_big_deaths_are_kept(storage: SQLiteCheckpointStorage) -> None:
    await submit(storage, "t")
    (held,) = await claim(storage)
    deaths = b'["%s"]' % (b"x" * 100_000)
    await commit_one(storage, disown(held, deaths=deaths))
    assert (await found(storage)).deaths == deaths


async def test_a_process_of_the_version_before_may_go_on(storage: SQLiteCheckpointStorage) -> None:
    """It knows nothing of the new columns, and leaves them as they are."""
    owner = this_process()
    storage.renew(owner)
    writer = await admit(storage, owner=owner)
    await commit_one(storage, attrs.evolve(Release(writer.key, writer.epoch), not_before=time() + AN_HOUR))
    connection = connected(storage)
    connection.execute("UPDATE traces SET epoch = epoch + 1, owner = 'old' WHERE key = 1")
    assert await claim(storage) == []
    assert await storage.next_due(["g"]) is None
    connection.execute("UPDATE traces SET owner = NULL WHERE key = 1 AND epoch = 2")
    connection.close()
    assert await storage.next_due(["g"]) > time()  # type: ignore[operator] # it fails if it is None
    storage.retire(owner)
