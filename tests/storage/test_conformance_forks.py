"""What every store promises about forking, pruning and deleting, on every backend and both event loops."""

from __future__ import annotations

import attrs
import pytest

from tests.storage.backends import admit, census, commit, commit_one, content, fork, found, kept, run_steps
from tests.storage.deltas import Item, Writer
from tinyllm.errors import CheckpointNotFound, OwnershipLost, TraceExists, TraceNotFound
from tinyllm.storage.contract import (
    Admitted,
    Appended,
    CheckpointStorage,
    Delete,
    Done,
    FallBack,
    Owner,
    Prune,
    Pruned,
)

pytestmark = pytest.mark.anyio


# -- forks -----------------------------------------------------------------------------------------------------


async def test_a_fork_shares_what_its_parent_had(storage: CheckpointStorage, owner: Owner) -> None:
    parent = await admit(storage, set=[("x", b"0"), ("y", b"[]")])
    await run_steps(storage, parent, 4)
    at = await storage.load("t", 2)
    child, write = parent.fork(at, "child", owner.id, set=[("y", b'["child"]')])
    outcome = await commit_one(storage, write)
    assert isinstance(outcome, Admitted)
    assert outcome.rev == 3
    child.admitted(outcome)
    record = await found(storage, "child")
    assert (record.parent, record.parent_rev, record.parent_step) == ("t", 2, 2)
    assert (record.graph_id, record.fingerprint, record.task_digest) == ("g", "f", "digest")
    assert (record.owner, record.status, record.step, record.rev) == (owner, "running", 2, 3)
    assert await storage.definition("child") == await storage.definition("t")
    snapshot = await storage.load("child")
    assert [row.node for row in snapshot.frontier] == [row.node for row in at.frontier]
    assert [row.message for row in snapshot.frontier] == [row.message for row in at.frontier]
    assert {row.id for row in snapshot.frontier}.isdisjoint(row.id for row in at.frontier)
    assert snapshot.messages.keys() == at.messages.keys()
    assert snapshot.variables["x"] == at.variables["x"]
    assert [row.body for row in snapshot.variables["y"]] == [b'["child"]']
    assert await storage.messages("child") == await storage.messages("t", rev=2)
    assert await storage.steps("child") == (await storage.steps("t"))[:2]


async def test_parent_and_child_go_their_own_ways(storage: CheckpointStorage) -> None:
    parent = await admit(storage)
    await run_steps(storage, parent, 2)
    child = await fork(storage, parent, 1)
    before = content(await storage.load("t"))
    await run_steps(storage, child, 3)
    assert content(await storage.load("t")) == before
    before = content(await storage.load("child"))
    await run_steps(storage, parent, 3)
    assert content(await storage.load("child")) == before
    assert await kept(storage, "child") == [5, 4, 3, 2]


async def test_forks_of_forks(storage: CheckpointStorage) -> None:
    line = [await admit(storage, "t0", set=[("list", b"[]")])]
    for generation in range(1, 5):
        writer = line[-1]
        for item in range(2):
            body = b"%d%d" % (generation, item)
            await commit_one(
                storage, writer.append(end=max(writer.live), plan=["a"], body=body, set=[("list", Item(body))])
            )
        line.append(await fork(storage, writer, writer.rev - 1, f"t{generation}"))
    snapshot = await storage.load("t4")
    assert [row.body for row in snapshot.variables["list"]] == [b"[]", b"10", b"20", b"30", b"40"]
    assert [row.body for row in await storage.messages("t4")] == [b"{}", b"10", b"20", b"30", b"40"]
    assert [row.step for row in await storage.steps("t4")] == [1, 2, 3, 4]
    assert [row.body for row in snapshot.messages.values()] == [b"40"]


async def test_a_fork_is_refused_where_it_cannot_be(storage: CheckpointStorage) -> None:
    parent = await admit(storage)
    await run_steps(storage, parent, 4)
    _, write = parent.fork(await storage.load("t", 2), "t")
    exists = await commit_one(storage, write)
    assert isinstance(exists, TraceExists)
    # The refused fork left no pin.
    assert await commit_one(storage, Prune(parent.key, 1)) == Pruned(3)
    for missing in (
        attrs.evolve(write, trace_id="child"),
        attrs.evolve(write, trace_id="child", rev=99),
        attrs.evolve(write, trace_id="child", parent=parent.key + 1),
    ):
        assert isinstance(await commit_one(storage, missing), CheckpointNotFound)
    assert await storage.trace("child") is None


# -- pruning ---------------------------------------------------------------------------------------------------


async def test_prune_keeps_the_first_the_newest_and_those_forked_from(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    await run_steps(storage, writer, 9)
    await fork(storage, writer, 3)
    before = {rev: content(await storage.load("t", rev)) for rev in (0, 3, 8, 9)}
    assert await commit_one(storage, Prune(writer.key, 2)) == Pruned(6)
    assert await kept(storage) == [9, 8, 3, 0]
    assert {rev: content(await storage.load("t", rev)) for rev in (0, 3, 8, 9)} == before
    assert await commit_one(storage, Prune(writer.key, 2)) == Pruned(0)
    with pytest.raises(CheckpointNotFound, match=r"kept are steps 0, 3, 8-9"):
        await storage.load("t", 5)


async def test_prune_works_in_slices_from_the_oldest_on(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    await run_steps(storage, writer, 6)
    assert await commit_one(storage, Prune(writer.key, 1, 2)) == Pruned(2)
    assert await kept(storage) == [6, 5, 4, 3, 0]
    assert await commit(storage, Prune(writer.key, 1, 2), Prune(writer.key, 1, 2)) == [Pruned(2), Pruned(1)]
    assert await kept(storage) == [6, 0]


async def test_prune_frees_what_no_kept_checkpoint_needs(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a"] * 3, set=[("x", b"0")])
    for _ in range(50):
        oldest = min(writer.live)
        await commit_one(storage, writer.append(end=oldest, plan=["a"], history=False, set=[("x", b"1")]))
    assert await commit_one(storage, Prune(writer.key, 1)) == Pruned(49)
    rows = (await census(storage))[writer.key]
    assert {kind: len(seqs) for kind, seqs in rows.items()} == {
        "messages": 4,  # what the frontiers of the first and of the newest checkpoint read
        "activations": 6,
        "arrivals": 0,
        "variables": 2,
        "steps": 50,
    }
    assert await storage.reclaim(1000) == 0


# -- deleting --------------------------------------------------------------------------------------------------


async def test_a_deleted_trace_is_forgotten(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, owner=owner)
    await run_steps(storage, writer, 2)
    assert await commit_one(storage, Delete(writer.key)) == Done()
    assert await storage.trace("t") is None
    assert await storage.traces() == []
    with pytest.raises(TraceNotFound):
        await storage.load("t")
    assert isinstance(await commit_one(storage, writer.append(end=min(writer.live))), OwnershipLost)
    assert await commit_one(storage, Delete(writer.key)) == Done()
    while await storage.reclaim(1000):
        pass
    assert await census(storage) == {}


async def test_what_forks_share_outlives_their_parent(storage: CheckpointStorage) -> None:
    parent = await admit(storage)
    await run_steps(storage, parent, 5)
    child = await fork(storage, parent, 2)
    grandchild = await fork(storage, child, child.rev, "grandchild")
    before = content(await storage.load("grandchild")), await storage.messages("grandchild")
    late = parent.fork(await storage.load("t", 2), "late")[1]
    await commit(storage, Delete(parent.key), Delete(child.key))
    assert [record.trace_id for record in await storage.traces()] == ["grandchild"]
    assert await storage.trace("t") is None
    assert (content(await storage.load("grandchild")), await storage.messages("grandchild")) == before
    record = await found(storage, "grandchild")
    assert (record.parent, record.parent_rev) == (None, child.rev)
    # A tombstone can be neither forked nor written; its id is free.
    assert isinstance(await commit_one(storage, late), CheckpointNotFound)
    assert isinstance(await commit_one(storage, parent.append(body=None)), OwnershipLost)
    again = await admit(storage)
    assert again.key not in (parent.key, child.key)
    await commit(storage, Delete(grandchild.key), Delete(again.key))
    while await storage.reclaim(1000):
        pass
    assert await census(storage) == {}


async def test_a_damaged_trace_goes_on_from_an_older_checkpoint_under_its_own_id(storage: CheckpointStorage) -> None:
    writer = Writer("t", owner="o")
    writer.admitted((await storage.commit([writer.admit()]))[0])
    await storage.commit([writer.append(end=step, plan=["a"], set=[("x", b"%d" % step)]) for step in range(1, 4)])
    before = await storage.load("t", 1)
    child, fork = writer.fork(before, "t", "o")
    write = FallBack(
        trace=writer.key,
        trace_id="t",
        epoch=1,
        reached=3,
        rev=1,
        kept_as="t.damaged",
        error=b'"why"',
        owner="o",
        first=fork.first,
    )
    (admitted,) = await storage.commit([write])
    assert child.admitted(admitted).key != writer.key
    now = await storage.load("t")
    assert (now.step, now.record.parent, now.record.parent_rev) == (1, "t.damaged", 1)
    assert {key: rows[-1].body for key, rows in now.variables.items()} == {"x": b"1"}
    kept = await storage.load("t.damaged")
    assert (kept.step, kept.record.status, kept.record.owner, kept.record.error) == (3, "quarantined", None, b'"why"')
    # Whoever wrote it cannot any more; nor can it be given up twice, nor under a name that is taken.
    refused = await storage.commit([writer.append(end=4), write, attrs.evolve(write, kept_as="again")])
    assert [type(each) for each in refused] == [OwnershipLost, OwnershipLost, OwnershipLost]
    assert (await storage.load_intact("t")).snapshot.rev == now.rev
    taken = attrs.evolve(write, trace=child.key, reached=2)  # under the name that is taken
    assert [type(each) for each in await storage.commit([taken])] == [TraceExists]
    assert await storage.commit([child.append(end=min(child.live), plan=["a"])]) == [Appended(3)]
    assert {record.trace_id for record in await storage.traces()} == {"t", "t.damaged"}


async def test_a_trace_that_cannot_fall_back_keeps_its_id(storage: CheckpointStorage) -> None:
    writer = Writer("t")
    writer.admitted((await storage.commit([writer.admit()]))[0])
    _, fork = writer.fork(await storage.load("t"), "t")
    write = FallBack(
        trace=writer.key,
        trace_id="t",
        epoch=1,
        reached=0,
        rev=7,
        kept_as="other",
        error=b"1",
        owner=None,
        first=fork.first,
    )
    assert isinstance((await storage.commit([write]))[0], CheckpointNotFound)
    assert isinstance((await storage.commit([attrs.evolve(write, rev=0, epoch=2)]))[0], OwnershipLost)
    record = await storage.trace("t")
    assert record is not None
    assert (record.trace, record.status, record.error) == (writer.key, "interrupted", None)
    assert await storage.trace("other") is None
