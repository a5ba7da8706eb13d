"""What every store promises of traces that wait to be claimed, and of those whose owner died."""

from __future__ import annotations

from collections.abc import Sequence
from time import time

import anyio
import attrs
import pytest

from tests.storage.backends import admit, commit_one, fork, found, ids, run_steps
from tests.storage.deltas import Writer
from tinyllm.errors import OwnershipLost
from tinyllm.storage.contract import (
    TERMINAL,
    Acquired,
    Acquit,
    Admitted,
    Append,
    Backlog,
    CheckpointStorage,
    Claim,
    Claimed,
    Command,
    Delete,
    Demand,
    Disown,
    Done,
    FallBack,
    Held,
    Lease,
    Leave,
    Owned,
    Owner,
    Release,
    Status,
    Wanted,
)
from tinyllm.storage.owners import this_process

pytestmark = pytest.mark.anyio

ERROR = b'{"type": "E", "message": "it killed three workers"}'
AN_HOUR = 3600.0


async def submit(
    storage: CheckpointStorage,
    trace_id: str,
    priority: int = 0,
    not_before: float | None = None,
    *,
    graph_id: str = "g",
    status: Status = "queued",
) -> Writer:
    writer = Writer(trace_id)
    write = writer.admit(graph_id=graph_id, status=status)
    return writer.admitted(await commit_one(storage, attrs.evolve(write, priority=priority, not_before=not_before)))


async def claim(
    storage: CheckpointStorage,
    owner: str = "o",
    limit: int = 10,
    *,
    graphs: Sequence[str] = ("g",),
    at_most: int | None = None,
    apart: bool = False,
) -> list[Held]:
    wanted = tuple(Wanted(graph_id, owner, at_most) for graph_id in graphs)
    outcome = await commit_one(storage, Claim(wanted, limit, apart))
    assert isinstance(outcome, Claimed)
    return list(outcome.traces)


async def claimed(storage: CheckpointStorage, owner: str = "o", limit: int = 10) -> list[str]:
    return [held.trace_id for held in await claim(storage, owner, limit)]


def disown(held: Held, owner: str = "o", **what: bytes | bool) -> Disown:
    return Disown(held.trace, held.trace_id, held.epoch, owner, **what)  # type: ignore[arg-type] # as each says


# -- which, and in which order ---------------------------------------------------------------------------------


async def test_the_highest_priority_goes_first_and_then_the_oldest(storage: CheckpointStorage) -> None:
    for number, priority in enumerate((0, 5, -2, 5, 2**40, 0)):
        await submit(storage, f"t{number}", priority)
    assert await claimed(storage, limit=3) == ["t4", "t1", "t3"]
    assert await claimed(storage) == ["t0", "t5", "t2"]
    assert await claimed(storage) == []
    assert (await found(storage, "t4")).priority == 2**40
    assert (await found(storage, "t2")).priority == -2


async def test_graphs_are_merged_and_only_those_wanted_are_claimed(storage: CheckpointStorage) -> None:
    for number, priority in enumerate((0, 1, 0, 1, 0, 1)):
        await submit(storage, f"t{number}", priority, graph_id="ggghhi"[number])
    assert await claimed(storage, limit=0) == []
    held = await claim(storage, limit=4, graphs=["h", "g", "missing"])
    assert [(each.trace_id, each.graph_id) for each in held] == [("t1", "g"), ("t3", "h"), ("t0", "g"), ("t2", "g")]
    wanted = (Wanted("h", "one"), Wanted("i", "two"), Wanted("i", "two"))
    assert isinstance(await commit_one(storage, Claim(wanted, 10)), Claimed)
    assert [record.trace_id for record in await storage.held("one")] == ["t4"]
    assert [record.trace_id for record in await storage.held("two")] == ["t5"]


async def test_a_claimed_trace_belongs_to_its_owner_and_is_told_as_any(
    storage: CheckpointStorage, owner: Owner
) -> None:
    writer = await submit(storage, "t")
    record = await found(storage)
    assert (record.status, record.owner, record.epoch) == ("queued", None, 1)
    (held,) = await claim(storage, owner.id)
    assert held == Held(writer.key, "t", "g", 2)
    record = await found(storage)
    assert (record.status, record.owner, record.owner_alive, record.epoch) == ("queued", owner, True, 2)
    assert (await storage.load("t")).status == "queued"
    assert isinstance(await commit_one(storage, attrs.evolve(writer.append(), trace_id="t")), OwnershipLost)
    writer.epoch, writer.rev = 2, 0
    await run_steps(storage, writer, 2)
    assert (await found(storage)).status == "running"


async def test_what_is_not_to_start_yet_waits_for_its_time(
    storage: CheckpointStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time()
    await submit(storage, "soon", 9, now + AN_HOUR)
    await submit(storage, "later", 9, now + 2 * AN_HOUR)
    await submit(storage, "past", -1, now - AN_HOUR)
    await submit(storage, "now")
    assert await storage.next_due(["g"]) == 0
    assert (await found(storage, "soon")).not_before == now + AN_HOUR
    assert (await found(storage, "past")).not_before is None
    assert await claimed(storage) == ["now", "past"]
    assert await storage.next_due(["other", "g"]) == now + AN_HOUR
    assert await storage.next_due(["other"]) is None
    assert await storage.next_due([]) is None
    for module in ("sqlite.store", "sqlite.read", "memory"):
        monkeypatch.setattr(f"tinyllm.storage.{module}.time", lambda: now + 1.5 * AN_HOUR)
    assert await storage.next_due(["g"]) == 0
    assert (await found(storage, "soon")).not_before is None
    assert await claimed(storage) == ["soon"]
    assert await storage.next_due(["g"]) == now + 2 * AN_HOUR


async def test_no_more_than_at_most_of_a_graph_have_an_owner(storage: CheckpointStorage, owner: Owner) -> None:
    for number in range(6):
        await submit(storage, f"t{number}")
    await admit(storage, "running", owner)
    await submit(storage, "other", graph_id="h")
    assert [held.trace_id for held in await claim(storage, at_most=3)] == ["t0", "t1"]
    assert await claim(storage, "another", at_most=3) == []
    assert [held.trace_id for held in await claim(storage, graphs=["g", "h"], at_most=1)] == ["other"]
    storage.retire(owner)
    assert [held.trace_id for held in await claim(storage, at_most=3)] == ["t2"]


async def test_a_place_is_left_to_what_is_to_be_executed_apart(
    storage: CheckpointStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time()
    await submit(storage, "alone", 9)
    (held,) = await claim(storage)
    await commit_one(storage, disown(held, apart=True))
    await submit(storage, "other", graph_id="h")
    for number in range(4):
        await submit(storage, f"t{number}", 99)
    assert await claim(storage, at_most=1) == []
    assert [each.trace_id for each in await claim(storage, graphs=["g", "h"], at_most=2)] == ["t0", "other"]
    assert await claim(storage, at_most=2) == []
    assert await claim(storage, at_most=1, apart=True) == []  # it has a place, but not more than there are
    (held,) = await claim(storage, at_most=2, apart=True)
    assert held.trace_id == "alone"
    assert await claim(storage, at_most=2) == []
    assert [each.trace_id for each in await claim(storage, at_most=3)] == ["t1"]
    await commit_one(storage, Release(held.trace, held.epoch, now + AN_HOUR))  # until then, it needs none
    assert [each.trace_id for each in await claim(storage, at_most=3)] == ["t2"]
    for module in ("sqlite.store", "memory"):
        monkeypatch.setattr(f"tinyllm.storage.{module}.time", lambda: now + 2 * AN_HOUR)
    assert await claim(storage, at_most=4) == []
    assert [each.trace_id for each in await claim(storage)] == ["t3"]  # where there is no limit, none is needed


@pytest.mark.parametrize("status", sorted(TERMINAL | {"paused"}))
async def test_what_has_ended_or_is_paused_does_not_wait(storage: CheckpointStorage, status: Status) -> None:
    await submit(storage, "t", status=status)
    assert await claim(storage) == []
    assert await storage.next_due(["g"]) is None


async def test_an_interrupted_trace_waits(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, owner=owner)
    assert await claim(storage) == []
    await commit_one(storage, Release(writer.key, writer.epoch))
    assert await claimed(storage) == ["t"]
    retired = await admit(storage, "retired", owner)
    storage.retire(owner)
    (held,) = await claim(storage)
    assert (held.trace, held.epoch) == (retired.key, 2)


async def test_a_trace_of_a_program_that_keeps_it_itself_never_waits(storage: CheckpointStorage) -> None:
    for step in range(1, 3):
        await storage.save_checkpoint(graph_id="g", trace_id="t", step=step, state={"x": step})
        assert await claim(storage) == []


async def test_a_trace_that_was_answered_from_outside_waits(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, owner=owner)
    await commit_one(storage, writer.append(status="paused", body=None))
    assert await claim(storage) == []
    await commit_one(storage, writer.acquire("token", definition=None))
    writer.epoch += 1
    await storage.commit([writer.append(body=None), Release(writer.key, writer.epoch)])
    assert await claimed(storage) == ["t"]


async def test_a_deleted_trace_is_not_claimed(storage: CheckpointStorage) -> None:
    writer = await submit(storage, "t")
    later = await submit(storage, "later", not_before=time() + AN_HOUR)
    child = await fork(storage, writer, 0)  # something of it is kept
    await storage.commit([Delete(writer.key), Delete(later.key)])
    assert await claimed(storage) == ["child"]
    assert await storage.next_due(["g"]) is None
    await commit_one(storage, Delete(child.key))
    assert await storage.backlog(["g"]) == Backlog(0, 0, 0, 0, 0, None)


async def test_a_fork_has_the_priority_of_its_parent(storage: CheckpointStorage) -> None:
    parent = await submit(storage, "parent", 7, time() + AN_HOUR)
    await fork(storage, parent, 0)
    record = await found(storage, "child")
    assert (record.priority, record.not_before) == (7, None)


async def test_who_falls_back_keeps_the_priority(storage: CheckpointStorage) -> None:
    writer = await submit(storage, "t", 7)
    (held,) = await claim(storage)
    writer.epoch = held.epoch
    await run_steps(storage, writer, 2)
    _, again = writer.fork(await storage.load("t", 1), "t")
    write = FallBack(
        trace=writer.key,
        trace_id="t",
        epoch=writer.epoch,
        reached=2,
        rev=1,
        kept_as="t.damaged",
        error=ERROR,
        owner=None,
        first=again.first,
    )
    assert isinstance(await commit_one(storage, write), Admitted)
    assert (await found(storage)).priority == 7
    assert await claimed(storage) == ["t"]
    assert (await found(storage, "t.damaged")).status == "quarantined"


async def test_two_that_claim_at_once_get_different_traces(storage: CheckpointStorage) -> None:
    for number in range(20):
        await submit(storage, f"t{number:02}")
    taken: dict[str, list[str]] = {"a": [], "b": []}

    async def take(owner: str) -> None:
        while some := await claimed(storage, owner, 3):
            taken[owner] += some

    async with anyio.create_task_group() as group:
        for owner in taken:
            group.start_soon(take, owner)
    assert sorted(taken["a"] + taken["b"]) == [f"t{number:02}" for number in range(20)]
    for owner, traces in taken.items():
        assert [record.trace_id for record in await storage.held(owner)] == sorted(traces)


async def test_a_claim_sees_what_was_written_before_it_in_its_transaction(storage: CheckpointStorage) -> None:
    writer = Writer("t")
    write = Claim((Wanted("g", "o"),), 1)
    outcomes = await storage.commit([writer.admit(status="queued"), write, write])
    assert outcomes[1:] == [Claimed((Held(1, "t", "g", 2),)), Claimed(())]
    writer.admitted(outcomes[0])
    writer.epoch = 2
    ends = writer.append(end=1, status="completed")
    assert (await storage.commit([ends, write]))[1] == Claimed(())


# -- giving up and taking over ---------------------------------------------------------------------------------


async def test_who_gives_it_up_may_say_until_when_it_rests(storage: CheckpointStorage) -> None:
    await submit(storage, "t")
    (held,) = await claim(storage)
    later = time() + AN_HOUR
    assert await commit_one(storage, Release(held.trace, held.epoch - 1, 1.0)) == Done()
    assert (await found(storage)).epoch == held.epoch
    assert await storage.held("o")
    assert await commit_one(storage, Release(held.trace, held.epoch, later)) == Done()
    assert await claim(storage) == []
    assert await storage.next_due(["g"]) == later
    assert (await found(storage)).not_before == later
    await commit_one(storage, Release(held.trace, held.epoch, later))  # whoever does not know whether it was done
    assert await storage.next_due(["g"]) == later


async def test_who_acquires_it_need_not_wait(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await submit(storage, "t", not_before=time() + AN_HOUR)
    assert await commit_one(storage, writer.acquire(owner.id)) == Acquired(2)
    assert (await found(storage)).not_before is None
    assert await claim(storage) == []
    await commit_one(storage, Release(writer.key, 2))
    assert await claimed(storage) == ["t"]


async def test_a_trace_whose_owner_died_is_taken_away_from_it(storage: CheckpointStorage, owner: Owner) -> None:
    dead = attrs.evolve(owner, id="dead", started="0")
    storage.renew(dead)
    writer = await submit(storage, "t")
    (held,) = await claim(storage, dead.id)
    writer.epoch = held.epoch
    await run_steps(storage, writer, 2)
    storage.high_water(dead, held.trace, held.epoch).note(7, 2)
    before = await found(storage)
    for refused in (disown(held, "another", deaths=b"[1]"), disown(attrs.evolve(held, epoch=1), dead.id, apart=True)):
        assert isinstance(await commit_one(storage, refused), OwnershipLost)
    assert await found(storage) == before
    assert await commit_one(storage, disown(held, dead.id, deaths=b"[1]", apart=True)) == Done()
    record = await found(storage)
    assert (record.status, record.owner, record.owner_alive, record.high_water) == ("interrupted", dead, False, (7, 2))
    assert (record.epoch, record.deaths, record.apart, record.error) == (held.epoch + 1, b"[1]", True, None)
    assert await ids(storage, status="interrupted") == ["t"]
    late = writer.append(end=min(writer.live))  # it was not dead
    assert isinstance(await commit_one(storage, late), OwnershipLost)
    assert isinstance(await commit_one(storage, disown(held, dead.id)), OwnershipLost)
    assert await claim(storage) == []
    assert await storage.next_due(["g"]) is None
    assert await storage.next_due(["g"], apart=True) == 0
    storage.retire(dead)  # it is still told how far it was
    record = await found(storage)
    assert (record.owner, record.high_water) == (dead, (7, 2))
    (again,) = await claim(storage, owner.id, apart=True)
    assert again.epoch == held.epoch + 2
    record = await found(storage)
    assert (record.owner, record.high_water, record.deaths, record.apart) == (owner, None, b"[1]", True)


async def test_what_an_owner_has_is_known_well_enough_to_take_it_away(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await submit(storage, "t")
    (held,) = await claim(storage)
    await commit_one(storage, disown(held, deaths=b"[1]"))
    (held,) = await claim(storage, owner.id)
    assert await storage.held(owner.id) == [Owned(writer.key, "t", "g", held.epoch, "queued", 0, b"[1]")]
    writer.epoch = held.epoch
    await run_steps(storage, writer, 2)
    assert await storage.held(owner.id) == [Owned(writer.key, "t", "g", held.epoch, "running", 2, b"[1]")]


async def test_a_disowned_trace_can_be_acquired(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await submit(storage, "t")
    stopped = this_process()
    storage.renew(stopped)  # it is not known to be dead; but the trace is not its any more
    (held,) = await claim(storage, stopped.id)
    await commit_one(storage, disown(held, stopped.id))
    assert (await found(storage)).owner_alive is False
    writer.epoch = held.epoch + 1
    assert await commit_one(storage, writer.acquire(owner.id)) == Acquired(held.epoch + 2)
    assert (await found(storage)).owner == owner
    storage.retire(stopped)
    assert (await found(storage)).owner == owner
    await commit_one(storage, Release(writer.key, held.epoch + 2))
    assert (await found(storage)).owner is None


async def test_the_third_death_quarantines_it(storage: CheckpointStorage) -> None:
    writer = await submit(storage, "t")
    (held,) = await claim(storage)
    await storage.commit([Leave(writer.key, "t", "pause"), Leave(writer.key, "t", "answer", b"a" * 16, "why", b"1")])
    assert await commit_one(storage, disown(held, deaths=b"[1, 2, 3]", apart=True, error=ERROR)) == Done()
    record = await found(storage)
    assert (record.status, record.error, record.epoch) == ("quarantined", ERROR, held.epoch + 1)
    assert (record.deaths, record.apart) == (b"[1, 2, 3]", True)
    assert await claim(storage) == await claim(storage, apart=True) == []
    assert [left.kind for left in await storage.commands(trace=writer.key) if isinstance(left, Command)] == ["answer"]
    assert (await storage.load("t")).status == "queued"
    assert await storage.backlog(["g"]) == Backlog(0, 0, 0, 0, 1, None)


@pytest.mark.parametrize("status", ["completed", "paused"])
async def test_what_is_not_executed_is_not_quarantined(storage: CheckpointStorage, status: Status) -> None:
    """Its owner died on the way to one delta, or to deleting it."""
    writer = await submit(storage, "t", status=status)
    await commit_one(storage, writer.acquire("token", definition=None))
    held = Held(writer.key, "t", "g", 2)
    assert await commit_one(storage, disown(held, "token", error=ERROR)) == Done()
    record = await found(storage)
    assert (record.status, record.error) == (status, None)
    assert await storage.owners() == []
    assert await claim(storage) == []


async def test_an_acquitted_trace_need_not_be_executed_apart(storage: CheckpointStorage) -> None:
    await submit(storage, "t")
    (held,) = await claim(storage)
    await commit_one(storage, disown(held, deaths=b"[1]", apart=True))
    epoch = held.epoch + 1
    assert isinstance(await commit_one(storage, Acquit(held.trace, "t", epoch - 1)), OwnershipLost)
    assert await claim(storage) == []
    assert await commit_one(storage, Acquit(held.trace, "t", epoch)) == Done()
    record = await found(storage)
    assert (record.deaths, record.apart, record.epoch) == (None, False, epoch)
    assert await claim(storage, apart=True) == []
    assert await claimed(storage) == ["t"]
    assert await commit_one(storage, Acquit(held.trace, "t", epoch + 1)) == Done()
    await commit_one(storage, Delete(held.trace))
    for write in (Acquit(held.trace, "t", epoch + 1), disown(attrs.evolve(held, epoch=epoch + 1))):
        assert isinstance(await commit_one(storage, write), OwnershipLost)


# -- what there is ---------------------------------------------------------------------------------------------


async def test_the_backlog_counts_what_there_is_to_do(storage: CheckpointStorage, owner: Owner) -> None:
    now = time()
    await admit(storage, "first", owner)
    waits = await submit(storage, "waits", 3)
    await submit(storage, "ripe", not_before=now - AN_HOUR)
    await submit(storage, "later", 9, now + AN_HOUR)
    await submit(storage, "other", graph_id="h")
    await submit(storage, "done", status="completed")
    for name, what in (("apart", {"apart": True}), ("bad", {"apart": True, "error": ERROR})):
        await submit(storage, name, 99)
        (held,) = await claim(storage, limit=1)
        await commit_one(storage, disown(held, **what))
    record = await found(storage, "waits")
    assert record.trace == waits.key
    assert await storage.backlog(["g"]) == Backlog(2, 1, 1, 1, 1, record.updated_at)
    assert await storage.backlog(["g", "h", "g"]) == Backlog(3, 1, 1, 1, 1, record.updated_at)
    assert await storage.backlog(["missing"]) == await storage.backlog([]) == Backlog(0, 0, 0, 0, 0, None)


async def test_the_demand_tells_of_which_graphs_traces_wait(storage: CheckpointStorage, owner: Owner) -> None:
    assert await storage.demand() == []
    for name, graph_id, path, later, status in (
        ("a1", "a", "/old.py", None, "queued"),
        ("a2", "a", "/new.py", time() + AN_HOUR, "queued"),
        ("a3", "a", "/ended.py", None, "completed"),
        ("b1", "b", None, None, "queued"),
        ("b2", "b", None, None, "paused"),
        ("c1", "c", "/c.py", None, "queued"),
        ("d1", "d", "/d.py", None, "queued"),
        ("e1", "e", "/e.py", None, "completed"),
        ("f1", "f", "/f.py", None, "queued"),
    ):
        write = Writer(name).admit(graph_id=graph_id, status=status)
        await commit_one(storage, attrs.evolve(write, graph_path=path, not_before=later))
    await claim(storage, owner.id, graphs=["c"])
    (held,) = await claim(storage, graphs=["d"])
    await commit_one(storage, disown(held, error=ERROR))
    (held,) = await claim(storage, graphs=["f"])
    await commit_one(storage, disown(held, apart=True))
    wanted = [("a", "/new.py", 2), ("b", None, 1), ("c", "/c.py", 0), ("d", "/d.py", 0), ("f", "/f.py", 1)]
    assert await storage.demand() == [Demand(*each) for each in wanted]


async def test_the_oldest_has_waited_longest_whichever_was_admitted_first(
    storage: CheckpointStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time()

    def pass_to(moment: float) -> None:
        for module in ("sqlite.store", "sqlite.read", "memory"):
            monkeypatch.setattr(f"tinyllm.storage.{module}.time", lambda: moment)

    pass_to(now)
    await submit(storage, "first", 1)
    (held,) = await claim(storage, limit=1)
    await submit(storage, "due", not_before=now + 20)
    await submit(storage, "alone", 9)
    (alone,) = await claim(storage, limit=1)
    await commit_one(storage, disown(alone, apart=True))
    pass_to(now + 10)
    await submit(storage, "second", graph_id="h")
    pass_to(now + 30)
    await commit_one(storage, Release(held.trace, held.epoch))
    assert (await storage.backlog(["g", "h"])).oldest == now + 10
    assert (await storage.backlog(["g"])).oldest == now + 20
    await claim(storage, graphs=["h"])
    assert await claimed(storage) == ["first", "due"]
    await commit_one(storage, Release(held.trace, held.epoch + 1))
    assert (await storage.backlog(["g", "h"])).oldest == now + 30


async def test_the_owners_are_those_that_traces_name(storage: CheckpointStorage, owner: Owner) -> None:
    assert await storage.owners() == []
    dead = attrs.evolve(owner, id="dead", started="0")
    storage.renew(dead)
    storage.renew(dead)
    storage.renew(attrs.evolve(owner, id="idle"))
    for number in range(4):
        await submit(storage, f"t{number}")
    for name in (dead.id, owner.id, "without a lease"):
        await claim(storage, name, 1)
    leases = {lease.id: lease for lease in await storage.owners()}
    assert leases.pop(owner.id).owner == owner
    assert leases == {
        "dead": Lease("dead", dead, 2, False),
        "without a lease": Lease("without a lease", None, 0, False),
    }
    assert [record.trace_id for record in await storage.held("dead")] == ["t0"]
    assert await storage.held("nobody") == []
    storage.retire(owner)
    assert owner.id not in {lease.id for lease in await storage.owners()}
    assert await storage.held(owner.id) == []
    held = Held(1, "t0", "g", 2)
    assert await commit_one(storage, disown(held, "dead")) == Done()
    assert {lease.id for lease in await storage.owners()} == {"without a lease"}
    assert isinstance((await commit_one(storage, Append("t0", Writer("t0").delta()))), OwnershipLost)
