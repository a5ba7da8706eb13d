"""Which owners are dead, as far as others can tell."""

from __future__ import annotations

import attrs
import pytest

from tinyllm.actors.lease import TTL
from tinyllm.storage.contract import Lease
from tinyllm.supervisor.absent import PARENT_SECONDS, Absent


def lease(alive: bool | None, beat: int = 1) -> Lease:
    return Lease("a", None, beat, alive)


def test_one_that_is_dead_is_left_to_its_parent_for_a_moment() -> None:
    absent = Absent()
    assert absent.dead([lease(False)], (), 0.0) == []
    assert absent.dead([lease(False)], (), PARENT_SECONDS - 0.1) == []
    assert absent.dead([lease(False)], (), PARENT_SECONDS) == [lease(False)]


@pytest.mark.parametrize("alive", [True, None])
def test_one_that_is_stopped_or_cannot_be_seen_is_dead_when_its_lease_is_not_renewed_for_as_long_as_one_lasts(
    alive: bool | None,
) -> None:
    absent = Absent()
    for second in range(100):
        assert absent.dead([lease(alive, beat=second // 10)], (), float(second)) == []
    assert absent.dead([lease(alive, beat=9)], (), 90 + TTL - 0.1) == []
    assert absent.dead([lease(alive, beat=9)], (), 90 + TTL) == [lease(alive, beat=9)]


@pytest.mark.parametrize("alive", [True, False, None])
def test_ours_are_not(alive: bool | None) -> None:
    absent = Absent()
    for now in (0.0, 100.0, 1000.0):
        assert absent.dead([lease(alive)], ("a",), now) == []


def test_one_that_lives_and_renews_its_lease_is_not() -> None:
    absent = Absent()
    assert not any(absent.dead([lease(True, beat)], (), beat * (TTL - 1)) for beat in range(100))


def test_one_that_lived_since_begins_anew() -> None:
    absent = Absent()
    absent.dead([lease(False)], (), 0.0)
    absent.dead([lease(True)], (), 1.0)
    assert absent.dead([lease(False)], (), 2.0) == []


def test_what_is_no_more_is_forgotten() -> None:
    absent = Absent()
    absent.dead([lease(False)], (), 0.0)
    absent.dead([], (), 1.0)
    assert not attrs.asdict(absent)["_seen"]
