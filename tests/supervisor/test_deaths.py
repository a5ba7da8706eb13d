"""Why workers die, and who is to blame."""

from __future__ import annotations

import signal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.core.deaths import Death, decode_deaths, encode_deaths
from tinyllm.supervisor.deaths import ACCIDENTS, KEPT, LIMIT, blame, cause_of, remember, verdict

deaths = st.builds(
    Death,
    at=st.floats(0, 2e9),
    cause=st.text(max_size=20),
    within=st.booleans(),
    pid=st.integers(1, 2**22),
    beside=st.integers(0, 100),
    step=st.integers(0, 3),
)
"""Few steps, so that some deaths are at the same place."""


def death(*, within: bool = False, step: int = 1, beside: int = 0) -> Death:
    return Death(at=1e9, cause="it exited with code 1", within=within, pid=7, beside=beside, step=step)


@pytest.mark.parametrize("code", [0, 1, 255])
def test_a_process_that_exits_did_that_itself(code: int) -> None:
    assert cause_of(code, out_of_memory=False).within


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_comes_from_within(number: int) -> None:
    cause = cause_of(-number, out_of_memory=False)
    assert cause.within
    assert signal.Signals(number).name in cause.text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, 63])
def test_a_kill_comes_from_outside(number: int) -> None:
    assert not cause_of(-number, out_of_memory=False).within


def test_a_kill_for_want_of_memory_comes_from_within() -> None:
    assert cause_of(-signal.SIGKILL, out_of_memory=True).within
    assert not cause_of(-signal.SIGTERM, out_of_memory=True).within


def test_a_trace_is_quarantined_at_the_third_death_from_within_and_the_evidence_is_named() -> None:
    seen = [death(within=True, beside=4)]
    assert blame(seen) == 1
    seen = [*seen, death(within=True)]
    assert verdict(seen) is None
    seen = [*seen, death(within=True)]
    said = verdict(seen)
    assert said is not None
    assert said.startswith("3 workers died while they executed it")
    assert "beside 4 others" in said
    assert said.count("alone") == 2


def test_accidents_do_not_count_while_the_trace_gets_further() -> None:
    assert blame([death(step=step) for step in range(KEPT)]) == 0


def test_many_deaths_at_the_same_place_are_no_accidents() -> None:
    counted = [blame([death()] * count) for count in range(8)]
    assert counted == [0, 0, 0, 1, 2, 3, 4, 5]
    assert counted.index(1) == ACCIDENTS + 1


@given(st.lists(deaths, max_size=20))
def test_one_more_death_never_makes_it_better_at_the_same_place(seen: list[Death]) -> None:
    if seen:
        again = [*seen, seen[-1]]
        assert blame(again) >= blame(seen)
    assert blame(seen) >= sum(each.within for each in seen)
    assert (verdict(seen) is None) == (blame(seen) < LIMIT)


@given(st.lists(deaths, max_size=20))
def test_deaths_are_kept_as_they_were(seen: list[Death]) -> None:
    assert decode_deaths(encode_deaths(seen)) == tuple(seen)


@pytest.mark.parametrize("body", [None, b"", b"{}", b"[1]", b'[{"at":"now"}]', b"\xff"])
def test_what_is_no_evidence_blames_nobody(body: bytes | None) -> None:
    assert decode_deaths(body) == ()


def test_the_newest_deaths_are_remembered() -> None:
    seen: tuple[Death, ...] = ()
    for step in range(KEPT + 5):
        seen = remember(seen, death(step=step))
    assert len(seen) == KEPT
    assert seen[-1].step == KEPT + 4
    assert all(later.step == earlier.step + 1 for earlier, later in pairwise(seen))
