"""What every store promises about writing (`CheckpointStorage.commit`), on every backend and both event loops."""

from __future__ import annotations

from typing import Any

import anyio
import attrs
import pytest

from tests.storage.backends import admit, census, commit, commit_one, content, found, kept, run_steps
from tests.storage.deltas import Item, Writer, merge
from tinyllm.errors import OwnershipLost, TraceExists, ValueNotStorable
from tinyllm.graph.values import digest
from tinyllm.storage.contract import (
    UNOWNED,
    Acquire,
    Acquired,
    Admitted,
    Append,
    Appended,
    CheckpointStorage,
    Delete,
    Done,
    Outcome,
    Owner,
    Prune,
    Pruned,
    Release,
    Status,
)

pytestmark = pytest.mark.anyio


async def test_initialize_and_close_may_be_called_twice(storage: CheckpointStorage) -> None:
    await storage.initialize()
    await admit(storage)
    await storage.initialize()
    assert await storage.trace("t")
    await storage.close()
    await storage.close()


# -- admission -------------------------------------------------------------------------------------------------


async def test_admission_creates_an_owned_trace_at_rev_0(storage: CheckpointStorage, owner: Owner) -> None:
    writer = Writer("t", owner.id)
    outcome = await commit_one(storage, writer.admit(plan=["a", "b"], set=[("x", b"1")]))
    assert isinstance(outcome, Admitted)
    assert outcome.rev == 0
    record = await found(storage)
    assert (record.trace, record.epoch, record.rev, record.step) == (outcome.trace, outcome.epoch, 0, 0)
    assert (record.graph_id, record.graph_version, record.graph_path) == ("g", "1.0.0", "/graphs/g.yaml")
    assert (record.fingerprint, record.task_digest) == ("f", "digest")
    assert (record.status, record.owner, record.owner_alive) == ("running", owner, True)
    assert record.created_at == record.updated_at
    snapshot = await storage.load("t")
    assert [row.node for row in snapshot.frontier] == ["a", "b"]
    assert [row.body for row in snapshot.variables["x"]] == [b"1"]


async def test_an_id_is_admitted_once_also_within_one_commit(storage: CheckpointStorage) -> None:
    first, second = await commit(storage, Writer("t").admit(), Writer("t").admit(plan=["b"]))
    assert isinstance(first, Admitted)
    assert isinstance(second, TraceExists)
    assert second.trace_id == "t"
    assert isinstance(await commit_one(storage, Writer("t").admit()), TraceExists)
    assert [row.node for row in (await storage.load("t")).frontier] == ["a"]


# -- appending -------------------------------------------------------------------------------------------------


async def test_append_adds_a_delta(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    assert await commit_one(storage, writer.append(end=1, plan=["b"], set=[("x", b"1")])) == Appended(1)
    record = await found(storage)
    assert (record.rev, record.step, record.status) == (1, 1, "interrupted")
    assert record.updated_at >= record.created_at
    assert await kept(storage) == [1, 0]


async def test_deltas_of_one_trace_may_share_a_commit(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    writes = [writer.append(end=1, plan=["b"]), writer.append(end=2, plan=["c"]), writer.append(end=3)]
    assert await commit(storage, *writes) == [Appended(1), Appended(2), Appended(3)]
    assert await kept(storage) == [3, 2, 1, 0]


async def test_a_merged_delta_skips_what_was_born_and_died_inside(storage: CheckpointStorage) -> None:
    writer = await admit(storage, set=[("x", b"[]")])
    steps = [
        writer.delta(end=1, plan=["b"], set=[("x", b"1")]),
        writer.delta(end=2, plan=["c"], set=[("x", b"[2]")]),
        writer.delta(end=3, plan=["d"], set=[("x", Item(b"3"))]),
    ]
    assert await commit_one(storage, Append("t", merge(steps))) == Appended(1)
    snapshot = await storage.load("t")
    assert (snapshot.rev, snapshot.step) == (1, 3)
    assert [row.node for row in snapshot.frontier] == ["d"]
    assert [row.body for row in snapshot.variables["x"]] == [b"[2]", b"3"]
    assert [(row.step, row.node) for row in await storage.steps("t")] == [(1, "a"), (2, "b"), (3, "c")]
    assert len(await storage.messages("t")) == 4


async def test_a_delta_that_is_already_there_counts_as_appended(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    first, second = writer.append(end=1, plan=["b"]), writer.append(end=2, plan=["c"])
    await commit(storage, first, second)
    third = writer.append(end=3, plan=["d"])
    before = content(await storage.load("t"))
    assert await commit_one(storage, second) == Appended(2)
    assert content(await storage.load("t")) == before
    assert await commit(storage, first, second, third) == [Appended(1), Appended(2), Appended(3)]
    assert await kept(storage) == [3, 2, 1, 0]


async def test_another_delta_at_a_rev_that_is_taken_is_refused(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a", "b"])
    other = await storage.load("t")
    rival = Writer("t")
    rival.key, rival.epoch, rival.rev, rival.marks = writer.key, writer.epoch, other.rev, other.marks
    rival.live = {row.seq: row for row in other.frontier}
    await commit_one(storage, writer.append(end=1, plan=["c"]))
    before = content(await storage.load("t"))
    assert isinstance(await commit_one(storage, rival.append(end=2, plan=["c", "c"])), OwnershipLost)
    assert content(await storage.load("t")) == before


@pytest.mark.parametrize(("epochs", "revs"), [(-1, 0), (1, 0), (0, 1)])
async def test_a_stale_epoch_or_a_gap_is_refused_and_nothing_of_it_written(
    storage: CheckpointStorage, epochs: int, revs: int
) -> None:
    writer, good = await admit(storage), await admit(storage, "good")
    delta = writer.delta(end=1, plan=["b"], set=[("x", b"1")])
    delta = attrs.evolve(delta, epoch=delta.epoch + epochs, rev=delta.rev + revs)
    before = await found(storage), content(await storage.load("t")), await census(storage)
    refused, appended = await commit(storage, Append("t", delta), good.append(body=None))
    assert isinstance(refused, OwnershipLost)
    assert refused.trace_id == "t"
    assert appended == Appended(1)
    assert (await found(storage), content(await storage.load("t")), await census(storage)) == before


async def test_what_follows_a_refused_delta_is_refused_too(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    _, late, later = writer.delta(end=1, plan=["b"]), writer.append(end=2, plan=["c"]), writer.append(end=3)
    assert all(isinstance(outcome, OwnershipLost) for outcome in await commit(storage, late, later))
    assert await kept(storage) == [0]


async def test_an_unknown_trace_is_nobodys(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    stray = attrs.evolve(writer.delta(end=1), trace=writer.key + 1)
    writer.key += 1
    outcomes = await commit(
        storage,
        Append("other", stray),
        writer.acquire("o"),
        Release(writer.key, 1),
        Prune(writer.key, 1),
        Delete(writer.key),
    )
    assert isinstance(outcomes[0], OwnershipLost)
    assert isinstance(outcomes[1], OwnershipLost)
    assert outcomes[2:] == [Done(), Pruned(0), Done()]
    assert await kept(storage) == [0]


async def test_what_is_too_big_is_refused_alone(storage: CheckpointStorage) -> None:
    writer, good = await admit(storage), await admit(storage, "good")
    huge = bytes(64 * 1024 * 1024 + 1)
    outcomes = await commit(
        storage,
        Writer("other").admit(body=huge),
        writer.append(end=1, plan=["b"], body=huge),
        good.append(end=1, plan=["b"]),
    )
    assert [type(outcome) for outcome in outcomes] == [ValueNotStorable, ValueNotStorable, Appended]
    assert str(outcomes[1]).startswith("a: ")
    assert await storage.trace("other") is None
    assert await kept(storage) == [0]
    writer.rev -= 1
    outcome = await commit_one(storage, writer.append(body=None, set=[("x", huge)]))
    assert isinstance(outcome, ValueNotStorable)
    assert "'x'" in str(outcome)


@pytest.mark.parametrize("field", ["error", "progress", "asked"])
async def test_what_an_activation_holds_may_not_be_too_big_either(storage: CheckpointStorage, field: str) -> None:
    writer = await admit(storage)
    huge: dict[str, Any] = {field: bytes(64 * 1024 * 1024 + 1)}
    delta = writer.delta(change=[(1, "planned")], body=None)
    for refused in (
        attrs.evolve(delta, changed=(attrs.evolve(delta.changed[0], **huge),)),
        attrs.evolve(delta, changed=(), activations=(attrs.evolve(writer.live[1], seq=2, **huge),)),
    ):
        assert isinstance(await commit_one(storage, Append("t", refused)), ValueNotStorable)
    assert await commit_one(storage, Append("t", delta)) == Appended(1)


@pytest.mark.parametrize("status", sorted(UNOWNED))
async def test_a_status_with_which_nothing_can_run_ends_ownership(
    storage: CheckpointStorage, owner: Owner, status: str
) -> None:
    writer = await admit(storage, owner=owner)
    error = b'{"type":"E"}' if status == "failed" else None
    await commit_one(storage, writer.append(body=None, status=status, error=error))
    record = await found(storage)
    assert (record.status, record.owner, record.owner_alive, record.error) == (status, None, False, error)
    assert (await storage.load("t")).status == status


@pytest.mark.parametrize("status", sorted(UNOWNED))
async def test_a_trace_may_begin_unowned(storage: CheckpointStorage, owner: Owner, status: Status) -> None:
    parent = await admit(storage, owner=owner, status=status)
    record = await found(storage)
    assert (record.status, record.owner) == (status, None)
    child, write = parent.fork(await storage.load("t"), "child", owner.id)
    child.admitted(await commit_one(storage, attrs.evolve(write, first=attrs.evolve(write.first, status=status))))
    record = await found(storage, "child")
    assert (record.status, record.owner) == (status, None)


async def test_ownership_ends_also_where_more_is_appended_in_the_same_commit(
    storage: CheckpointStorage, owner: Owner
) -> None:
    writer = await admit(storage, owner=owner)
    await commit(storage, writer.append(body=None, status="paused"), writer.append(body=None))
    record = await found(storage)
    assert (record.status, record.owner, record.rev) == ("interrupted", None, 2)


# -- ownership -------------------------------------------------------------------------------------------------


async def test_acquire_raises_the_epoch_and_replaces_the_graph(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, definition=b'{"old":1}')
    old = writer.append(end=1, plan=["b"])
    write = writer.acquire(owner.id, fingerprint="f2", definition=b'{"new":1}', graph_path="/new.yaml")
    assert await commit_one(storage, write) == Acquired(writer.epoch + 1)
    record = await found(storage)
    assert (record.epoch, record.owner, record.status) == (writer.epoch + 1, owner, "running")
    assert (record.fingerprint, record.graph_path) == ("f2", "/new.yaml")
    assert await storage.definition("t") == b'{"new":1}'
    assert record.definition_digest == digest(b'{"new":1}')
    assert isinstance(await commit_one(storage, old), OwnershipLost)
    assert await kept(storage) == [0]


async def test_acquire_without_a_graph_keeps_the_recorded_one(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, definition=b'{"old":1}')
    assert await commit_one(storage, Acquire(writer.key, "t", writer.epoch, owner.id)) == Acquired(writer.epoch + 1)
    record = await found(storage)
    assert (record.owner, record.status, record.epoch) == (owner, "running", writer.epoch + 1)
    assert (record.fingerprint, record.graph_path) == ("f", "/graphs/g.yaml")
    assert await storage.definition("t") == b'{"old":1}'
    assert record.definition_digest == digest(b'{"old":1}')
    late = Acquire(writer.key, "t", writer.epoch, "late")
    assert isinstance(await commit_one(storage, late), OwnershipLost)


async def test_acquire_without_a_graph_leaves_a_trace_what_it_was(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, owner=owner)
    await commit_one(storage, writer.append(body=None, status="failed", error=b"{}"))
    assert await commit_one(storage, Acquire(writer.key, "t", writer.epoch, "gone")) == Acquired(writer.epoch + 1)
    record = await found(storage)
    assert (record.status, record.error, record.owner) == ("failed", b"{}", None)


async def test_acquire_is_compare_and_set(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, definition=b'{"old":1}')
    late = writer.acquire(owner.id, definition=b'{"late":1}')
    acquired, lost = await commit(storage, writer.acquire("first"), late)
    assert acquired == Acquired(writer.epoch + 1)
    assert isinstance(lost, OwnershipLost)
    record = await found(storage)
    assert (record.epoch, record.owner) == (writer.epoch + 1, None)  # `first` has no lease
    assert await storage.definition("t") == b"{}"


async def test_an_ended_trace_that_is_acquired_runs(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, owner=owner)
    await commit_one(storage, writer.append(body=None, status="failed", error=b"{}"))
    await commit_one(storage, writer.acquire(owner.id))
    record = await found(storage)
    assert (record.status, record.error, record.owner) == ("running", None, owner)


async def test_release_makes_a_trace_interrupted(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, owner=owner)
    assert await commit_one(storage, Release(writer.key, writer.epoch - 1)) == Done()
    assert (await found(storage)).status == "running"
    assert await commit_one(storage, Release(writer.key, writer.epoch)) == Done()
    record = await found(storage)
    assert (record.status, record.owner) == ("interrupted", None)


# -- many at once ----------------------------------------------------------------------------------------------


async def test_tasks_may_commit_at_the_same_time(storage: CheckpointStorage) -> None:
    writers = [await admit(storage, f"t{number}") for number in range(5)]
    async with anyio.create_task_group() as tasks:
        for writer in writers:
            tasks.start_soon(run_steps, storage, writer, 5)
    for writer in writers:
        assert (await found(storage, writer.trace_id)).step == 5


async def test_one_of_several_takers_gets_a_trace(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    outcomes: list[Outcome] = []

    async def take(owner: str) -> None:
        outcomes.append(await commit_one(storage, writer.acquire(owner)))

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(take, f"owner {number}")
    assert outcomes.count(Acquired(writer.epoch + 1)) == 1
    assert sum(isinstance(outcome, OwnershipLost) for outcome in outcomes) == 7


async def test_a_reader_sees_whole_commits(storage: CheckpointStorage) -> None:
    writer = await admit(storage, set=[("x", b"-1")])

    async def read() -> None:
        rev = 0
        while rev < 20:
            snapshot = await storage.load("t")
            assert snapshot.rev >= rev
            rev = snapshot.rev
            assert snapshot.record.rev == rev
            assert snapshot.step == rev
            assert len(snapshot.frontier) == 1
            await anyio.lowlevel.checkpoint()

    async def write() -> None:
        for _ in range(20):
            await run_steps(storage, writer, 1)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(write)


async def test_a_cancelled_caller_still_learns_the_outcome(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    learnt: list[Outcome] = []

    async def write() -> None:
        for _ in range(20):
            learnt.append(await commit_one(storage, writer.append(end=min(writer.live), plan=["a"])))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert learnt == [Appended(rev) for rev in range(1, len(learnt) + 1)]
    assert (await found(storage)).rev == writer.rev == len(learnt)

    with anyio.CancelScope() as scope:
        scope.cancel()
        learnt.append(await commit_one(storage, writer.append(end=min(writer.live))))
    assert learnt[-1] == Appended(writer.rev)
