"""When a worker that died is replaced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tinyllm.supervisor.restarts import DEATHS, LONGEST_SECONDS, SHORT_SECONDS, WITHIN_SECONDS, Backoff, Intensity


def test_each_short_life_doubles_the_wait_and_a_long_one_forgets_it() -> None:
    backoff = Backoff()
    assert [backoff.after(0.0) for _ in range(5)] == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert backoff.after(SHORT_SECONDS) == 0.0
    assert backoff.after(0.0) == 0.1


@given(st.lists(st.floats(0, 100), max_size=100))
def test_the_wait_is_bounded(lives: list[float]) -> None:
    backoff = Backoff()
    assert all(0 <= backoff.after(lived) <= LONGEST_SECONDS for lived in lives)


def test_a_supervisor_gives_up_after_so_many_deaths_in_so_long_a_time() -> None:
    intensity = Intensity()
    assert [intensity.exceeded(float(second)) for second in range(DEATHS)] == [False] * (DEATHS - 1) + [True]


def test_deaths_far_apart_are_forgotten() -> None:
    intensity = Intensity()
    apart = WITHIN_SECONDS / (DEATHS - 2)
    assert not any(intensity.exceeded(number * apart) for number in range(100))
