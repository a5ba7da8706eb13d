"""Which activation may start: the gates of durability, of credit and of the event loop."""

from __future__ import annotations

from typing import Any

import pytest

from tests.actors.graphs import Hand, shape
from tinyllm.actors.dispatch import CREDIT, IN_LOOP, IN_THREAD, Bounds, Dispatch, Durability
from tinyllm.graph.definition import Graph
from tinyllm.graph.node import node


def sync(value: Any) -> Any:
    return value


async def in_loop(value: Any) -> Any:
    return value


@node(effects=True)
def acting(value: Any) -> Any:
    return value


FAN = shape("a => b", functions={"a": sync, "b": sync})


def dispatch(
    graph: Graph, items: int, durability: Durability = "async", *, recorded: bool = True, merges: bool = False
) -> tuple[Dispatch, Hand]:
    """What is ready after `a` has fanned out into `items`; its delta is handed over and not durable."""
    hand = Hand(graph)
    made = Dispatch(Bounds(graph), durability, recorded=recorded, merges=merges)
    hand.finish("a", list(range(items)))
    hand.plan.take_planned()
    made.add(hand.plan.activations.values(), utc=0.0, now=0.0)
    made.hand(1, forced=False)
    return made, hand


def starts(made: Dispatch) -> list[str]:
    """All that may start now."""
    found = []
    while (activation := made.next(lambda: True)) is not None:
        found.append(activation.node)
    return found


def test_only_what_runs_is_counted() -> None:
    made, _ = dispatch(FAN, 2)
    first, second = (made.next(lambda: True) for _ in range(2))
    assert first is not None
    assert second is not None
    made.ended(first.seq)
    assert dict(made.running_of) == {"b": 1}
    made.ended(second.seq)
    assert not made.running_of, "a trace would hold all the nodes that it has passed"


def test_async_starts_before_the_cause_is_durable() -> None:
    made, _ = dispatch(FAN, 3)
    assert starts(made) == ["b", "b", "b"]


def test_sync_waits_for_everything_handed_over() -> None:
    made, _ = dispatch(FAN, 2, "sync")
    assert starts(made) == []
    made.acknowledge(1)
    assert starts(made) == ["b", "b"]


@pytest.mark.parametrize("durability", ["async", "sync", "exit"])
def test_without_a_store_nothing_waits_for_it(durability: Durability) -> None:
    graph = shape("a => b", functions={"a": sync, "b": acting})
    made, _ = dispatch(graph, 2, durability, recorded=False)
    assert starts(made) == ["b", "b"]


def test_a_node_with_effects_waits_for_the_delta_that_planned_it_and_others_do_not() -> None:
    graph = shape("a => b", "a => c", functions={"a": sync, "b": acting, "c": sync})
    made, hand = dispatch(graph, 1)
    assert made.needs_durable(hand.live("b"))
    assert not made.needs_durable(hand.live("c"))
    assert starts(made) == ["c"]
    made.acknowledge(0)
    assert starts(made) == []
    made.acknowledge(1)
    assert starts(made) == ["b"]


def test_in_exit_mode_a_node_with_effects_does_not_wait() -> None:
    graph = shape("a => b", functions={"a": sync, "b": acting})
    made, hand = dispatch(graph, 1, "exit", merges=True)
    assert not made.needs_durable(hand.live("b"))
    assert starts(made) == ["b"]


def test_what_a_restored_trace_runs_is_durable_already() -> None:
    graph = shape("a -> b", functions={"a": acting, "b": sync})
    made = Dispatch(Bounds(graph), "sync", recorded=True, merges=False)
    made.add(Hand(graph).plan.activations.values(), utc=0.0, now=0.0)
    assert starts(made) == ["a"]


def test_credit_is_the_number_of_deltas_at_risk() -> None:
    made, _ = dispatch(FAN, 1)
    for number in range(2, CREDIT + 1):
        assert made.has_credit
        made.hand(number, forced=False)
    assert not made.has_credit
    assert starts(made) == []
    made.acknowledge(1)
    assert made.has_credit
    assert starts(made) == ["b"]


def test_where_deltas_are_merged_only_those_count_that_are_written_at_once() -> None:
    made, _ = dispatch(FAN, 1, merges=True)
    for number in range(2, 3 * CREDIT):
        made.hand(number, forced=False)
    assert made.has_credit
    for number in range(3 * CREDIT, 4 * CREDIT):
        made.hand(number, forced=True)
    assert not made.has_credit
    made.acknowledge(3 * CREDIT)
    assert made.has_credit


def test_once_the_loop_was_blocked_one_node_in_it_starts_after_the_one_before_it_has_begun() -> None:
    graph = shape("a => b", "a => c", functions={"a": sync, "b": in_loop, "c": in_loop})
    made, _ = dispatch(graph, 2)
    made.loop_was_blocked()
    made.hand(2, forced=False)
    assert made.needs_telling
    assert starts(made) == [], "what came of that is to be durable first"
    made.acknowledge(2)
    assert starts(made) == ["b"]
    (seq,) = made.running
    made.started(seq)
    assert starts(made) == ["c"]
    made.ended(seq)
    assert starts(made) == [], "another one is still to begin"


def test_nodes_in_the_loop_start_together_while_none_has_blocked_it() -> None:
    graph = shape("a => b", "a => c", functions={"a": sync, "b": in_loop, "c": in_loop})
    made, _ = dispatch(graph, 2)
    assert starts(made) == ["b", "c", "b", "c"]


def test_what_was_not_started_is_the_next_to_start() -> None:
    graph = shape("a => b", functions={"a": sync, "b": in_loop})
    made, _ = dispatch(graph, 2)
    first = made.next(lambda: True)
    assert first is not None
    made.deferred(first.seq)
    assert made.next(lambda: True) is first


def test_an_end_counts_as_a_start() -> None:
    graph = shape("a => b", functions={"a": sync, "b": in_loop})
    made, _ = dispatch(graph, 2)
    made.careful = True
    assert starts(made) == ["b"]
    made.ended(next(iter(made.running)))
    assert starts(made) == ["b"]


def test_threads_start_beside_a_node_in_the_loop() -> None:
    graph = shape("a => b", "a => c", functions={"a": sync, "b": in_loop, "c": sync})
    made, _ = dispatch(graph, 2)
    made.careful = True
    assert starts(made) == ["b", "c", "c"]


@pytest.mark.parametrize(
    ("keys", "function", "most"), [({}, sync, IN_THREAD), ({}, in_loop, IN_LOOP), ({"max_concurrency": 3}, sync, 3)]
)
def test_a_trace_runs_no_more_of_a_node_than_it_allows(keys: Any, function: Any, most: int) -> None:
    made, _ = dispatch(shape("a => b", functions={"a": sync, "b": function}, b=keys), IN_LOOP + 5)
    started = 0
    while starts(made):
        started = len(made.running)
        for seq in list(made.running):
            made.started(seq)
    assert started == len(made.running) == most
    made.ended(next(iter(made.running)))
    assert starts(made) == ["b"]


def test_nodes_take_turns() -> None:
    graph = shape("a => b", "a => c", functions={"a": sync, "b": sync, "c": sync})
    made, _ = dispatch(graph, 3)
    assert starts(made) == ["b", "c"] * 3


def test_each_node_starts_in_the_order_it_was_planned_in() -> None:
    made, hand = dispatch(FAN, 5)
    starts(made)
    assert list(made.running) == sorted(hand.plan.activations)


def test_nothing_starts_when_stopped_or_near_the_end_of_the_lease() -> None:
    made, _ = dispatch(FAN, 1)
    assert made.next(lambda: False) is None
    assert made.running == {}
    made.stopped = True
    assert starts(made) == []


def test_settled_is_when_nothing_runs_and_all_is_durable() -> None:
    made, _ = dispatch(FAN, 1)
    assert not made.settled
    made.acknowledge(1)
    assert made.settled
    starts(made)
    assert not made.settled
    made.ended(next(iter(made.running)))
    assert made.settled
