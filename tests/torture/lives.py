"""Three or four traces in one executor, with all that can happen to them: what is cancelled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import anyio
import anyio.lowlevel
import attrs

from tinyllm import (
    Executor,
    ExecutorConfig,
    Graph,
    GraphBuilder,
    InMemoryCheckpointStorage,
    NodeContext,
    Retry,
    TaskResponse,
)
from tinyllm.actors.events import Committed, Event, NodeStarted
from tinyllm.errors import ExecutionError, TraceEnded
from tinyllm.storage.contract import CheckpointStorage, Outcome, Write
from tinyllm.storage.thread import DedicatedThread

Cancelled = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
"""Makes a call, and cancels it in the middle."""

ITEMS = 2
NODES = {"split": 1, "work": ITEMS, "collect": 1, "charge": 1, "agree": 1, "last": 1}
"""How often each node runs in a trace."""
KEPT = 4
"""Checkpoints of a trace: fewer than there are."""
CONFIGS = {
    "async": ExecutorConfig(debug_mutation=True),
    "sync": ExecutorConfig(durability="sync", max_checkpoints_per_trace=KEPT, debug_mutation=True),
    "interval": ExecutorConfig(
        checkpoint_interval_ms=50,
        checkpoint_after_each_node=False,
        max_checkpoints_per_trace=KEPT,
        debug_mutation=True,
    ),
}


@attrs.frozen
class Way:
    """How it is cancelled. `what`: the `call`s of an executor that lives on, the whole `block` of the executor, or the
    `actor` that gives the loop back. `natively`: by asyncio's own cancellation, which comes through any shield."""

    loop: str
    config: str
    what: str
    natively: bool
    on_disk: bool = False

    def __str__(self) -> str:
        how = "natively" if self.natively else "by its scope"
        return f"{self.loop}, {self.config}, {'SQLite' if self.on_disk else 'memory'}: the {self.what}, {how}"


class Witness:
    """Notes which activations have begun: what the nodes have as `deps`."""

    def __init__(self) -> None:
        self.begun: dict[tuple[str, str], set[str]] = defaultdict(set)
        """By trace and node."""

    def note(self, context: NodeContext) -> None:
        self.begun[context.trace_id, context.node_id].add(context.activation_id)


@cache
def graph() -> Graph:
    async def split(task: Any, context: NodeContext) -> list[int]:
        context.deps.note(context)
        return list(range(ITEMS))

    async def work(item: int, context: NodeContext) -> int:
        context.deps.note(context)
        if item == 0:
            await context.save_progress(item)
        if item == 1 and context.attempt == 1:
            raise ConnectionError
        await anyio.lowlevel.checkpoint()
        return (item + 1) * 10

    async def collect(items: list[int], context: NodeContext) -> int:
        context.deps.note(context)
        context.set_variable("sum", sum(items))
        return sum(items)

    async def charge(total: int, context: NodeContext) -> int:
        context.deps.note(context)
        await anyio.sleep(0.01)
        return total + 1

    async def agree(total: int, context: NodeContext) -> str:
        context.deps.note(context)
        return f"{total} {await context.ask('go on?')}"

    async def last(text: str, context: NodeContext) -> str:
        context.deps.note(context)
        return f"{text} {context.variables['sum']}"

    return (
        GraphBuilder("g")
        .edge(split, work, for_each=True)
        .chain(work, collect, charge, agree, last)
        .node(work, retry=Retry(max_attempts=3, initial=0.01, jitter=0.0))
        .node(collect, join="all")
        .node(charge, effects=True)
        .build()
    )


@attrs.define
class Told:
    """What callers were told."""

    committed: dict[str, tuple[int, int]] = attrs.field(factory=dict)
    """Of each trace, the newest step and rev."""
    responses: dict[str, TaskResponse] = attrs.field(factory=dict)
    errors: list[BaseException] = attrs.field(factory=list)


class Memory(InMemoryCheckpointStorage):
    """With a thread that writes, as the other store has."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = DedicatedThread("tinyllm writer of memory")

    async def initialize(self) -> None:
        await super().initialize()
        self._thread.start()

    async def close(self) -> None:
        self._thread.stop()
        await super().close()

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        return await self._thread.call(self._commit, tuple(writes))

    def _commit(self, writes: Sequence[Write]) -> list[Outcome]:
        return [self._carry_out(write, 0.0) for write in writes]


class Life:
    """Three traces in one executor: `t`, which asks something and is forked as `f`, and `u`, which is paused; and
    `beside`, which nobody cancels where only calls are."""

    def __init__(self, way: Way, store: CheckpointStorage, witness: Witness, *, goes_on: bool = False) -> None:
        self.way = way
        self.goes_on = goes_on
        self.store = store
        self.told = Told()
        self._begun = anyio.Event()
        self.executor = Executor(graph(), CONFIGS[way.config], store, witness, on_event=self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Committed):
            self.told.committed[event.trace_id] = event.step, event.rev
        if isinstance(event, NodeStarted) and event.trace_id == "u":
            self._begun.set()

    async def calls(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.forked, name="host of t")
            tasks.start_soon(self.paused, name="host of u")

    async def forked(self) -> None:
        await self.drive("t", self.executor.execute("task", trace_id="t"))
        if "t" in self.told.responses and self.told.responses["t"].status == "completed":
            await self.drive("f", self.executor.fork("t", at="agree", new_trace_id="f"))

    async def paused(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._drive_u, name="caller of u")
            await self._begun.wait()
            with self.noted(), suppress(TraceEnded):
                await self.executor.pause("u")

    async def _drive_u(self) -> None:
        try:
            await self.drive("u", self.executor.execute("task", trace_id="u"))
        finally:
            self._begun.set()

    async def beside(self) -> None:
        await self.drive("b", self.executor.execute("task", trace_id="b"))

    async def drive(self, trace: str, call: Awaitable[TaskResponse]) -> None:
        """To its end, whatever it asks and however it pauses."""
        with self.noted():
            try:
                response = await call
            except ExecutionError:
                if not self.goes_on:
                    raise
                response = await self.executor.resume_from_checkpoint(trace)
            self.told.responses[trace] = response
            while response.status == "paused":
                if response.questions:
                    await self.executor.answer(trace, "yes")
                response = await self.executor.resume_from_checkpoint(trace)
                self.told.responses[trace] = response

    @contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.told.errors.append(error)


async def whole(life: Life, cancelled: Cancelled) -> None:
    """All of it; `cancelled` makes the part that is to be cancelled."""
    if life.way.what == "call":
        async with life.executor, anyio.create_task_group() as tasks:
            tasks.start_soon(life.beside, name="host of b")
            await cancelled(life.calls)
        return

    if life.way.what == "actor":
        # Callers outside the block: what cancels the block does not reach them.
        opened, over = anyio.Event(), anyio.Event()

        async def hold() -> None:
            with life.noted():
                async with life.executor:
                    opened.set()
                    await over.wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, name="host")
            await opened.wait()
            await cancelled(life.calls)
            over.set()
        return

    async def block() -> None:
        async with life.executor:
            await life.calls()

    await cancelled(block)
