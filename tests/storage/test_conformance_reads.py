"""What every store promises about reading, on every backend and both event loops."""

from __future__ import annotations

import attrs
import pytest

from tests.storage.backends import admit, commit_one, fork, ids, run_steps
from tests.storage.deltas import DELETED, Item
from tinyllm.errors import CheckpointNotFound, TraceNotFound
from tinyllm.storage.contract import Append, CheckpointStorage, Delete, Owner, Prune, StateChange, Status

pytestmark = pytest.mark.anyio


# -- listings --------------------------------------------------------------------------------------------------


async def test_traces_are_listed_most_recently_updated_first(storage: CheckpointStorage) -> None:
    writers = [await admit(storage, f"t{number}") for number in range(4)]
    assert await ids(storage) == ["t3", "t2", "t1", "t0"]
    await run_steps(storage, writers[1], 1)
    assert await ids(storage) == ["t1", "t3", "t2", "t0"]
    await commit_one(storage, writers[0].acquire("o"))
    assert await ids(storage) == ["t0", "t1", "t3", "t2"]
    assert await ids(storage, limit=2, offset=1) == ["t1", "t3"]
    assert await ids(storage, offset=4) == []


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", {"survey-1", "survey_2", "Survey-3", "50%-a", "500", "a'b", "über"}),
        ("survey", {"survey-1", "survey_2"}),
        ("survey_", {"survey_2"}),
        ("Survey", {"Survey-3"}),
        ("50%", {"50%-a"}),
        ("%", set()),
        ("a'b", {"a'b"}),
        ("ü", {"über"}),
    ],
)
async def test_a_prefix_is_matched_literally(storage: CheckpointStorage, prefix: str, expected: set[str]) -> None:
    for trace_id in ("survey-1", "survey_2", "Survey-3", "50%-a", "500", "a'b", "über"):
        await admit(storage, trace_id)
    assert set(await ids(storage, prefix=prefix)) == expected


async def test_traces_are_listed_by_graph_and_by_status(storage: CheckpointStorage, owner: Owner) -> None:
    ends: dict[str, Status] = {"done": "completed", "bad": "failed", "paused": "paused"}
    for trace_id, status in ends.items():
        await commit_one(storage, (await admit(storage, trace_id, owner)).append(body=None, status=status))
    await admit(storage, "runs", owner, graph_id="g2")
    await admit(storage, "lost")
    for status, expected in (
        ("completed", ["done"]),
        ("failed", ["bad"]),
        ("paused", ["paused"]),
        ("running", ["runs"]),
        ("interrupted", ["lost"]),
        ("cancelled", []),
    ):
        assert await ids(storage, status=status) == expected
        assert {record.status for record in await storage.traces(status=status)} <= {status}
    assert await ids(storage, graph_id="g2") == ["runs"]
    assert await ids(storage, graph_id="g2", status="failed") == []
    assert await ids(storage, graph_id="g", status="failed", prefix="b") == ["bad"]
    assert await ids(storage, graph_id="other") == []


async def test_checkpoints_are_listed_the_newest_first(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a", "b"])
    await run_steps(storage, writer, 5)
    records = await storage.checkpoints("t")
    assert [(record.rev, record.step) for record in records] == [(rev, rev) for rev in (5, 4, 3, 2, 1, 0)]
    assert [record.node_id for record in records] == ["a", "a", "a", "b", "a", None]
    newest = records[0]
    assert (newest.id, newest.trace_id, newest.graph_id, newest.status) == ("t@5", "t", "g", "running")
    assert (newest.message_count, newest.frontier_count, newest.label) == (6, 2, None)
    assert records[0].created_at >= records[-1].created_at
    assert await storage.checkpoints("t", limit=2, offset=1) == records[1:3]
    assert await storage.checkpoints("t", limit=2, offset=5) == records[5:]
    assert await storage.checkpoints("t", offset=6) == []


async def test_steps_are_paged_and_begin_with_the_parents(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    await run_steps(storage, writer, 4)
    child = await fork(storage, writer, 2)
    await run_steps(storage, child, 3)
    steps = await storage.steps("child")
    assert [(row.step, row.node, row.ended_at, row.duration_ms) for row in steps] == [
        (step, "a", 1000.0 + step, 1.5) for step in range(1, 6)
    ]
    assert steps[:2] == (await storage.steps("t"))[:2]
    for after in range(7):
        for limit in range(1, 7):
            assert await storage.steps("child", after=after, limit=limit) == steps[after:][:limit]
    assert await storage.steps("child", after=-3) == steps


async def test_the_history_is_paged_and_begins_with_the_parents(storage: CheckpointStorage) -> None:
    writer = await admit(storage, body=b'"task"')
    await run_steps(storage, writer, 2)
    await commit_one(storage, writer.append(end=min(writer.live), plan=["b"], body=b'"edge"', history=False))
    await run_steps(storage, writer, 2)
    child = await fork(storage, writer, 4)
    await run_steps(storage, child, 2)
    history = await storage.messages("child")
    assert [(row.seq, row.node, row.body) for row in history] == [
        (1, "", b'"task"'),
        (2, "a", b"0"),
        (3, "a", b"1"),
        (5, "b", b"3"),
        (6, "a", b"5"),
        (7, "a", b"6"),
    ]
    assert all(row.history for row in history)
    for after in range(9):
        for limit in range(1, 7):
            page = await storage.messages("child", after=after, limit=limit)
            assert page == [row for row in history if row.seq > after][:limit]
    assert [row.seq for row in await storage.messages("child", rev=6)] == [1, 2, 3, 5, 6]
    assert [row.seq for row in await storage.messages("t", rev=1)] == [1, 2]
    with pytest.raises(CheckpointNotFound):
        await storage.messages("child", rev=1)


async def test_who_asks_for_an_unknown_trace_is_told_where_and_what_is_near(storage: CheckpointStorage) -> None:
    await admit(storage, "survey-7k3mq")
    await commit_one(storage, Delete((await admit(storage, "survey-7k3mx")).key))
    assert await storage.trace("survey-7k3mp") is None
    for ask in (
        storage.definition,
        storage.load,
        storage.checkpoints,
        storage.steps,
        storage.messages,
        storage.find_checkpoint,
    ):
        with pytest.raises(TraceNotFound) as caught:
            await ask("survey-7k3mp")
        assert list(caught.value.near) == ["survey-7k3mq"]
        assert caught.value.store == storage.name


# -- loading ---------------------------------------------------------------------------------------------------


async def test_load_shows_every_kept_rev_as_it_was(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    for rev in range(1, 6):
        await commit_one(storage, writer.append(end=rev, plan=["a"], body=b"%d" % rev, set=[("x", b"%d" % rev)]))
    for rev in range(1, 6):
        snapshot = await storage.load("t", rev)
        assert (snapshot.rev, snapshot.step, snapshot.status) == (rev, rev, "running")
        assert [row.seq for row in snapshot.frontier] == [rev + 1]
        assert [(seq, row.node, row.body) for seq, row in snapshot.messages.items()] == [(rev + 1, "a", b"%d" % rev)]
        assert [row.body for row in snapshot.variables["x"]] == [b"%d" % rev]
        assert (snapshot.marks.message, snapshot.counts.messages) == (rev + 1, rev + 1)
        assert snapshot.record.rev == 5
    assert (await storage.load("t")) == (await storage.load("t", 5))


async def test_load_of_a_rev_that_was_never_made_says_what_is_kept(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    await run_steps(storage, writer, 2)
    for rev in (-1, 3, 1 << 40):
        with pytest.raises(CheckpointNotFound, match=rf"'t' has no checkpoint at rev {rev}; kept are steps 0-2"):
            await storage.load("t", rev)


async def test_states_are_those_of_now_only_at_the_newest_rev(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a", "b", "c", "d"])
    await commit_one(
        storage, writer.append(change=[(1, "failed"), (2, "paused"), (3, "cancelled"), (4, "planned")], body=None)
    )
    now = (await storage.load("t")).frontier
    assert [(row.state, row.attempts, row.error, row.tries, row.due, row.progress, row.asked) for row in now] == [
        ("failed", 1, b"error", 0, 2001.5, b"[1]", None),
        ("paused", 1, b"error", 0, 2001.5, b"[1]", b'["a question"]'),
        ("cancelled", 1, b"error", 0, 2001.5, b"[1]", None),
        ("planned", 1, b"error", 0, 2001.5, b"[1]", None),
    ]
    assert (await storage.load("t", 1)).frontier == now
    then = (await storage.load("t", 0)).frontier
    assert {attrs.astuple(row)[7:] for row in then} == {("planned", 0, None, 0, None, None, None)}
    await commit_one(storage, writer.append(end=1))
    then = (await storage.load("t", 1)).frontier
    assert {attrs.astuple(row)[7:] for row in then} == {("planned", 0, None, 0, None, None, None)}


async def test_a_state_change_replaces_all_of_the_state(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a", "b"])
    await commit_one(storage, writer.append(change=[(1, "paused")], body=None))
    change = StateChange(1, "planned", 5)
    await commit_one(storage, Append("t", attrs.evolve(writer.delta(body=None), changed=(change,))))
    row, other = (await storage.load("t")).frontier
    assert attrs.astuple(row)[7:] == ("planned", 5, None, 0, None, None, None)
    assert other == writer.live[2]


async def test_an_activation_may_come_with_a_state(storage: CheckpointStorage) -> None:
    parent = await admit(storage, plan=["a", "b"])
    await commit_one(storage, parent.append(change=[(1, "paused"), (2, "failed")], body=None))
    child = await fork(storage, parent, 1)
    assert (await storage.load("child")).frontier == tuple(child.live.values())
    assert [row.asked for row in child.live.values()] == [b'["a question"]', None]
    await commit_one(storage, child.append(body=None))
    then = (await storage.load("child", 2)).frontier
    assert {attrs.astuple(row)[7:] for row in then} == {("planned", 0, None, 0, None, None, None)}


async def test_a_round_is_buffered_until_it_fires(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a", "a", "a"])
    await commit_one(storage, writer.append(end=1, arrive=["join"], body=b'"first"', history=False))
    await commit_one(storage, writer.append(end=2, awaited=["join"], body=None))
    await commit_one(storage, writer.append(end=3, arrive=["join"], fire=["join"], body=b'"last"', history=False))
    await commit_one(storage, writer.append(end=4, plan=["b"]))
    buffered = await storage.load("t", 2)
    (round_,) = (row for row in buffered.frontier if row.node == "join")
    assert (round_.state, round_.id, round_.path, round_.depth, round_.message) == ("buffered", b"", (), 0, None)
    assert [(row.activation, row.message) for row in buffered.arrivals] == [(round_.seq, 2), (round_.seq, None)]
    assert buffered.messages[2].body == b'"first"'
    fired = await storage.load("t", 3)
    (round_,) = fired.frontier
    assert round_.state == "planned"
    assert len(round_.id) == 16
    assert (round_.path, round_.depth) == ((), 3)
    assert [row.message for row in fired.arrivals] == [2, None, 3]
    assert {seq: row.body for seq, row in fired.messages.items()} == {2: b'"first"', 3: b'"last"'}
    assert (await storage.load("t")).arrivals == ()
    # Nobody reads the two any more once the checkpoints at which somebody did are pruned.
    await commit_one(storage, Prune(writer.key, 1))
    assert [row.seq for row in await storage.messages("t")] == [1, 4]


async def test_items_paths_and_depths_come_back(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    await commit_one(storage, writer.append(end=1, plan=["b"] * 3, items=True))
    rows = (await storage.load("t")).frontier
    assert rows == tuple(writer.live.values())
    assert [(row.item, row.message, row.path, row.depth) for row in rows] == [(item, 2, (1,), 1) for item in range(3)]


async def test_variables_come_as_the_full_row_and_what_was_appended(storage: CheckpointStorage) -> None:
    writer = await admit(storage, set=[("list", b"[]"), ("gone", b"1"), ("same", b'"s"')])
    for change in (
        [("list", Item(b"1"))],
        [("list", Item(b"2")), ("gone", DELETED)],
        [("list", b"[9]"), ("new", b"[]"), ("new", Item(b"0"))],
        [("list", Item(b"10")), ("gone", b"2")],
    ):
        await commit_one(storage, writer.append(body=None, set=change))
    expected: list[dict[str, list[bytes]]] = [
        {"list": [b"[]"], "gone": [b"1"]},
        {"list": [b"[]", b"1"], "gone": [b"1"]},
        {"list": [b"[]", b"1", b"2"]},
        {"list": [b"[9]"], "new": [b"[]", b"0"]},
        {"list": [b"[9]", b"10"], "new": [b"[]", b"0"], "gone": [b"2"]},
    ]
    for rev, variables in enumerate(expected):
        snapshot = await storage.load("t", rev)
        bodies = {key: [row.body for row in rows] for key, rows in snapshot.variables.items()}
        assert bodies == variables | {"same": [b'"s"']}
        assert snapshot.counts.variables == len(bodies)
        for rows in snapshot.variables.values():
            assert rows[0].kind == "full"
            assert {row.kind for row in rows[1:]} <= {"append"}
            assert all(row.base == rows[0].seq for row in rows)
            assert all(row.order == b'[%d,[],0,"",0]' % row.seq for row in rows[1:])


@pytest.mark.parametrize(
    "body", [b"", b"\x00", b"\xff\xfe", b'"\xc3\xa4"', b"a\x00b", b"x" * 4097, bytes(range(256)) * 64], ids=repr
)
async def test_bytes_come_back_as_they_were(storage: CheckpointStorage, body: bytes) -> None:
    writer = await admit(storage, body=body, set=[("x", body), ("y", b"[]")])
    await commit_one(storage, writer.append(body=None, set=[("y", Item(body))], status="failed", error=body))
    snapshot = await storage.load("t")
    assert snapshot.messages[1].body == body
    assert snapshot.variables["x"][0].body == body
    assert snapshot.variables["y"][1].body == body
    assert snapshot.record.error == body


async def test_what_a_caller_does_with_a_snapshot_changes_nothing(storage: CheckpointStorage) -> None:
    await admit(storage, set=[("x", b"1")])
    snapshot = await storage.load("t")
    for mapping in (snapshot.messages, snapshot.variables):
        assert isinstance(mapping, dict)
        mapping.clear()
    (await storage.messages("t")).clear()
    (await storage.checkpoints("t")).clear()
    again = await storage.load("t")
    assert set(again.variables) == {"x"}
    assert set(again.messages) == {1}
    assert len(await storage.messages("t")) == len(await storage.checkpoints("t")) == 1


# -- finding a checkpoint --------------------------------------------------------------------------------------


async def test_a_checkpoint_is_found_by_step(storage: CheckpointStorage) -> None:
    writer = await admit(storage)
    await run_steps(storage, writer, 3)
    await commit_one(storage, writer.append(change=[(4, "failed")], body=None))  # a rev without a step
    await run_steps(storage, writer, 2)
    assert [(await storage.find_checkpoint("t", step=step)).rev for step in range(6)] == [0, 1, 2, 4, 5, 6]
    await commit_one(storage, Prune(writer.key, 2))
    for step in (1, 3, 6):
        with pytest.raises(CheckpointNotFound, match=rf"no checkpoint at step {step}; kept are steps 0, 4-5"):
            await storage.find_checkpoint("t", step=step)
    child = await fork(storage, writer, 6)
    assert (await storage.find_checkpoint("child", step=5)).id == f"child@{child.rev}"


async def test_a_checkpoint_is_found_by_the_node_that_was_waiting(storage: CheckpointStorage) -> None:
    writer = await admit(storage, plan=["a"])
    for write in (
        writer.append(end=1, plan=["rank"]),  # 1: waits
        writer.append(body=None),  # 2: still does
        writer.append(end=2, plan=["a", "a"]),
        writer.append(end=3, arrive=["join"]),  # 4: a round opens, which is not waiting to run
        writer.append(end=4, arrive=["join"], fire=["join"]),  # 5: it is
        writer.append(end=5, plan=["a"]),
    ):
        await commit_one(storage, write)
    assert (await storage.find_checkpoint("t", node="rank")).rev == 2
    assert (await storage.find_checkpoint("t", node="join")).rev == 5
    assert (await storage.find_checkpoint("t", node="a")).rev == 6
    await commit_one(storage, Prune(writer.key, 3))
    assert (await storage.find_checkpoint("t", node="join")).rev == 5
    with pytest.raises(CheckpointNotFound, match=r"'rank' was waiting to run; kept are steps 0, 3-5"):
        await storage.find_checkpoint("t", node="rank")
    with pytest.raises(CheckpointNotFound, match="nowhere"):
        await storage.find_checkpoint("t", node="nowhere")
