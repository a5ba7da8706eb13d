"""Floor: W1 on the bare four actors of tinyllm's design, without all that makes it useful.

A Run starts a node, a NodeExecutor runs it and captures its result as bytes, the Run plans the next and hands a delta
over, a CheckpointScheduler passes it on, a StorageWriter commits what has come. The mailboxes are bounded, at most 64
deltas are unacknowledged, and it ends when all is durable. No joins, conditions, retries, pauses, leases or pruning.

Modes: `none`, `async`, `sync`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import anyio
import attrs
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from deltas import Delta, Store

from common import Case, Clock, Figures, disk_bytes, main
from with_tinyllm import LOOPS

CREDIT = 64
BATCH = 128
MAILBOX = 256


# -- messages --------------------------------------------------------------------------------------------------


@attrs.frozen
class RunNode:
    activation: int
    body: bytes


@attrs.frozen
class NodeFinished:
    activation: int
    body: bytes


@attrs.frozen
class Stepped:
    delta: Delta


@attrs.frozen
class Write:
    delta: Delta


@attrs.frozen
class Committed:
    step: int


async def post(mailbox: MemoryObjectSendStream[Any], message: Any) -> None:
    """Send; wait only if the mailbox is full."""
    try:
        mailbox.send_nowait(message)
    except anyio.WouldBlock:
        await mailbox.send(message)


# -- actors ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Run:
    length: int
    sync: bool
    inbox: MemoryObjectReceiveStream[NodeFinished | Committed]
    node: MemoryObjectSendStream[RunNode]
    journal: MemoryObjectSendStream[Stepped] | None

    async def run(self, task: bytes) -> None:
        step = durable = 0
        waiting: RunNode | None = RunNode(1, task)
        with self.inbox:
            while step < self.length or durable < step:
                if waiting and (durable == step if self.sync else step - durable < CREDIT):
                    await post(self.node, waiting)
                    waiting = None
                match await self.inbox.receive():
                    case NodeFinished(activation, body):
                        step += 1
                        if step < self.length:
                            waiting = RunNode(activation + 1, body)
                        if self.journal is None:
                            durable = step
                        else:
                            await post(self.journal, Stepped(Delta(step, "node", activation, activation + 1, body)))
                    case Committed(upto):
                        durable = upto
        self.node.close()
        if self.journal is not None:
            self.journal.close()


@attrs.frozen
class NodeExecutor:
    function: Callable[[Any], Awaitable[Any]]
    inbox: MemoryObjectReceiveStream[RunNode]
    reply: MemoryObjectSendStream[NodeFinished | Committed]

    async def run(self) -> None:
        encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode
        with self.inbox:
            async for message in self.inbox:
                result = await self.function(decode(message.body))
                await post(self.reply, NodeFinished(message.activation, encode(result)))


@attrs.frozen
class CheckpointScheduler:
    """After each node, that is now: what it decides is that nothing waits."""

    inbox: MemoryObjectReceiveStream[Stepped]
    writer: MemoryObjectSendStream[Write]

    async def run(self) -> None:
        with self.inbox, self.writer:
            async for message in self.inbox:
                await post(self.writer, Write(message.delta))


@attrs.frozen
class StorageWriter:
    """What waited during one commit is the next batch."""

    store: Store
    inbox: MemoryObjectReceiveStream[Write]
    reply: MemoryObjectSendStream[NodeFinished | Committed]

    async def run(self) -> None:
        thread = Thread()
        with self.inbox:
            async for first in self.inbox:
                batch = [first.delta]
                with suppress(anyio.WouldBlock, anyio.EndOfStream):
                    while len(batch) < BATCH:
                        batch.append(self.inbox.receive_nowait().delta)
                await thread.call(self.store.append, batch)
                await post(self.reply, Committed(batch[-1].step))
        thread.stop()


class Thread:
    """One thread for all commits: a pool's costs more for each, and gives no order."""

    def __init__(self) -> None:
        self._call_soon = loop_caller()
        self._queue: SimpleQueue[tuple[Callable[[Sequence[Delta]], None], Sequence[Delta], anyio.Event] | None]
        self._queue = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)  # a commit that raises must not hang the end
        self._thread.start()

    async def call(self, function: Callable[[Sequence[Delta]], None], deltas: Sequence[Delta]) -> None:
        done = anyio.Event()
        self._queue.put((function, deltas, done))
        await done.wait()

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            function, deltas, done = job
            function(deltas)
            self._call_soon(done.set)

    def stop(self) -> None:
        self._queue.put(None)
        self._thread.join()


def loop_caller() -> Callable[[Callable[[], object]], object]:
    """How a thread has the running loop call something."""
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_trio_token().run_sync_soon
    import asyncio

    return asyncio.get_running_loop().call_soon_threadsafe


# -- the workload ----------------------------------------------------------------------------------------------


async def step(state: str) -> str:
    return state


async def chain(case: Case) -> Figures:
    case.folder.mkdir()
    reply, inbox = anyio.create_memory_object_stream[NodeFinished | Committed](MAILBOX)
    node, nodes = anyio.create_memory_object_stream[RunNode](MAILBOX)
    journal = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(NodeExecutor(step, nodes, reply).run)
        if case.mode != "none":
            journal, deltas = anyio.create_memory_object_stream[Stepped](MAILBOX)
            writer, writes = anyio.create_memory_object_stream[Write](MAILBOX)
            store = Store(case.folder / "floor.db")
            tasks.start_soon(CheckpointScheduler(deltas, writer).run)
            tasks.start_soon(StorageWriter(store, writes, reply).run)
        with Clock() as clock:
            await Run(case.n, case.mode == "sync", inbox, node, journal).run(msgspec.json.encode("x" * 200))
    if case.mode == "none":
        return {"us_per_node": clock.seconds / case.n * 1e6}
    store.close()
    return {"us_per_node": clock.seconds / case.n * 1e6, "disk_bytes": disk_bytes(case.folder)}


def prototype(case: Case) -> Figures:
    if case.mode not in ("none", "async", "sync"):
        raise SystemExit(f"no mode {case.mode!r}: it has none, async and sync")

    async def both() -> Figures:
        await chain(Case(case.mode, case.loop, 100, case.folder / "warm-up"))
        return await chain(Case(case.mode, case.loop, case.n, case.folder / "measured"))

    return anyio.run(both, **LOOPS[case.loop])


if __name__ == "__main__":
    main(prototype)
