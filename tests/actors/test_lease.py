"""The lease: renewed from a thread, removed at the end, and not trusted near its end."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import pytest

from tests.actors.stores import Noting
from tinyllm import Executor, GraphBuilder
from tinyllm.actors import lease, run
from tinyllm.actors.lease import MARGIN, TTL, LeaseKeeper
from tinyllm.errors import StorageError
from tinyllm.storage.contract import Owner
from tinyllm.storage.owners import this_process

pytestmark = pytest.mark.anyio


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(lease, "boottime", made)
    return made


class Renewing(Noting):
    """Notes renewals, and says when one more than the first was made."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals = 0
        self.again = threading.Event()
        self.broken: list[Any] = []

    def renew(self, owner: Owner) -> None:
        self.renewals += 1
        if self.broken and self.broken.pop():
            raise StorageError("no")
        super().renew(owner)
        if self.renewals > 1:
            self.again.set()


async def test_near_its_end_a_lease_is_too_short_to_start_anything(clock: Clock) -> None:
    keeper = LeaseKeeper(Renewing(), this_process())
    assert not keeper.may_start(), "it is not held yet"
    async with keeper.held():
        assert keeper.may_start()
        clock.now += TTL - MARGIN - 0.1
        assert keeper.may_start()
        clock.now += 0.2
        assert not keeper.may_start()


async def test_a_renewal_makes_it_long_enough_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.02)
    store = Renewing()
    keeper = LeaseKeeper(store, this_process())
    async with keeper.held():
        clock.now += TTL
        assert store.again.wait(10)
        store.again.clear()
        assert store.again.wait(10), "the one before may have read the clock before it moved"
        assert keeper.may_start()


async def test_a_renewal_that_fails_is_tried_again_soon(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.02)
    monkeypatch.setattr(lease, "RETRY_EVERY", 0.01)
    store = Renewing()
    with caplog.at_level(logging.WARNING):
        async with LeaseKeeper(store, this_process()).held():
            store.broken = [True, True]
            store.again.clear()
            assert store.again.wait(10)
    assert caplog.text.count("could not be renewed: no") == 1, "once is enough to say so"
    assert "is renewed again" in caplog.text


async def test_a_lease_that_cannot_be_written_is_not_held() -> None:
    store = Renewing()
    store.broken = [True]
    with pytest.raises(StorageError):
        async with LeaseKeeper(store, this_process()).held():
            pytest.fail("it was held")


async def test_at_the_end_it_is_removed_and_its_thread_is_gone() -> None:
    store, owner = Renewing(), this_process()
    async with LeaseKeeper(store, owner).held():
        assert f"lease {owner.id}" in [thread.name for thread in threading.enumerate()]
        assert store.retired == []
    assert store.retired == [owner]
    assert f"lease {owner.id}" not in [thread.name for thread in threading.enumerate()]


async def test_a_lease_that_cannot_be_removed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Keeping(Noting):
        def retire(self, owner: Owner) -> None:
            raise StorageError("no")

    with caplog.at_level(logging.WARNING):
        async with LeaseKeeper(Keeping(), this_process()).held():
            pass
    assert "could not be removed: no" in caplog.text


async def test_an_owner_that_slept_longer_than_its_lease_goes_on_once_it_is_renewed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine was suspended: this clock went on, and the loop's did not. Nobody has taken the trace over."""
    monkeypatch.setattr(run, "LEASE_POLL_SECONDS", 0.01)
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.05)
    store, renewals = Renewing(), list[int]()

    async def sleeps(value: Any) -> Any:
        store.again.clear()
        renewals.append(store.renewals)
        clock.now += 2 * TTL
        return value

    async def second(value: Any) -> Any:
        renewals.append(store.renewals)
        return value

    async with Executor(GraphBuilder("g").chain(sleeps, second).build(), checkpoint_storage=store) as executor:
        with anyio.fail_after(10):
            assert (await executor.execute("task", trace_id="t")).value == "task"
    assert renewals[1] > renewals[0], "nothing starts with a lease that has ended"
