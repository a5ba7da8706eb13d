"""Pauses, answers, saved progress, commands: as the pure plan has them."""

from __future__ import annotations

from tests.actors.graphs import Hand, Record, shape
from tinyllm.actors.plan import Plan
from tinyllm.core.outside import carried_out
from tinyllm.graph.questions import Asked, decode_asked
from tinyllm.storage.contract import Command, CommandKind, Delta

BRANCHES = shape("a -> b", "a -> c", "b -> d", "c -> d", joins=["d"])


def ask(hand: Hand, node: str, name: str = "answer") -> Delta:
    delta = hand.plan.park(hand.live(node)[0].seq, Asked(name, "may I?", {"type": "boolean"}))
    hand.deltas.append(delta)
    return delta


def command(plan: Plan, kind: CommandKind = "answer", body: bytes = b"true", id: int = 1, at: int = 0) -> Command:
    activation, name = None, None
    if kind == "answer":
        activation, name = plan.parked[sorted(plan.parked)[at]].id, plan.questions[at].name
    return Command(id, plan.key, kind, activation, name, body if kind == "answer" else None, 0.0)


def test_a_trace_pauses_when_nothing_else_can_run() -> None:
    hand = Hand(BRANCHES)
    hand.finish("a", 1)
    first = ask(hand, "b")
    assert (first.status, [change.state for change in first.changed]) == ("running", ["paused"])
    assert hand.finish("c", 2).status == "paused"
    (question,) = hand.plan.questions
    assert (question.node_id, question.name, question.prompt, question.schema) == (
        "b",
        "answer",
        "may I?",
        {"type": "boolean"},
    )


def test_a_join_waits_for_what_is_paused() -> None:
    hand = Hand(BRANCHES)
    hand.finish("a", 1)
    ask(hand, "b")
    hand.finish("c", 2)
    assert not hand.live("d")


def test_an_answer_plans_it_again_under_the_same_id_and_consumes_the_command() -> None:
    hand = Hand(BRANCHES)
    hand.finish("a", 1)
    (before,) = hand.live("b")
    ask(hand, "b")
    delta = hand.plan.heed([command(hand.plan, id=7)])
    assert delta.consumed == (7,)
    (after,) = hand.live("b")
    assert (after.id, after.seq, after.attempts) == (before.id, before.seq, 0)
    assert [(a.name, a.answer) for a in after.asked] == [("answer", b"true")]
    assert [(a.name, a.answer) for a in decode_asked(delta.changed[0].asked)] == [("answer", b"true")]


def test_several_questions_are_open_at_once_and_answered_in_any_order() -> None:
    hand = Hand(shape("a => b", "b -> c", joins=["c"]))
    hand.finish("a", [1, 2, 3])
    for _ in range(3):
        ask(hand, "b", "approve")
    assert hand.deltas[-1].status == "paused"
    assert len({question.id for question in hand.plan.questions}) == 3
    hand.plan.status = "running"  # as after a resume
    hand.plan.heed([command(hand.plan, at=1)])
    assert [a.path for a in hand.live("b")] == [(1,)]


def test_a_second_question_of_one_activation_keeps_the_first_answer() -> None:
    hand = Hand(shape("a -> b"))
    ask(hand, "a", "first")
    hand.plan.status = "running"
    hand.plan.heed([command(hand.plan)])
    ask(hand, "a", "second")
    (parked,) = hand.plan.parked.values()
    assert [(a.name, a.answer) for a in parked.asked] == [("first", b"true"), ("second", None)]


def test_an_answer_that_nobody_waits_for_is_consumed_and_that_is_all() -> None:
    hand = Hand(shape("a -> b"))
    stray = Command(9, 0, "answer", b"x" * 16, "answer", b"1", 0.0)
    delta = hand.plan.heed([stray])
    assert (delta.consumed, delta.changed, delta.activations) == ((9,), (), ())


def paused() -> tuple[Record, Hand]:
    record, hand = Record(BRANCHES), Hand(BRANCHES)
    record.admit(hand.plan, hand.deltas[0])
    record.append(hand.finish("a", 1))
    record.append(ask(hand, "b"))
    record.append(hand.finish("c", 2))
    return record, hand


def test_a_restored_plan_has_the_questions_and_waking_it_changes_nothing() -> None:
    record, hand = paused()
    plan = record.resume()
    assert plan.questions == hand.plan.questions
    woken = plan.wake()
    assert woken is not None
    assert (woken.status, woken.activations, woken.changed) == ("paused", (), ())


def test_an_answer_survives_a_crash_before_the_node_has_ended() -> None:
    record, _ = paused()
    plan = record.resume()
    record.append(plan.heed([command(plan)]))
    (activation,) = record.resume().activations.values()
    assert [(a.name, a.answer) for a in activation.asked] == [("answer", b"true")]


def test_without_an_owner_an_answer_makes_the_trace_ready_to_be_resumed() -> None:
    record, hand = paused()
    delta = carried_out(record.load(), [command(hand.plan)])
    assert (delta.status, delta.consumed) == ("running", (1,))
    record.append(delta)
    assert [a.node for a in record.resume().activations.values()] == ["b"]


def test_without_an_owner_a_pause_and_a_cancel_are_carried_out() -> None:
    record, hand = paused()
    both = [command(hand.plan, "pause", id=1), command(hand.plan, "cancel", id=2)]
    assert carried_out(record.load(), both[:1]).status == "paused"
    last = carried_out(record.load(), both)
    assert (last.status, last.consumed) == ("cancelled", (1, 2))


def test_without_an_owner_what_was_paused_stays_so_though_something_could_run() -> None:
    record, hand = paused()
    record.append(carried_out(record.load(), [command(hand.plan, "pause"), command(hand.plan, id=2)]))
    assert carried_out(record.load(), [command(hand.plan, "pause", id=4)]).status == "paused"
    assert carried_out(record.load(), [command(hand.plan, "cancel", id=3)]).status == "cancelled"


def test_progress_is_kept_with_its_activation_through_failures_and_resumes() -> None:
    record, hand = Record(BRANCHES), Hand(BRANCHES)
    record.admit(hand.plan, hand.deltas[0])
    record.append(hand.plan.save_progress(hand.live("a")[0].seq, b'{"page":7}'))
    (activation,) = record.resume().activations.values()
    assert activation.progress == b'{"page":7}'


def test_closing_consumes_the_commands_that_asked_for_it() -> None:
    hand = Hand(BRANCHES)
    delta = hand.plan.close("cancelled", [3, 4])
    assert (delta.status, delta.consumed, delta.error) == ("cancelled", (3, 4), None)
