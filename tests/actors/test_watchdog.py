"""The watchdog names the node that blocks the loop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tests.actors.stores import finished
from tests.actors.test_lease import Renewing
from tinyllm import Executor, ExecutorConfig, GraphBuilder
from tinyllm.actors import lease, watchdog
from tinyllm.actors.events import Committed, Event
from tinyllm.actors.watchdog import Watchdog

pytestmark = pytest.mark.anyio


class Heard(logging.Handler):
    """Counts warnings from any thread."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.first, self.second = threading.Event(), threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        (self.second if self.first.is_set() else self.first).set()


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    monkeypatch.setattr(watchdog, "PING_SECONDS", 0.01)
    monkeypatch.setattr(watchdog, "BLOCKED_SECONDS", 0.05)
    handler = Heard()
    watchdog.logger.addHandler(handler)
    monkeypatch.setattr(watchdog.logger, "propagate", False)
    yield handler
    watchdog.logger.removeHandler(handler)


def a_node_that_blocks(heard: Heard) -> None:
    assert heard.first.wait(10)


async def test_it_logs_the_stack_of_a_blocked_loop_once_and_when_it_is_free_again(heard: Heard) -> None:
    watch = Watchdog()
    async with watch.watching():
        watch.wake()
        a_node_that_blocks(heard)
        await anyio.to_thread.run_sync(heard.second.wait, 10)
    blocked, free = heard.texts[:2]
    assert "the event loop is blocked" in blocked
    assert "a_node_that_blocks" in blocked
    assert "process: true" in blocked
    assert "was blocked for" in free


async def test_a_loop_that_turns_is_not_reported_and_the_thread_ends(heard: Heard) -> None:
    watch = Watchdog()
    async with watch.watching():
        watch.wake()
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "tinyllm watchdog")
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
    await anyio.to_thread.run_sync(thread.join, 10)
    assert not thread.is_alive()
    assert heard.texts == []


async def test_it_rests_while_nothing_is_executed_and_its_thread_ends(heard: Heard) -> None:
    pings = list[None]()
    watch = Watchdog()

    class Counted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pings.append(None)
            return super().wait(timeout)

    watch._over = Counted()
    async with watch.watching():
        (thread,) = (thread for thread in threading.enumerate() if thread.name == "tinyllm watchdog")
        await anyio.to_thread.run_sync(thread.join, 0.1)
        assert not pings
        watch.wake()
        with anyio.fail_after(10):
            while len(pings) < 3:
                await anyio.sleep(0.01)
        watch.rest()
    await anyio.to_thread.run_sync(thread.join, 10)
    assert not thread.is_alive()


async def test_the_watchdog_of_an_executor_watches_while_that_executes(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    monkeypatch.setattr(Watchdog, "wake", lambda _: told.append("wake"))
    monkeypatch.setattr(Watchdog, "rest", lambda _: told.append("rest"))

    async def node(value: str) -> str:
        told.append(value)
        return value

    async with Executor(GraphBuilder("g").chain(node).build()) as executor:
        await executor.execute("one")
        await executor.execute("two")
    assert told == ["wake", "one", "rest", "wake", "two", "rest"]


async def test_a_blocked_loop_keeps_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is renewed from a thread, and that is what the node waits for."""
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.01)
    store, renewed, told = Renewing(), list[bool](), list[Event]()

    async def first(value: Any) -> Any:
        return value

    async def blocks(value: Any) -> Any:
        renewed.append(store.again.wait(10))
        return value

    graph = GraphBuilder("g").chain(first, blocks).build()
    async with Executor(graph, ExecutorConfig(debug_mutation=True), store, on_event=told.append) as executor:
        response = await executor.execute("task", trace_id="t")
    assert (renewed, response.value) == ([True], "task")
    assert max(event.step for event in told if isinstance(event, Committed)) == 2
    assert await finished(store, "t") == ["first", "blocks"]
