"""What a worker does with what it claimed, where that cannot be executed just then."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import attrs
import pytest

from tests.supervisor.work import write_graph
from tinyllm import (
    DatabaseLocked,
    Executor,
    GraphChanged,
    SQLiteCheckpointStorage,
    TinyLLMError,
    TraceOwned,
    load_graph,
    submit,
)
from tinyllm.storage.contract import Claim, Claimed, Disown, Held, Wanted
from tinyllm.supervisor import worker as module
from tinyllm.supervisor.channel import Channel
from tinyllm.supervisor.messages import Assignment, Beat, Freed, Refused, ToSupervisor
from tinyllm.supervisor.worker import Worker

pytestmark = pytest.mark.anyio


@attrs.define
class Told:
    """Stands in for the channel."""

    messages: list[ToSupervisor] = attrs.field(factory=list)

    def tell(self, message: ToSupervisor) -> None:
        if not isinstance(message, Beat):
            self.messages.append(message)


class Desk:
    """A worker that has begun, as far as it is needed here, and a trace that it claimed."""

    def __init__(self, storage: SQLiteCheckpointStorage, executor: Executor, *, apart: bool = False) -> None:
        self.storage = storage
        self.told = Told()
        given = Assignment(
            graphs=(),
            path=(),
            storage="",
            concurrency=4,
            limits={},
            apart=apart,
            grace=1.0,
            hang_seconds=30.0,
            accept_graph_change=False,
            settings={},
            log_level=0,
        )
        self.worker = Worker(given, cast("Channel", self.told))
        self.worker._storage = storage
        self.worker._executors["chain"] = executor

    async def claimed(self) -> Held:
        (outcome,) = await self.storage.commit([Claim((Wanted("chain", self.owner),), 1)])
        assert isinstance(outcome, Claimed)
        (held,) = outcome.traces
        return held

    @property
    def owner(self) -> str:
        owner = self.worker._executors["chain"].owner_id
        assert owner is not None
        return owner

    async def status(self) -> str:
        record = await self.storage.trace("t")
        assert record is not None
        return record.status


@pytest.fixture
async def desk(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Desk]:
    async with _desk(tmp_path) as desk:
        yield desk


@asynccontextmanager
async def _desk(folder: Path, *, apart: bool = False) -> AsyncIterator[Desk]:
    storage = SQLiteCheckpointStorage(folder / "store")
    await storage.initialize()
    graph = load_graph(write_graph(folder / "graph", nodes=3))
    desks: list[Desk] = []
    try:
        observe = lambda event: desks[0].worker._observe(event)  # noqa: E731 - the desk is made with the executor
        async with Executor(graph, checkpoint_storage=storage, on_event=observe) as executor:
            await submit(graph, '{"seconds": 0.1}' if apart else "{}", storage, trace_id="t")
            desks.append(Desk(storage, executor, apart=apart))
            yield desks[0]
    finally:
        await storage.close()


def fails_once(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, error: Exception) -> None:
    """The first call of that method raises `error`."""
    real = getattr(target, name)
    left = [error]

    async def method(*args: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return await real(*args, **options)

    monkeypatch.setattr(target, name, method)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (GraphChanged("t", ("node a is gone",)), module.REFUSED_SECONDS),
        (TraceOwned("t", "here", 1, "now"), module.AGAIN_SECONDS),
        (ValueError("a fault of ours"), module.REFUSED_SECONDS),
    ],
)
async def test_what_cannot_be_executed_is_given_back_and_left_alone_for_a_while(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, error: Exception, seconds: float
) -> None:
    held = await desk.claimed()
    fails_once(monkeypatch, Executor, "adopt", error)
    before = time.time()
    await desk.worker._adopt(held)
    due = await desk.storage.next_due(["chain"])
    assert due is not None
    assert before + seconds <= due <= time.time() + seconds
    refused = [message.trace_id for message in desk.told.messages if isinstance(message, Refused)]
    assert refused == ([] if isinstance(error, TraceOwned) else ["t"])


async def test_what_waits_for_the_store_is_tried_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    held = await desk.claimed()
    fails_once(monkeypatch, Executor, "adopt", DatabaseLocked("store", 10.0))
    await desk.worker._adopt(held)
    assert await desk.status() == "completed"


async def test_what_was_claimed_just_before_it_is_told_to_stop_is_given_back_at_once(desk: Desk) -> None:
    held = await desk.claimed()
    desk.worker.stop()
    await desk.worker._adopt(held)
    assert await desk.storage.next_due(["chain"]) == 0
    assert await desk.status() == "queued"


async def test_what_a_claim_got_that_failed_is_executed_all_the_same(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may say that a commit failed which is there."""
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.0)
    real = desk.storage.commit

    async def commit(writes: Any) -> Any:
        outcomes = await real(writes)
        if isinstance(writes[0], Claim):
            monkeypatch.undo()
            raise DatabaseLocked("store", 10.0)
        return outcomes

    monkeypatch.setattr(desk.storage, "commit", commit)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            desk.worker._tasks = tasks
            tasks.start_soon(desk.worker._work)
            while await desk.status() != "completed":
                await anyio.sleep(0.01)
            desk.worker.stop()


@pytest.mark.parametrize("error", [DatabaseLocked("store", 10.0), TinyLLMError("of any kind")])
async def test_one_that_is_executed_apart_is_so_although_it_could_not_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with _desk(tmp_path, apart=True) as desk:
        held = await desk.claimed()
        fails_once(monkeypatch, desk.storage, "load", error)
        await desk.worker._adopt_apart(held)
        assert await desk.status() == "completed"


async def test_one_that_has_got_past_what_was_to_run_is_acquitted_and_then_given_back(tmp_path: Path) -> None:
    async with _desk(tmp_path, apart=True) as desk:
        held = await desk.claimed()
        disown = Disown(held.trace, "t", held.epoch, desk.owner, b"[]", apart=True)
        await desk.storage.commit([disown])
        (outcome,) = await desk.storage.commit([Claim((Wanted("chain", desk.owner),), 1, apart=True)])
        assert isinstance(outcome, Claimed)
        await desk.worker._adopt_apart(outcome.traces[0])
        record = await desk.storage.trace("t")
        assert record is not None
        assert (record.apart, record.deaths, record.status) == (False, None, "interrupted")
        assert await desk.storage.next_due(["chain"]) == 0
        assert desk.told.messages == [Freed("t")]
