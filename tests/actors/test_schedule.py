"""When a checkpoint is due, and when pruning is."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.actors.graphs import Hand, shape
from tinyllm.actors.schedule import MERGED_BYTES, PRUNE_SLACK, Policy, PruneNow, TraceSchedule, WriteNow
from tinyllm.storage.contract import Delta

EACH = Policy(each_node=True, interval=5.0, durability="async", keep=100)
EVERY = Policy(each_node=False, interval=5.0, durability="async", keep=100)


def deltas(count: int, **last: Any) -> list[Delta]:
    hand = Hand(shape("a -> a"))
    made = [hand.finish("a", number) for number in range(count)]
    return [*made[:-1], attrs.evolve(made[-1], **last)] if last else made


def written(effects: list[Any]) -> list[tuple[int, int]]:
    """(rev, step) of what is written."""
    return [(effect.delta.rev, effect.delta.step) for effect in effects if isinstance(effect, WriteNow)]


def test_after_each_node_every_delta_is_written_with_the_next_rev() -> None:
    schedule = TraceSchedule(EACH, 3, now=0.0)
    revs = [written(schedule.stepped(delta, False, 0.0)) for delta in deltas(3)]
    assert revs == [[(4, 1)], [(5, 2)], [(6, 3)]]
    assert schedule.due_at is None
    assert schedule.flush(9.0) == []


def test_by_interval_what_comes_in_between_is_one_checkpoint() -> None:
    schedule = TraceSchedule(EVERY, 0, now=10.0)
    first, second, third, fourth = deltas(4)
    assert schedule.due_at is None
    assert schedule.stepped(first, False, 11.0) == []
    assert schedule.due_at == 15.0
    assert schedule.stepped(second, False, 12.0) == []
    assert written(schedule.flush(15.0)) == [(1, 2)]
    assert schedule.due_at is None
    assert schedule.stepped(third, False, 16.0) == []
    assert schedule.due_at == 20.0
    assert written(schedule.stepped(fourth, False, 21.0)) == [(2, 4)], "it came late, and is written with the rest"


def test_what_somebody_waits_for_is_written_at_once_with_what_was_before_it() -> None:
    schedule = TraceSchedule(EVERY, 0, now=0.0)
    first, second = deltas(2)
    schedule.stepped(first, False, 1.0)
    (effect,) = schedule.stepped(second, True, 1.0)
    assert isinstance(effect, WriteNow)
    assert (effect.delta.rev, effect.delta.number) == (1, 2)
    assert [step.step for step in effect.delta.steps] == [1, 2]


def test_an_interval_of_zero_is_none() -> None:
    schedule = TraceSchedule(attrs.evolve(EVERY, interval=0.0), 0, now=0.0)
    for delta in deltas(5):
        assert schedule.stepped(delta, False, 1000.0) == []
    assert schedule.due_at is None
    assert written(schedule.flush(1001.0)) == [(1, 5)]


def test_in_exit_mode_only_what_is_forced_and_the_end_are_written() -> None:
    schedule = TraceSchedule(attrs.evolve(EACH, durability="exit"), 0, now=0.0)
    first, second, third = deltas(3)
    assert schedule.stepped(first, False, 1000.0) == []
    assert schedule.due_at is None
    assert written(schedule.stepped(second, True, 1000.0)) == [(1, 2)]
    schedule.stepped(third, False, 1000.0)
    assert written(schedule.flush(1000.0)) == [(2, 3)]


def test_sync_never_merges() -> None:
    assert not attrs.evolve(EVERY, durability="sync").merges
    assert EVERY.merges
    assert not EACH.merges
    assert attrs.evolve(EACH, durability="exit").merges


def test_memory_does_not_grow_with_the_interval() -> None:
    schedule = TraceSchedule(EVERY, 0, now=0.0)
    first, second, third = deltas(3)
    assert schedule.stepped(attrs.evolve(first, size=MERGED_BYTES + 1), False, 0.0) != []
    big = attrs.evolve(second, size=MERGED_BYTES)
    assert schedule.stepped(big, False, 0.0) == []
    assert written(schedule.stepped(third, False, 0.0)) == [(2, 3)]


# -- pruning ---------------------------------------------------------------------------------------------------


def prunes(policy: Policy, rev: int, count: int, **last: Any) -> list[int]:
    """After which of `count` writes pruning is due."""
    schedule = TraceSchedule(policy, rev, now=0.0)
    found = []
    for number, delta in enumerate(deltas(count, **last), start=1):
        if PruneNow() in schedule.stepped(delta, False, 0.0):
            found.append(number)
    return found


KEEP_10 = attrs.evolve(EACH, keep=10)


def test_pruning_is_due_when_the_slack_is_used_up_and_then_again() -> None:
    assert prunes(KEEP_10, 0, 10 + 2 * PRUNE_SLACK) == [10 + PRUNE_SLACK, 10 + 2 * PRUNE_SLACK]


@pytest.mark.parametrize(("count", "due"), [(10, []), (11, [11]), (40, [40])])
def test_at_the_end_pruning_is_due_if_there_is_anything_to_prune(count: int, due: list[int]) -> None:
    assert prunes(KEEP_10, 0, count, status="completed") == due


def test_a_trace_that_goes_on_is_pruned_at_its_first_write_if_it_may_have_too_many() -> None:
    assert prunes(KEEP_10, 200, 3) == [1]
    assert prunes(KEEP_10, 8, 3) == []
    assert prunes(KEEP_10, 8, 3, status="failed") == [3]
