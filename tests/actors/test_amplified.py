"""A variable that is written over and over is reported once, with the remedy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.actors.graphs import Hand, shape
from tinyllm.actors.amplified import NOTICEABLE, TIMES, WriteCounter

LOOP = shape("a -> a if structured < 100", entry="a", exits=["a"], variables={"log": "append"})


@given(st.lists(st.integers(1, 4 * NOTICEABLE), max_size=60))
def test_it_is_told_once_and_only_when_more_was_written_than_ten_times_the_value(sizes: list[int]) -> None:
    counter, written, told = WriteCounter(), 0, 0
    for size in sizes:
        written += size if size >= NOTICEABLE else 0
        due = counter.wrote("key", size)
        if due is not None:
            told += 1
            assert due == written > TIMES * size
    assert told <= 1


def test_a_plan_notes_a_big_value_that_is_written_again_and_again() -> None:
    hand = Hand(LOOP, 0)
    for number in range(30):
        hand.finish("a", number, set={"big": "x" * NOTICEABLE, "small": number, "log": "x" * NOTICEABLE})
    size = NOTICEABLE + 2
    assert hand.plan.amplified == [("big", 11 * size, size)]
