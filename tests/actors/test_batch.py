"""What the writer writes next: fair among traces, bounded, in order within a trace."""

from __future__ import annotations

from typing import Any, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actors.graphs import Hand, shape
from tinyllm.actors.batch import MAX_BYTES, MAX_WRITES, Queue
from tinyllm.actors.protocol import Ask, Put
from tinyllm.storage.contract import Acquire, Release

DELTA = Hand(shape("a -> b")).deltas[0]


def put(trace_id: str, number: int = 0, size: int = 1, epoch: int = 1) -> Put:
    return Put(trace_id, attrs.evolve(DELTA, number=number, size=size, epoch=epoch), cast(Any, None))


def names(batch: list[Put | Ask]) -> list[str]:
    return [item.trace_id for item in batch]


def test_traces_take_turns() -> None:
    queue = Queue()
    for trace_id in ("a", "a", "a", "b", "c", "b"):
        queue.add(put(trace_id))
    assert names(queue.take()) == ["a", "b", "c", "a", "b", "a"]
    assert not queue


def test_a_trace_with_much_to_write_does_not_hold_up_another() -> None:
    queue = Queue()
    for number in range(10 * MAX_WRITES):
        queue.add(put("greedy", number))
    queue.add(put("modest"))
    assert "modest" in names(queue.take())


def test_a_batch_is_bounded_in_writes_and_in_bytes() -> None:
    queue = Queue()
    for number in range(MAX_WRITES + 1):
        queue.add(put("a", number))
    assert len(queue.take()) == MAX_WRITES
    assert len(queue.take()) == 1
    for number in range(3):
        queue.add(put("a", number, MAX_BYTES // 2))
    assert len(queue.take()) == 2
    assert len(queue.take()) == 1
    queue.add(put("a", 0, 10 * MAX_BYTES))
    assert len(queue.take()) == 1, "what is larger than a batch is one by itself"


def test_what_waits_of_a_run_can_be_dropped() -> None:
    queue = Queue()
    for item in (put("a", 1), put("b"), Ask("a", Release(1, 1), cast(Any, None))):
        queue.add(item)
    assert [type(item) for item in queue.drop(put("a"))] == [Put, Ask]
    assert queue.drop(put("a")) == []
    assert names(queue.take()) == ["b"]


def test_what_a_run_is_refused_takes_nothing_from_the_one_that_goes_on_with_its_trace() -> None:
    """It was taken over, and came back, before all that the first had handed over was refused."""
    queue = Queue()
    of_the_second: list[Put | Ask] = [Ask("a", Acquire(1, "a", 2, "o"), cast(Any, None)), put("a", 1, epoch=3)]
    for item in (put("a", 7), *of_the_second, put("a", 8), Ask("a", Release(1, 3), cast(Any, None))):
        queue.add(item)
    assert [cast(Put, item).delta.number for item in queue.drop(put("a", 6))] == [7, 8]
    taken = queue.take()
    assert taken[:2] == of_the_second
    assert [type(item) for item in taken] == [Ask, Put, Ask]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, MAX_BYTES)), max_size=400))
def test_everything_is_taken_once_and_in_order(items: list[tuple[str, int]]) -> None:
    queue = Queue()
    for number, (trace_id, size) in enumerate(items):
        queue.add(put(trace_id, number, size))
    taken: list[tuple[str, int]] = []
    while queue:
        batch = queue.take()
        assert 1 <= len(batch) <= MAX_WRITES
        assert sum(cast(Put, item).delta.size for item in batch[:-1]) < MAX_BYTES
        taken += [(item.trace_id, cast(Put, item).delta.number) for item in batch]
    for trace_id in "abcd":
        mine = [number for name, number in taken if name == trace_id]
        assert mine == [number for number, (name, _) in enumerate(items) if name == trace_id]


@pytest.mark.parametrize("traces", [3, 7])
def test_a_batch_holds_as_much_of_each_trace(traces: int) -> None:
    queue = Queue()
    for trace in range(traces):
        for number in range(MAX_WRITES):
            queue.add(put(f"t{trace}", number))
    batch = names(queue.take())
    assert {batch.count(f"t{trace}") for trace in range(traces)} <= {MAX_WRITES // traces, MAX_WRITES // traces + 1}
