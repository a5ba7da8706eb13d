"""What a fork takes over from its parent's checkpoint, and what it begins anew."""

from __future__ import annotations

import pytest

from tests.storage.backends import admit, commit_one, run_steps
from tests.storage.deltas import Item
from tinyllm.core.fork import fork_delta
from tinyllm.storage.contract import Admitted, Fork
from tinyllm.storage.memory import InMemoryCheckpointStorage

pytestmark = pytest.mark.anyio


async def test_a_fork_counts_on_from_its_checkpoint_and_asks_and_tries_anew() -> None:
    store = InMemoryCheckpointStorage()
    parent = await admit(store, set=[("log", b"[]"), ("log", Item(b"1"))])
    await run_steps(store, parent, 3)
    await commit_one(store, parent.append(end=min(parent.live), plan=["a", "b"], task="second"))
    await commit_one(store, parent.append(change=[(seq, "paused") for seq in parent.live], body=None))
    before = await store.load("t")
    assert all(row.asked and row.progress and row.due for row in before.frontier)
    first = fork_delta(before, {"x": b"1"})
    outcome = await commit_one(
        store, Fork(parent=parent.key, rev=before.rev, trace_id="child", owner=None, first=first)
    )
    assert isinstance(outcome, Admitted)
    after = await store.load("child")
    assert (after.generation, after.generation_step, after.elapsed) == (2, 3, before.elapsed)
    assert (after.tokens_in, after.tokens_out) == (before.tokens_in, before.tokens_out) == (100, 10)
    assert [(row.node, row.message, row.state) for row in after.frontier] == [
        (row.node, row.message, "planned") for row in before.frontier
    ]
    assert {(row.attempts, row.error, row.tries, row.due, row.progress, row.asked) for row in after.frontier} == {
        (0, None, 0, None, None, None)
    }
    assert after.record.last_task == "second"
