"""When a join fires, with what, and in which order joins that block each other do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.actors.graphs import Hand, Record, shape
from tinyllm.graph.definition import Graph


def run(graph: Graph, answer: Callable[[str, Any], Any], rng: random.Random, **said: Any) -> tuple[Hand, list[str]]:
    """Finish activations in random order with what `answer(node, value)` gives: the plan, and the joins' order."""
    hand, fired = Hand(graph, **said), []
    while hand.plan.activations:
        activation = hand.plan.activations[rng.choice(sorted(hand.plan.activations))]
        if graph.nodes[activation.node].join == "all":
            fired.append(activation.node)
        hand.finish(activation, answer(activation.node, activation.input.value))
    return hand, fired


def test_a_join_fires_once_with_all_that_arrived_by_index_and_not_by_time() -> None:
    graph = shape("a => b", "b -> j", joins=["j"])
    for seed in range(10):
        hand, fired = run(graph, lambda node, value: list("xyz") if node == "a" else value, random.Random(seed))
        assert fired == ["j"]
        assert hand.exits() == [["x", "y", "z"]]


def test_a_join_does_not_wait_for_what_cannot_reach_it() -> None:
    hand = Hand(shape("a -> b", "a -> c", "a -> d", "b -> j", "c -> j", "d -> e", joins=["j"]))
    hand.finish("a")
    hand.finish("b")
    hand.finish("c")
    assert hand.waiting() == {"d": 1, "j": 1}


def test_a_join_any_fires_for_each_arrival() -> None:
    hand = Hand(shape("a -> b", "a -> c", "b -> d", "c -> d"))
    hand.finish("a")
    hand.finish("b")
    hand.finish("c")
    assert hand.waiting() == {"d": 2}


def test_a_join_waits_for_a_nested_fan_out() -> None:
    graph = shape("a => b", "b => c", "c -> j", joins=["j"])

    def answer(node: str, value: Any) -> Any:
        return {"a": [[1, 2], [], [3]]}.get(node, value)

    for seed in range(20):
        hand, fired = run(graph, answer, random.Random(seed))
        assert fired == ["j"]
        assert hand.exits() == [[1, 2, 3]]


def test_a_join_behind_a_join_waits_for_it() -> None:
    graph = shape("a -> b", "a -> k", "b -> j", "j -> k", joins=["j", "k"])
    for seed in range(10):
        _, fired = run(graph, lambda _, value: value, random.Random(seed))
        assert fired == ["j", "k"]


def test_a_join_waits_for_what_only_a_target_leads_to_it() -> None:
    hand = Hand(shape("a -> j", "a -> b", "c -> j", joins=["j"], exits=["j"], b={"targets": ("c",)}))
    hand.finish("a", 1)
    assert hand.waiting() == {"b": 1}
    hand.finish("b", 2, goto=["c"])
    hand.finish("c", 3)
    assert sorted(hand.live("j")[0].input.value) == [1, 3]


@pytest.mark.parametrize("behind", [["b -> j"], ["b -> c", "c -> j"], ["b => c", "c -> j"]])
def test_an_empty_fan_out_reaches_the_join_behind_it(behind: list[str]) -> None:
    hand = Hand(shape("a => b", *behind, joins=["j"]))
    delta = hand.finish("a", [])
    assert hand.waiting() == {"j": 1}
    assert hand.live("j")[0].input.value == []
    assert hand.live("j")[0].sources == ()
    assert [row.message for row in delta.arrivals] == [None]
    assert hand.finish("j", "done").status == "completed"


def test_an_empty_fan_out_beside_a_full_one_brings_nothing() -> None:
    graph = shape("a => b", "a -> c", "b -> j", "c -> j", joins=["j"])
    hand = Hand(graph)
    hand.finish("a", [])
    assert hand.waiting() == {"c": 1}
    hand.finish("c", "c")
    assert hand.live("j")[0].input.value == ["c"]


def test_an_empty_fan_out_with_no_join_behind_it_reaches_the_end_with_nothing() -> None:
    hand = Hand(shape("a => b"))
    assert hand.finish("a", []).status == "completed"
    assert hand.plan.outcome() == []
    one = Hand(shape("a => b"))
    one.finish("a", [1])
    one.finish("b", "x")
    assert one.plan.outcome() == ["x"], "inside a fan-out it is a list, whatever the number"
    exit_ = Hand(shape("a => b", exits=["a", "b"]))
    assert exit_.finish("a", []).status == "completed"
    assert exit_.plan.outcome() == []


def test_an_empty_fan_out_survives_a_resume() -> None:
    graph = shape("a => b", "a -> c", "b -> j", "c -> j", joins=["j"])
    record, hand = Record(graph), Hand(graph)
    record.admit(hand.plan, hand.deltas[0])
    record.append(hand.finish("a", []))
    record.append(hand.finish("c", "c"))
    (join,) = record.resume().activations.values()
    assert (join.id, join.input.value) == (hand.live("j")[0].id, ["c"])


def test_a_join_in_a_cycle_opens_a_new_round_each_time() -> None:
    graph = shape("a => b", "b -> j", "j => b if len(structured) > 1", "j -> e if len(structured) == 1", joins=["j"])

    def answer(node: str, value: Any) -> Any:
        return {"a": [1, 2, 3], "j": value[1:]}.get(node, value) if node in "aj" else value

    for seed in range(10):
        hand, fired = run(graph, answer, random.Random(seed))
        assert fired == ["j", "j"]
        assert hand.exits() == [[3]]


def test_each_round_has_an_id_of_its_own() -> None:
    hand = Hand(shape("a -> j", "j -> j if structured != [2]", "j -> e if structured == [2]", joins=["j"]))
    hand.finish("a", 1)
    first = hand.live("j")[0].id
    hand.finish("j", 2)
    assert hand.live("j")[0].id not in (first, b"")


# -- joins that block each other -------------------------------------------------------------------------------


def test_of_joins_that_block_each_other_the_one_in_the_lowest_component_fires() -> None:
    """`j` and `k` wait for each other; `m` and `n`, behind them, do too."""
    graph = shape(
        "a -> j",
        "a -> k",
        "a -> m",
        *("j -> k", "k -> j if False", "k -> m"),
        *("m -> n", "n -> m if False"),
        joins=["j", "k", "m", "n"],
    )
    for seed in range(10):
        _, fired = run(graph, lambda _, value: value, random.Random(seed))
        assert fired == ["j", "k", "m", "n"]


def test_of_joins_in_one_component_the_one_with_the_oldest_cause_fires_whatever_came_first() -> None:
    graph = shape("a -> k", "a -> b", "b -> c", "c -> j", "j -> k", "k -> j if False", joins=["j", "k"])
    for seed in range(20):
        _, fired = run(graph, lambda _, value: value, random.Random(seed))
        assert fired == ["k", "j", "k"], "k's arrival has fewer causes than j's"


def test_the_order_among_joins_that_block_each_other_is_not_that_of_time() -> None:
    """Both arrivals are as old: what a node happened to do first must not decide, or a resumed run differs."""
    graph = shape("a -> b", "a -> c", "b -> j", "c -> k", "j -> k", "k -> j if False", joins=["j", "k"])
    orders = {tuple(run(graph, lambda _, value: value, random.Random(seed))[1]) for seed in range(20)}
    assert orders == {("j", "k")}


def test_blocked_joins_wait_for_a_failed_activation() -> None:
    ring = ("j -> k", "k -> j if False")
    graph = shape("a -> b", "a -> c", "a -> j", "a -> k", "b -> e", "c -> e", *ring, joins=["j", "k"])
    hand = Hand(graph)
    hand.finish("a")
    hand.fail("b")
    hand.finish("c")
    hand.finish("e")
    assert hand.waiting() == {"b": 1}
    assert hand.plan.joins.rounds.keys() > {"j", "k"}


# -- paths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("items", [[[1, 2]], [[1]], [[1], [2]]])
def test_a_join_is_out_of_every_fan_out(items: list[list[int]]) -> None:
    graph = shape("a => b", "b => c", "c -> j", joins=["j"])
    hand = Hand(graph)
    hand.finish("a", items)
    for activation, inner in zip(hand.live("b"), items, strict=True):
        hand.finish(activation, inner)
    for activation in hand.live("c"):
        hand.finish(activation)
    assert hand.live("j")[0].path == ()
    hand.finish("j", "one")
    assert hand.plan.outcome() == "one"
