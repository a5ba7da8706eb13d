"""What every store promises about commands, labels and single checkpoints, on every backend and both event loops."""

from __future__ import annotations

import anyio
import attrs
import pytest

from tests.storage.backends import admit, commit, commit_one, content, fork, found, kept, run_steps
from tests.storage.deltas import Writer
from tinyllm.errors import (
    AlreadyAnswered,
    CheckpointInUse,
    CheckpointNotFound,
    OwnershipLost,
    TraceEnded,
    TraceNotFound,
    ValueNotStorable,
)
from tinyllm.storage.contract import (
    TERMINAL,
    Acquired,
    Append,
    Appended,
    CheckpointStorage,
    CommandKind,
    Delete,
    Done,
    Drop,
    Label,
    Leave,
    Left,
    Outcome,
    Owner,
    Prune,
    Pruned,
    Release,
    Status,
)

pytestmark = pytest.mark.anyio


def command(writer: Writer, kind: CommandKind) -> Leave:
    return Leave(writer.key, writer.trace_id, kind)


def answer(writer: Writer, activation: int, name: str = "why", body: bytes = b'"because"') -> Leave:
    return Leave(writer.key, writer.trace_id, "answer", writer.live[activation].id, name, body)


async def leave(storage: CheckpointStorage, write: Leave) -> int:
    outcome = await commit_one(storage, write)
    assert isinstance(outcome, Left)
    return outcome.command


async def left(storage: CheckpointStorage, writer: Writer) -> list[int]:
    return [command.id for command in await storage.commands(trace=writer.key)]


# -- leaving ---------------------------------------------------------------------------------------------------


async def test_commands_come_back_in_the_order_in_which_they_were_left(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    writes = [command(writer, "pause"), answer(writer, 1), answer(writer, 1, "when"), command(writer, "cancel")]
    ids = [outcome.command for outcome in await commit(storage, *writes) if isinstance(outcome, Left)]
    assert ids == sorted(ids)
    there = await storage.commands(trace=writer.key)
    assert [each.id for each in there] == ids
    assert [(each.trace, each.kind, each.activation, each.name, each.body) for each in there] == [
        (writer.key, write.kind, write.activation, write.name, write.body) for write in writes
    ]
    admitted = (await found(storage)).created_at
    assert all(each.created_at >= admitted for each in there)


async def test_commands_are_for_a_trace_or_for_the_traces_of_an_owner(storage: CheckpointStorage, owner: Owner) -> None:
    mine, other, nobodys = await admit(storage, "t", owner), await admit(storage, "u", owner), await admit(storage, "v")
    ids = [await leave(storage, command(writer, "pause")) for writer in (mine, nobodys, other)]
    assert [each.id for each in await storage.commands(owner=owner.id)] == [ids[0], ids[2]]
    assert await left(storage, nobodys) == [ids[1]]
    assert await storage.commands(owner="somebody else") == []
    assert await storage.commands(trace=99) == []
    await commit_one(storage, Release(mine.key, mine.epoch))
    assert [each.id for each in await storage.commands(owner=owner.id)] == [ids[2]]
    await commit_one(storage, nobodys.acquire(owner.id))  # or to whoever owns it next
    assert [each.id for each in await storage.commands(owner=owner.id)] == ids[1:]


async def test_who_acquires_a_trace_learns_whether_something_was_left_for_it(
    storage: CheckpointStorage, owner: Owner
) -> None:
    writer, other = await admit(storage), await admit(storage, "other")

    async def told() -> bool | None:
        outcome = await commit_one(storage, writer.acquire(owner.id))
        assert isinstance(outcome, Acquired)
        writer.epoch = outcome.epoch
        return outcome.told

    await leave(storage, command(other, "pause"))
    assert await told() is False
    ids = [await leave(storage, answer(writer, 1))]
    assert await told() is True
    await commit_one(storage, writer.append(consumed=ids))
    assert await told() is False  # a consumed answer stays, but is not left for anybody


@pytest.mark.parametrize("kind", ["pause", "cancel"])
async def test_a_command_that_is_there_already_is_the_same(storage: CheckpointStorage, kind: CommandKind) -> None:
    writer, other = await admit(storage), await admit(storage, "other")
    first, again = await commit(storage, command(writer, kind), command(writer, kind))
    assert again == first
    assert await leave(storage, command(other, kind)) not in await left(storage, writer)
    await commit_one(storage, writer.append(body=None, consumed=await left(storage, writer)))
    assert await left(storage, writer) == []
    assert isinstance(first, Left)
    assert await leave(storage, command(writer, kind)) > first.command


async def test_a_question_is_answered_once(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a", "b"])
    write = answer(writer, 1)
    first = await leave(storage, write)
    others = [answer(writer, 2), answer(writer, 1, "when")]  # of another activation, or another question
    again, *rest = await commit(storage, attrs.evolve(write, body=b'"no"'), *others)
    assert isinstance(again, AlreadyAnswered)
    assert (again.trace_id, again.name) == ("t", "why")
    assert [type(outcome) for outcome in rest] == [Left, Left]
    # Also when it was consumed long ago.
    await commit_one(storage, writer.append(body=None, consumed=[first]))
    await run_steps(storage, writer, 2)
    assert first not in await left(storage, writer)
    assert isinstance(await commit_one(storage, write), AlreadyAnswered)


async def test_of_many_who_answer_one_is_first(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    outcomes: list[Outcome] = []

    async def try_it(number: int) -> None:
        outcomes.append(await commit_one(storage, answer(writer, 1, body=b"%d" % number)))

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(try_it, number)
    assert sum(isinstance(outcome, Left) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AlreadyAnswered) for outcome in outcomes) == 7
    assert len(await left(storage, writer)) == 1


@pytest.mark.parametrize("status", sorted(TERMINAL))
async def test_an_ended_trace_takes_no_command(storage: CheckpointStorage, status: str) -> None:
    writer = await admit(storage)
    await commit_one(storage, writer.append(body=None, status=status))
    for write in (command(writer, "pause"), command(writer, "cancel"), answer(writer, 1)):
        outcome = await commit_one(storage, write)
        assert isinstance(outcome, TraceEnded)
        assert (outcome.trace_id, outcome.status) == ("t", status)
    assert await left(storage, writer) == []


@pytest.mark.parametrize("status", sorted(TERMINAL))
async def test_pauses_and_cancels_do_not_outlive_the_trace_they_were_for(
    storage: CheckpointStorage, status: Status
) -> None:
    writer = await admit(storage)
    other = await admit(storage, "other")
    await commit(storage, command(other, "cancel"), command(writer, "pause"), command(writer, "cancel"))
    answered = await leave(storage, answer(writer, 1))
    await commit_one(storage, writer.append(body=None, status=status))
    assert await left(storage, writer) == [answered]
    assert len(await left(storage, other)) == 1


async def test_a_paused_trace_takes_commands_and_one_that_is_gone_does_not(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    await commit_one(storage, writer.append(change=[(1, "paused")], body=None, status="paused"))
    assert await leave(storage, answer(writer, 1)) in await left(storage, writer)
    await commit_one(storage, Delete(writer.key))
    outcome = await commit_one(storage, command(writer, "cancel"))
    assert isinstance(outcome, TraceNotFound)
    assert (outcome.trace_id, outcome.store) == ("t", storage.name)


async def test_an_answer_that_is_too_big_is_refused(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    outcome = await commit_one(storage, answer(writer, 1, body=bytes(64 * 1024 * 1024 + 1)))
    assert isinstance(outcome, ValueNotStorable)
    assert outcome.path == "answer to 'why'"
    assert await left(storage, writer) == []
    assert isinstance(await commit_one(storage, answer(writer, 1)), Left)


# -- consuming -------------------------------------------------------------------------------------------------


async def test_commands_are_consumed_with_their_delta_or_not_at_all(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    pause, reply = await leave(storage, command(writer, "pause")), await leave(storage, answer(writer, 1))
    delta = writer.delta(body=None, consumed=[pause, reply])
    assert isinstance(await commit_one(storage, Append("t", attrs.evolve(delta, epoch=delta.epoch + 1))), OwnershipLost)
    assert await left(storage, writer) == [pause, reply]
    assert await commit_one(storage, Append("t", delta)) == Appended(1)
    assert await left(storage, writer) == []
    # Once more, by an owner who has not heard of it: what was left since is not consumed.
    later = await leave(storage, command(writer, "pause"))
    assert await commit_one(storage, Append("t", delta)) == Appended(1)
    assert await left(storage, writer) == [later]


async def test_a_delta_may_consume_what_is_left_in_its_commit(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    last = await leave(storage, command(writer, "pause"))
    write = writer.append(body=None, consumed=[last, last + 1])
    outcomes = await commit(storage, command(writer, "cancel"), write, command(writer, "pause"))
    assert outcomes == [Left(last + 1), Appended(1), Left(last + 2)]
    assert await left(storage, writer) == [last + 2]


async def test_a_delta_consumes_no_other_traces_commands(storage: CheckpointStorage) -> None:
    writer, other = await admit(storage), await admit(storage, "other")
    theirs = [await leave(storage, command(other, "pause")), await leave(storage, answer(other, 1))]
    assert await commit_one(storage, writer.append(body=None, consumed=[*theirs, 99])) == Appended(1)
    assert await left(storage, other) == theirs


async def test_a_fork_shares_no_commands(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a", "b"])
    ids = [await leave(storage, command(writer, "pause")), await leave(storage, answer(writer, 1))]
    child = await fork(storage, writer, 0)
    assert await left(storage, child) == []
    theirs = await leave(storage, Leave(child.key, "child", "answer", writer.live[1].id, "why", b"1"))
    assert await commit_one(storage, child.append(body=None, consumed=[*ids, theirs])) == Appended(2)
    assert await left(storage, writer) == ids


async def test_answers_go_with_their_activation(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a"])
    await run_steps(storage, writer, 1)
    asking = writer.live[2]
    write = Leave(writer.key, "t", "answer", asking.id, "why", b"1")
    await commit_one(storage, writer.append(body=None, consumed=[await leave(storage, write)]))
    unread = await leave(storage, attrs.evolve(write, name="when"))
    await run_steps(storage, writer, 3)
    assert isinstance(await commit_one(storage, write), AlreadyAnswered)
    assert await left(storage, writer) == [unread]
    await commit_one(storage, Prune(writer.key, 1))
    assert await left(storage, writer) == []
    assert isinstance(await commit_one(storage, write), Left)  # nothing is known of it any more


async def test_answers_of_a_round_go_with_it(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a", "b"])
    await commit_one(storage, writer.append(end=1, arrive=["join"], fire=["join"], plan=["b"]))
    (round_,) = (row for row in writer.live.values() if row.node == "join")
    write = Leave(writer.key, "t", "answer", round_.id, "why", b"1")
    await leave(storage, write)
    await commit_one(storage, writer.append(end=round_.seq))
    assert isinstance(await commit_one(storage, write), AlreadyAnswered)
    await run_steps(storage, writer, 2)
    await commit_one(storage, Prune(writer.key, 1))
    assert isinstance(await commit_one(storage, write), Left)


async def test_commands_go_with_their_trace_also_where_forks_keep_the_rest(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    child = await fork(storage, writer, 0)
    await commit(storage, command(writer, "pause"), answer(writer, 1), command(child, "pause"))
    await commit_one(storage, Delete(writer.key))
    assert await left(storage, writer) == []
    assert len(await left(storage, child)) == 1


# -- labels ----------------------------------------------------------------------------------------------------


async def test_a_labelled_checkpoint_is_listed_with_it_and_not_pruned(storage: CheckpointStorage, owner: Owner) -> None:
    writer = await admit(storage, owner=owner)
    await run_steps(storage, writer, 6)
    before = content(await storage.load("t", 3))
    outcomes = await commit(storage, Label(writer.key, "t", 3, "good"), Label(writer.key, "t", 5, "x"))
    assert outcomes == [Done(), Done()]
    assert [(record.rev, record.label) for record in await storage.checkpoints("t") if record.label] == [
        (5, "x"),
        (3, "good"),
    ]
    assert await commit_one(storage, Label(writer.key, "t", 5, None)) == Done()
    assert await commit_one(storage, Prune(writer.key, 1)) == Pruned(4)
    assert await kept(storage) == [6, 3, 0]
    assert content(await storage.load("t", 3)) == before
    assert await commit_one(storage, Label(writer.key, "t", 3, None)) == Done()
    assert await commit_one(storage, Prune(writer.key, 1)) == Pruned(1)
    assert (await found(storage)).owner == owner


@pytest.mark.parametrize("rev", [-1, 2, 9, 1 << 32, (1 << 32) + 1])
async def test_what_is_not_kept_cannot_be_labelled(storage: CheckpointStorage, rev: int) -> None:
    writer = await admit(storage)
    await admit(storage, "other")  # whose rows come next
    await run_steps(storage, writer, 3)
    await commit_one(storage, Prune(writer.key, 1))
    outcome = await commit_one(storage, Label(writer.key, "t", rev, "good"))
    assert isinstance(outcome, CheckpointNotFound)
    assert str(outcome) == (
        f"trace 't' has no checkpoint at rev {rev}; kept are steps 0, 3 (the others were pruned, or never made)"
    )
    await commit_one(storage, Delete(writer.key))
    assert isinstance(await commit_one(storage, Label(writer.key, "t", 0, "good")), CheckpointNotFound)


# -- dropping one ----------------------------------------------------------------------------------------------


async def test_one_checkpoint_is_dropped_labelled_or_not(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    await run_steps(storage, writer, 5)
    before = {rev: content(await storage.load("t", rev)) for rev in (0, 1, 3, 5)}
    await commit_one(storage, Label(writer.key, "t", 4, "bad"))
    assert await commit(storage, Drop(writer.key, "t", 4), Drop(writer.key, "t", 2)) == [Pruned(1), Pruned(1)]
    assert await kept(storage) == [5, 3, 1, 0]
    assert {rev: content(await storage.load("t", rev)) for rev in before} == before
    for rev in (4, 9, -1, 1 << 32):
        assert await commit_one(storage, Drop(writer.key, "t", rev)) == Pruned(0)
    assert await commit_one(storage, Drop(99, "u", 0)) == Pruned(0)


async def test_a_checkpoint_in_use_stays_and_it_is_said_why(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    await run_steps(storage, writer, 3)
    child = await fork(storage, writer, 1)
    await run_steps(storage, child, 1)
    for trace, rev, reason in (
        (writer, 3, "it is the newest, from which the trace goes on; drop it when there is a newer one"),
        (writer, 0, "it is the first, which a trace keeps as long as it is there"),
        (writer, 1, "traces were forked from it; delete those before it"),
        (child, 2, "it is the first, which a trace keeps as long as it is there"),
    ):
        outcome = await commit_one(storage, Drop(trace.key, trace.trace_id, rev))
        assert isinstance(outcome, CheckpointInUse)
        assert str(outcome) == f"checkpoint {trace.trace_id}@{rev} stays: {reason}"
    assert await kept(storage) == [3, 2, 1, 0]
    await commit_one(storage, Delete(child.key))
    assert await commit_one(storage, Drop(writer.key, "t", 1)) == Pruned(1)


async def test_what_was_answered_is_told_before_and_after_it_is_consumed(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a", "b"])
    assert await storage.answered(writer.key) == []
    (a, b) = (row.id for row in writer.live.values())
    first = await leave(storage, answer(writer, 1, "why"))
    await leave(storage, answer(writer, 2, "how"))
    await leave(storage, command(writer, "pause"))
    assert await storage.answered(writer.key) == [(a, "why"), (b, "how")]
    delta = writer.append(body=None)
    await commit_one(storage, attrs.evolve(delta, delta=attrs.evolve(delta.delta, consumed=(first,))))
    assert await storage.answered(writer.key) == [(a, "why"), (b, "how")]
    assert await storage.answered(writer.key + 1) == []
