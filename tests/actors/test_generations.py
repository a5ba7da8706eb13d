"""Generations, tasks that are told later, limits and the history policy: as the pure plan has them."""

from __future__ import annotations

import attrs

from tests.actors.graphs import Hand, Record, output, shape
from tinyllm.graph.definition import Limits
from tinyllm.graph.payload import Captured

CHAIN = shape("a -> b", variables={"log": "append"})
LOOP = shape("a -> b if structured < 3", "b -> a", exits=["a"], entry="a")


def completed(record: Record | None = None) -> Hand:
    hand = Hand(CHAIN, "first")
    if record:
        record.admit(hand.plan, hand.deltas[0])
    for delta in (hand.finish("a", 1, set={"log": "x"}), hand.finish("b", 2)):
        if record:
            record.append(delta)
    return hand


def test_a_completed_trace_runs_again_from_its_entries_with_what_it_has_gathered() -> None:
    hand = completed()
    delta = hand.plan.begin_again(Captured(b'"second"'), "d2")
    assert (delta.status, delta.generation, delta.generation_step, delta.task) == ("running", 2, 2, "d2")
    assert [a.input.value for a in hand.live("a")] == ["second"]
    assert hand.variables() == {"log": ["x"]}
    hand.finish("a", 3, set={"log": "y"})
    assert hand.finish("b", 4).status == "completed"
    assert (hand.exits(), hand.variables(), hand.plan.step) == ([4], {"log": ["x", "y"]}, 4)


def test_a_generation_goes_on_after_a_crash() -> None:
    record = Record(CHAIN)
    hand = completed(record)
    record.append(hand.plan.begin_again(Captured(b'"second"'), "d2"))
    record.append(hand.finish("a", 3))
    plan = record.resume()
    assert (plan.generation, plan.generation_step) == (2, 2)
    (activation,) = plan.activations.values()
    assert activation.id == hand.live("b")[0].id
    plan.finish(activation.seq, output(4), ended_at=0.0, duration_ms=0.0)
    assert (plan.status, plan.outcome()) == ("completed", 4)


def test_a_trace_that_goes_on_is_told_another_task_which_starts_nothing() -> None:
    hand = Hand(CHAIN, "first")
    delta = hand.plan.hear(Captured(b'"more"'), "d2")
    assert [(row.node, row.body, row.consumers) for row in delta.messages] == [("", b'"more"', 0)]
    assert (delta.task, delta.activations) == ("d2", ())


def test_the_step_limit_lets_what_runs_end_and_keeps_the_frontier() -> None:
    hand = Hand(attrs.evolve(LOOP, limits=Limits(max_steps=2)), 0)
    assert hand.finish("a", 0).status == "running"
    assert hand.plan.error is None
    hand.finish("b", 1)
    assert hand.plan.error is not None
    assert hand.plan.error.type == "LimitReached"
    assert "limits.max_steps of 2 is reached" in hand.plan.error.message
    assert hand.waiting() == {"a": 1}
    assert hand.plan.close("failed").status == "failed"


def test_a_raised_limit_lets_it_go_on_and_an_unchanged_one_does_not() -> None:
    limited = attrs.evolve(LOOP, limits=Limits(max_steps=2))
    record, hand = Record(limited), Hand(limited, 0)
    record.admit(hand.plan, hand.deltas[0])
    record.append(hand.finish("a", 0))
    record.append(hand.finish("b", 1))
    record.append(hand.plan.close("failed"))
    again = record.resume()
    assert again.wake() is not None
    assert again.error is not None
    record.graph = attrs.evolve(LOOP, limits=Limits(max_steps=20))
    raised = record.resume()
    assert raised.wake() is None
    assert raised.error is None


def test_a_trace_that_ends_at_its_limit_is_complete() -> None:
    hand = Hand(attrs.evolve(CHAIN, limits=Limits(max_steps=2)))
    hand.finish("a", 1)
    assert hand.finish("b", 2).status == "completed"


def test_the_step_limit_counts_within_a_generation() -> None:
    hand = Hand(attrs.evolve(CHAIN, limits=Limits(max_steps=2)))
    for _ in range(3):
        hand.finish("a", 1)
        assert hand.finish("b", 2).status == "completed"
        hand.plan.begin_again(Captured(b"1"), "d")


def test_without_a_history_messages_live_only_as_long_as_something_reads_them() -> None:
    hand = Hand(attrs.evolve(CHAIN, history=0), "first")
    delta = hand.finish("a", 1)
    assert [row.history for row in (*hand.deltas[0].messages, *delta.messages)] == [False, False]
    assert delta.counts.messages == 0


def test_tokens_and_time_are_counted_over_the_whole_trace() -> None:
    record, hand = Record(CHAIN), Hand(CHAIN)
    record.admit(hand.plan, hand.deltas[0])
    hand.plan.elapsed = 1.5
    (activation,) = hand.live("a")
    counted = attrs.evolve(output(1), tokens=(10, 20), status="partial")
    delta = hand.plan.finish(activation.seq, counted, ended_at=0.0, duration_ms=1.0)
    assert (delta.tokens_in, delta.tokens_out, delta.elapsed) == (10, 20, 1.5)
    assert delta.steps[0].status == "partial"
    record.append(delta)
    plan = record.resume()
    assert (plan.tokens, plan.elapsed) == ((10, 20), 1.5)
