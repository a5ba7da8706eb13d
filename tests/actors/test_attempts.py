"""Failed attempts: when another follows, what a budget is, and where a failure goes that is handled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actors.graphs import Hand, Record, shape
from tinyllm.actors.attempts import wait_before_retry
from tinyllm.graph.definition import Graph, Retry
from tinyllm.graph.messages import ErrorInfo

TIMEOUT = ErrorInfo(type="TimeoutError", message="slow", node_id="a")

retries = st.builds(
    Retry,
    max_attempts=st.integers(1, 50),
    initial=st.floats(0, 100),
    factor=st.floats(1, 1e6),
    max=st.floats(0, 1000),
    jitter=st.floats(0, 1),
)


@given(retries, st.integers(1, 60), st.binary(min_size=16, max_size=16))
def test_a_wait_is_never_longer_than_the_cap_nor_shortened_by_more_than_the_jitter(
    retry: Retry, tries: int, activation: bytes
) -> None:
    wait = wait_before_retry(retry, tries, (), activation)
    if tries >= retry.max_attempts:
        assert wait is None
        return
    assert wait is not None
    whole = retry.initial
    for _ in range(tries - 1):
        whole = min(whole * retry.factor, retry.max)
    whole = min(whole, retry.max)
    assert whole * (1 - retry.jitter) - 1e-9 <= wait <= whole + 1e-9
    assert wait == wait_before_retry(retry, tries, (), activation), "it is the same in every process"


def test_what_failed_together_does_not_come_back_together() -> None:
    retry = Retry(max_attempts=2)
    waits = {wait_before_retry(retry, 1, (), bytes([number]) * 16) for number in range(64)}
    assert len(waits) == 64


def test_only_the_errors_that_are_named_are_tried_again() -> None:
    retry = Retry(max_attempts=3, on=("ConnectionError", "TimeoutError"))
    assert wait_before_retry(retry, 1, ("ConnectionResetError", "ConnectionError", "OSError"), b"a" * 16) is not None
    assert wait_before_retry(retry, 1, ("ValueError", "Exception"), b"a" * 16) is None


@pytest.mark.parametrize("name", ["HTTPError", "httpx.HTTPError", "http.client.HTTPError"])
def test_an_error_may_be_named_with_its_module(name: str) -> None:
    retry = Retry(max_attempts=3, on=(name,))
    assert wait_before_retry(retry, 1, ("ReadTimeout", "HTTPError", "Exception"), b"a" * 16) is not None
    assert wait_before_retry(retry, 1, ("InvalidURL", "Exception"), b"a" * 16) is None


def retried(attempts: int = 3, **node: object) -> Graph:
    return shape("a -> b", a={"retry": Retry(max_attempts=attempts, jitter=0.0), **node})


def test_a_failed_attempt_stays_planned_until_it_is_due() -> None:
    hand = Hand(retried())
    delta = hand.fail("a", TIMEOUT, at=100.0)
    (change,) = delta.changed
    assert (change.state, change.attempts, change.tries, change.due) == ("planned", 1, 1, 101.0)
    assert change.error is not None
    assert b"slow" in change.error
    assert hand.plan.error is None
    assert delta.status == "running"
    assert hand.fail("a", TIMEOUT, at=200.0).changed[0].due == 202.0, "twice as long"
    assert hand.fail("a", TIMEOUT, at=300.0).changed[0].state == "failed"
    assert hand.plan.error == TIMEOUT


def test_the_step_says_how_many_attempts_it_took() -> None:
    hand = Hand(retried())
    hand.fail("a")
    (step,) = hand.finish("a", 1).steps
    assert step.attempts == 2


def test_a_crash_keeps_the_budget_and_the_due_time() -> None:
    record, hand = Record(retried()), Hand(retried())
    record.admit(hand.plan, hand.deltas[0])
    record.append(hand.fail("a", TIMEOUT, at=100.0))
    plan = record.resume(retry=False)
    (activation,) = plan.activations.values()
    assert (activation.attempts, activation.tries, activation.due) == (1, 1, 101.0)


def failed_for_good() -> Record:
    record, hand = Record(retried(1)), Hand(retried(1))
    record.admit(hand.plan, hand.deltas[0])
    record.append(hand.fail("a", TIMEOUT))
    return record


def test_what_has_failed_for_good_has_still_failed_after_a_crash() -> None:
    plan = failed_for_good().resume(retry=False)
    assert not plan.activations
    assert plan.error == TIMEOUT
    assert [a.attempts for a in plan.stuck.values()] == [1]


def test_an_explicit_resume_grants_a_new_budget_and_goes_on_counting_attempts() -> None:
    plan = failed_for_good().resume(retry=True)
    (activation,) = plan.activations.values()
    assert (activation.attempts, activation.tries, activation.due, plan.error) == (1, 0, None, None)


def test_a_failure_goes_to_the_node_that_handles_it() -> None:
    graph = shape("a -> b", "mend -> b", a={"on_error": "mend"})
    hand = Hand(graph, {"n": 1})
    delta = hand.fail("a", TIMEOUT)
    assert (hand.plan.error, delta.status) == (None, "running")
    assert [(step.node, step.status, step.attempts) for step in delta.steps] == [("a", "failed", 1)]
    (mend,) = hand.live("mend")
    assert mend.input.value == {"n": 1}, "what the failed one was given"
    assert mend.input.payload.error == TIMEOUT
    hand.finish("mend", 2)
    assert hand.finish("b", 3).status == "completed"


def test_a_failure_is_handled_only_after_the_last_attempt() -> None:
    graph = shape("a -> b", "mend -> b", a={"on_error": "mend", "retry": Retry(max_attempts=2)})
    hand = Hand(graph)
    assert hand.fail("a").changed[0].state == "planned"
    assert not hand.live("mend")
    hand.fail("a")
    assert hand.live("mend")


def test_a_join_waits_for_what_handles_a_failure() -> None:
    graph = shape("a -> b", "a -> c", "b -> d", "c -> d", "mend -> d", joins=["d"], b={"on_error": "mend"})
    hand = Hand(graph)
    hand.finish("a", 1)
    hand.finish("c", 2)
    hand.fail("b")
    assert not hand.live("d")
    hand.finish("mend", 3)
    assert [part.value for part in hand.live("d")[0].input.parts or ()] == [2, 3]


@pytest.mark.parametrize("order", [["b", "c"], ["c", "b"]])
def test_a_join_does_not_fire_while_one_before_it_waits_to_be_tried_again(order: list[str]) -> None:
    retry = {"retry": Retry(max_attempts=2)}
    hand = Hand(shape("a -> b", "a -> c", "b -> d", "c -> d", joins=["d"], b=retry, c=retry))
    hand.finish("a", 1)
    hand.fail(order[0])
    hand.finish(order[1], 1)
    assert not hand.live("d")
    hand.finish(order[0], 2)
    assert hand.live("d")
