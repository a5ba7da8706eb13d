"""The pure plan of a trace: admission, routes, ids, variables, failures, and going on from what was stored."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.actors.graphs import BOOM, Hand, Record, output, shape
from tinyllm.actors import routes
from tinyllm.actors.plan import Plan
from tinyllm.errors import NodeError
from tinyllm.graph.ids import activation_id
from tinyllm.graph.payload import Captured

CHAIN = shape("a -> b", "b -> c")
DIAMOND = shape("a -> b", "a -> c", "b -> d", "c -> d", joins=["d"])


def finish_all(hand: Hand, rng: random.Random | None = None) -> dict[str, set[bytes]]:
    """Finish activations, each with its own input as value, until none is left: the ids by node."""
    ids: dict[str, set[bytes]] = {}
    while hand.plan.activations:
        seq = (rng or random).choice(sorted(hand.plan.activations)) if rng else min(hand.plan.activations)
        activation = hand.plan.activations[seq]
        ids.setdefault(activation.node, set()).add(activation.id)
        hand.finish(activation, activation.input.value)
    return ids


# -- admission and the end -------------------------------------------------------------------------------------


def test_admission_plans_every_entry_and_records_the_task_and_the_variables() -> None:
    hand = Hand(CHAIN, "task", variables={"x": 1, "log": []})
    (first,) = hand.deltas
    assert (first.number, first.step, first.status) == (0, 0, "running")
    assert [row.node for row in first.activations] == ["a"]
    assert [(row.body, row.consumers, row.node) for row in first.messages] == [(b'"task"', 1, "")]
    assert [(row.key, row.kind, row.body) for row in first.variables] == [("x", "full", b"1"), ("log", "full", b"[]")]
    assert (first.counts.messages, first.counts.frontier, first.counts.variables) == (1, 1, 2)
    assert hand.live("a")[0].born == 0


def test_a_chain_counts_steps_and_ends_with_the_exits_value() -> None:
    hand = Hand(CHAIN)
    assert hand.finish("a", 1).status == "running"
    assert hand.finish("b", [2]).step == 2
    last = hand.finish("c", {"n": 3})
    assert (last.step, last.status, last.node) == (3, "completed", "c")
    assert hand.exits() == [{"n": 3}]
    assert hand.plan.quiescent
    assert last.counts.frontier == 1, "what reached the end stays, for the response"


def test_a_plan_stays_as_small_as_what_is_live() -> None:
    hand = Hand(CHAIN)
    hand.finish("a", 1)
    assert dict(hand.plan.active) == {"b": 1}, "a graph may have a thousand nodes, and a process ten thousand traces"
    assert not hasattr(hand.plan, "__dict__"), "which would take as much as all else that it holds"


def test_several_exits_are_all_of_the_outcome_in_causal_order() -> None:
    graph = shape("a => b")
    for order in ([0, 1, 2], [2, 0, 1]):
        hand = Hand(graph)
        hand.finish("a", ["x", "y", "z"])
        activations = hand.live("b")
        for index in order:
            hand.finish(activations[index], activations[index].input.value.upper())
        assert hand.exits() == ["X", "Y", "Z"]


def test_a_graph_that_reaches_no_exit_fails_and_says_so() -> None:
    hand = Hand(shape("a -> b if structured > 1"))
    last = hand.finish("a", 1)
    assert last.status == "failed"
    assert last.error is not None
    assert b"without reaching an exit" in last.error


def test_an_exit_whose_edges_do_not_hold_gives_the_outcome() -> None:
    hand = Hand(shape("a -> b if structured > 1", exits=["a", "b"]))
    assert hand.finish("a", 1).status == "completed"
    assert hand.exits() == [1]


def test_an_exit_that_goes_on_gives_no_outcome() -> None:
    hand = Hand(shape("a -> b", exits=["a", "b"]))
    hand.finish("a", 1)
    hand.finish("b", 2)
    assert hand.exits() == [2]


# -- edges -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "taken"), [(1, {"low"}), (5, {"low", "high"}), (9, {"high"})])
def test_every_edge_whose_condition_holds_is_taken(value: int, taken: set[str]) -> None:
    hand = Hand(shape("a -> low if structured < 6", "a -> high if structured > 4"))
    hand.finish("a", value)
    assert hand.waiting().keys() == taken


def test_conditions_see_the_variables_as_the_result_leaves_them() -> None:
    """A counter in a variable, read on the very edge of the node that counts."""
    graph = shape("a -> a if variables['n'] < 3", "a -> b if variables['n'] >= 3", entry="a")
    hand = Hand(graph)
    for n in (1, 2, 3):
        assert hand.waiting() == {"a": 1}
        hand.finish("a", None, set={"n": n})
    assert hand.waiting() == {"b": 1}


def test_conditions_see_an_item_that_the_result_appends() -> None:
    graph = shape("a -> b if len(variables['log']) == 2", "a -> c", variables={"log": "append"})
    hand = Hand(graph, variables={"log": ["x"]})
    hand.finish("a", None, set={"log": "y"})
    assert hand.waiting() == {"b": 1, "c": 1}


def test_what_names_an_undeclared_target_changes_nothing() -> None:
    hand = Hand(shape("a -> b", variables={"log": "append"}), variables={"log": ["x"]})
    (activation,) = hand.live("a")
    before = (hand.plan.versions, hand.plan.step, hand.plan.number, dict(hand.plan.activations))
    with pytest.raises(NodeError):
        hand.finish(activation, {}, set={"log": "lost", "other": 1}, goto=["nowhere"])
    assert (hand.plan.versions, hand.plan.step, hand.plan.number, dict(hand.plan.activations)) == before
    hand.finish(activation, {}, set={"log": "kept"})
    assert hand.variables() == {"log": ["x", "kept"]}


def test_a_result_whose_edges_cannot_be_decided_is_recorded_and_decided_later() -> None:
    graph = shape("a -> b", "a -> c if structured['missing']", "b -> j", "c -> j", joins=["j"])
    hand = Hand(graph)
    delta = hand.finish("a", {})
    assert [row.step for row in delta.steps] == [1]
    assert [row.node for row in delta.activations] == ["a>"]
    assert hand.plan.error is not None
    assert (hand.plan.error.type, hand.plan.error.node_id) == ("ConditionError", "a")
    assert hand.waiting() == {"a>": 1}
    assert not hand.plan.quiescent

    mended = shape("a -> b", "a -> c if not structured", "b -> j", "c -> j", joins=["j"])
    plan = Plan(mended, hand.plan.trace_id)
    ((seq, result),) = hand.plan.undecided.items()
    plan.undecided[seq], plan.active["a"] = result, 1
    plan.step, plan.number = hand.plan.step, 0
    woken = plan.wake()
    assert woken is not None
    assert woken.ended == (seq,)
    assert plan.waiting() == {"b": 1, "c": 1}
    assert plan.error is None


def test_for_each_makes_one_activation_per_item_in_order() -> None:
    hand = Hand(shape("a => b"))
    delta = hand.finish("a", ["x", {"y": 1}, None])
    assert [a.input.value for a in hand.live("b")] == ["x", {"y": 1}, None]
    assert [a.path for a in hand.live("b")] == [(0,), (1,), (2,)]
    assert [(row.consumers, len(row.body)) for row in delta.messages] == [(3, len(b'["x",{"y":1},null]'))]
    assert [row.item for row in delta.activations] == [0, 1, 2]


def test_for_each_of_nested_lists_nests_the_paths() -> None:
    hand = Hand(shape("a => b", "b => c"))
    hand.finish("a", [[1, 2], [3]])
    for activation in reversed(hand.live("b")):
        hand.finish(activation, activation.input.value)
    assert [(a.path, a.input.value) for a in hand.live("c")] == [((0, 0), 1), ((0, 1), 2), ((1, 0), 3)]


@pytest.mark.parametrize("value", ["text", {"a": 1}, None, 3, (1, 2)])
def test_for_each_of_what_is_no_list_is_the_nodes_fault(value: Any) -> None:
    hand = Hand(shape("a => b"))
    with pytest.raises(NodeError, match="for_each, but the value is"):
        hand.finish("a", value)
    assert hand.waiting() == {"a": 1}


def test_a_fan_out_beyond_the_cap_is_refused_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "FAN_OUT_CAP", 3)
    hand = Hand(shape("a => b"))
    with pytest.raises(NodeError, match="makes 4 activations, more than the 3 allowed"):
        hand.finish("a", [1, 2, 3, 4])
    assert hand.waiting() == {"a": 1}
    hand.finish("a", [1, 2, 3])
    assert hand.waiting() == {"b": 3}


# -- goto and sends --------------------------------------------------------------------------------------------

ROUTER = shape("a -> c", "b -> d", "c -> d", a={"targets": ("b", "c")})


def test_goto_replaces_the_edges() -> None:
    hand = Hand(ROUTER)
    hand.finish("a", 1, goto=["b"])
    assert hand.waiting() == {"b": 1}
    assert hand.live("b")[0].input.value == 1


def test_goto_twice_the_same_node_runs_it_once() -> None:
    hand = Hand(ROUTER)
    hand.finish("a", 1, goto=["b", "c", "b"])
    assert hand.waiting() == {"b": 1, "c": 1}


def test_goto_nowhere_ends_at_an_exit_and_is_a_dead_end_elsewhere() -> None:
    exit_ = Hand(shape("a -> b", exits=["a", "b"], a={"targets": ("b",)}))
    assert exit_.finish("a", 7, goto=[]).status == "completed"
    assert exit_.exits() == [7]
    assert Hand(ROUTER).finish("a", 7, goto=[]).status == "failed"


def test_sends_carry_a_value_each() -> None:
    hand = Hand(ROUTER)
    delta = hand.finish("a", sends=[("b", "x"), ("c", "y"), ("b", "z")])
    assert [(a.node, a.input.value, a.path) for a in sorted(hand.live("b") + hand.live("c"), key=lambda a: a.path)] == [
        ("b", "x", (0,)),
        ("c", "y", (1,)),
        ("b", "z", (2,)),
    ]
    assert [row.consumers for row in delta.messages] == [0, 1, 1, 1]


@pytest.mark.parametrize("said", [{"goto": ["d"]}, {"sends": [("b", 1), ("d", 2)]}])
def test_an_undeclared_target_is_the_nodes_fault(said: Any) -> None:
    hand = Hand(ROUTER)
    with pytest.raises(NodeError, match=r"names 'd', which is not among its targets \(b, c\)"):
        hand.finish("a", **said)
    assert hand.waiting() == {"a": 1}


# -- ids -------------------------------------------------------------------------------------------------------

WIDE = shape("a => b", "b -> c", "b -> d if structured > 1", "c -> j", "d -> j", "j -> e", joins=["j"])


def test_ids_are_the_same_in_any_order_of_planning() -> None:
    first = None
    for seed in range(20):
        hand = Hand(WIDE)
        hand.finish("a", [1, 2, 3])
        ids = finish_all(hand, random.Random(seed))
        first = first or ids
        assert ids == first
        assert hand.exits() == [[1, 2, 2, 3, 3]]


def test_ids_are_all_different_within_a_trace_and_between_traces_and_generations() -> None:
    seen: list[bytes] = []
    for trace_id in ("t", "u"):
        hand = Hand(WIDE, trace_id=trace_id)
        for _ in range(2):
            hand.finish("a", [1, 2, 3])
            seen += [activation_id(trace_id, id) for ids in finish_all(hand).values() for id in ids]
            hand.plan.begin_again(Captured(b'"task"'), "digest")
    assert len(seen) == len(set(seen))


def test_what_is_concurrent_is_ordered_alike_in_every_trace() -> None:
    """`d` is reached twice, from one node each, at one depth: only the causes tell its results apart."""
    graph = shape("a -> b", "a -> c", "b -> d", "c -> d", variables={"log": "append"})
    ends = set()
    for number in range(20):
        hand = Hand(graph, trace_id=f"t{number}")
        hand.finish("a", 1)
        for node in ("b", "c") if number % 2 else ("c", "b"):
            hand.finish(node, node)
        while hand.live("d"):
            activation = hand.live("d")[0]
            hand.finish(activation, activation.input.value, set={"log": activation.input.value})
        ends.add((str(hand.exits()), str(hand.variables())))
    assert len(ends) == 1


def test_two_edges_between_the_same_nodes_make_different_ids() -> None:
    hand = Hand(shape("a -> b", "a => b"))
    hand.finish("a", [1])
    assert len({a.id for a in hand.live("b")}) == 2


def test_a_resumed_plan_plans_the_same_ids() -> None:
    def run(interrupt_after: int | None) -> list[tuple[str, bytes]]:
        record, hand = Record(WIDE), Hand(WIDE)
        record.admit(hand.plan, hand.deltas[0])
        ids: list[tuple[str, bytes]] = []
        for count in itertools.count():
            if count == interrupt_after:
                hand.plan = record.resume()
            if not hand.plan.activations:
                return sorted(ids)
            activation = hand.plan.activations[min(hand.plan.activations)]
            ids.append((activation.node, activation.id))
            value = [1, 2, 3] if activation.node == "a" else activation.input.value
            record.append(hand.finish(activation, value))
        raise AssertionError

    whole = run(None)
    assert len(whole) == 11
    for at in range(len(whole) + 1):
        assert run(at) == whole


# -- variables -------------------------------------------------------------------------------------------------


def test_appended_items_are_presented_by_cause_and_never_by_time() -> None:
    graph = shape("a => b", "b -> c", variables={"log": "append"})
    first = None
    for seed in range(10):
        rng, hand = random.Random(seed), Hand(graph)
        hand.finish("a", [0, 1, 2], set={"log": "a"})
        while hand.plan.activations:
            activation = hand.plan.activations[rng.choice(sorted(hand.plan.activations))]
            hand.finish(activation, activation.input.value, set={"log": f"{activation.node}{activation.path[0]}"})
        first = first or hand.variables()["log"]
        assert hand.variables()["log"] == first == ["a", "b0", "b1", "b2", "c0", "c1", "c2"]


def test_what_one_result_sets_keeps_its_order() -> None:
    graph = shape("a -> b", variables={"log": "append"})
    hand = Hand(graph)
    delta = hand.finish("a", None, set={"x": 1, "log": "first", "y": 2})
    assert [(row.key, row.kind) for row in delta.variables] == [
        ("x", "full"),
        ("log", "full"),
        ("log", "append"),
        ("y", "full"),
    ]
    assert hand.variables() == {"x": 1, "log": ["first"], "y": 2}
    assert delta.counts.variables == 3


def test_appending_costs_the_item_and_not_the_list() -> None:
    hand = Hand(shape("a -> a", "a -> b", variables={"log": "append"}), variables={"log": ["x" * 1000] * 1000})
    delta = hand.finish("a", None, set={"log": "y"})
    assert sum(len(row.body) for row in delta.variables) == 3


def test_appending_to_what_is_no_list_is_the_nodes_fault() -> None:
    hand = Hand(shape("a -> b", variables={"log": "append"}), variables={"log": "text"})
    with pytest.raises(NodeError, match=r"variables\['log'\]: has the reducer append, but holds 'text'"):
        hand.finish("a", None, set={"other": 1, "log": "y"})
    assert hand.variables() == {"log": "text"}


def test_a_node_that_runs_keeps_the_variables_it_started_with() -> None:
    hand = Hand(shape("a -> b", "a -> c", variables={"log": "append"}), variables={"log": [], "x": 0})
    hand.finish("a")
    seen = hand.plan.versions
    hand.finish("b", None, set={"x": 1, "log": "y"})
    assert {key: version.value for key, version in seen.items()} == {"log": [], "x": 0}


# -- failures --------------------------------------------------------------------------------------------------


def test_a_failed_activation_stays_in_the_frontier_and_keeps_its_join_from_firing() -> None:
    hand = Hand(DIAMOND)
    hand.finish("a")
    delta = hand.fail("b")
    assert delta.status == "running"
    assert [(c.state, c.attempts) for c in delta.changed] == [("failed", 1)]
    hand.finish("c")
    assert hand.waiting() == {"b": 1}
    assert "d" in hand.plan.joins.rounds
    assert not hand.plan.quiescent
    failed = hand.plan.close("failed")
    assert failed.status == "failed"
    assert failed.error is not None
    assert b"boom" in failed.error
    assert failed.counts.frontier == 2


def test_a_cut_off_activation_costs_no_attempt_and_keeps_its_join_from_firing() -> None:
    hand = Hand(DIAMOND)
    hand.finish("a")
    delta = hand.plan.cut_off(hand.live("b")[0].seq)
    assert [(c.state, c.attempts, c.error) for c in delta.changed] == [("cancelled", 0, None)]
    assert hand.plan.error is None
    hand.finish("c")
    assert hand.waiting() == {"b": 1}


def test_the_first_failure_is_the_traces() -> None:
    hand = Hand(DIAMOND)
    hand.finish("a")
    hand.fail("b")
    hand.fail("c", BOOM.__class__(type="Other", message="later"))
    assert hand.plan.error is BOOM


def test_a_resume_plans_the_failed_and_the_cancelled_again_with_their_attempts() -> None:
    record, hand = Record(DIAMOND), Hand(DIAMOND)
    record.admit(hand.plan, hand.deltas[0])
    record.append(hand.finish("a"))
    record.append(hand.fail("b"))
    record.append(hand.plan.cut_off(hand.live("c")[0].seq))
    record.append(hand.plan.close("failed"))
    plan = record.resume()
    assert {a.node: a.attempts for a in plan.activations.values()} == {"b": 1, "c": 0}
    assert plan.status == "running"
    assert plan.error is None
    assert plan.wake() is None


# -- going on --------------------------------------------------------------------------------------------------


def test_a_restored_plan_reads_what_the_first_one_would_have_read() -> None:
    record, hand = Record(WIDE), Hand(WIDE)
    record.admit(hand.plan, hand.deltas[0])
    record.append(hand.finish("a", [{"x": 1}, "two", 3]))
    plan = record.resume()
    mine = {a.id: (a.seq, a.node, a.input.value, a.sources, a.path, a.depth) for a in hand.plan.activations.values()}
    restored = {a.id: (a.seq, a.node, a.input.value, a.sources, a.path, a.depth) for a in plan.activations.values()}
    assert restored == mine
    assert all(a.born == 0 for a in plan.activations.values()), "all of it is durable"


def test_a_restored_plan_goes_on_counting_where_the_first_one_was() -> None:
    record, hand = Record(CHAIN), Hand(CHAIN)
    record.admit(hand.plan, hand.deltas[0])
    record.append(hand.finish("a", 1))
    plan = record.resume()
    delta = plan.finish(min(plan.activations), output(2), ended_at=0.0, duration_ms=0.0)
    same = hand.finish("b", 2)
    assert (delta.step, delta.marks, delta.counts) == (same.step, same.marks, same.counts)
    assert delta.number == 1, "numbers begin anew: they count what this process handed over"


def test_waking_ends_a_trace_that_has_nothing_left_to_run() -> None:
    record, hand = Record(CHAIN), Hand(CHAIN)
    record.admit(hand.plan, hand.deltas[0])
    for node in "abc":
        record.append(hand.finish(node, node))
    plan = record.resume()
    woken = plan.wake()
    assert woken is not None
    assert woken.status == "completed"
    assert plan.outcome() == "c"


def test_waking_fires_a_join_that_a_changed_graph_has_set_free() -> None:
    record, hand = Record(DIAMOND), Hand(DIAMOND)
    record.admit(hand.plan, hand.deltas[0])
    record.append(hand.finish("a"))
    record.append(hand.finish("b", 1))
    # The other branch, to which the join owed its waiting, has ended elsewhere: here its activation is gone.
    plan = record.resume()
    (c,) = (a for a in plan.activations.values() if a.node == "c")
    del plan.activations[c.seq]
    plan.active["c"] -= 1
    woken = plan.wake()
    assert woken is not None
    assert [a.node for a in plan.activations.values()] == ["d"]
