"""The actors of one executor, put together without its threads (lease keeper, watchdog): so a mock clock works."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from tests.actors.graphs import now
from tests.actors.stores import Noting
from tinyllm.actors.dispatch import Bounds, Durability
from tinyllm.actors.events import Event
from tinyllm.actors.mailbox import Journal
from tinyllm.actors.node_executor import NodeExecutor
from tinyllm.actors.plan import Plan
from tinyllm.actors.protocol import Hurry, NodeMessage, ScheduleMessage, WriteMessage
from tinyllm.actors.run import Run
from tinyllm.actors.schedule import Policy
from tinyllm.actors.scheduler import CheckpointScheduler
from tinyllm.actors.writer import StorageWriter
from tinyllm.graph.definition import Graph
from tinyllm.graph.payload import Captured, encode_payload
from tinyllm.storage.contract import Acquire, Acquired, Admit, Admitted, HighWater
from tinyllm.storage.memory import InMemoryCheckpointStorage


class Rig:
    def __init__(self, graph: Graph, store: Noting, policy: Policy) -> None:
        self.graph = graph
        self.store = store
        self.policy = policy
        self.events: list[Event] = []
        self.nodes: Any = None
        self.journal: Any = None
        self.rev = 0

    def admit(self, task: Any = "task", trace_id: str = "t") -> Plan:
        plan = Plan(self.graph, trace_id)
        write = Admit(
            trace_id=trace_id,
            graph_id="g",
            graph_version="1",
            fingerprint="",
            definition=b"{}",
            graph_path=None,
            task_digest="",
            owner="o",
            first=plan.begin(Captured(encode_payload(task)), {}),
        )
        (admitted,) = now(InMemoryCheckpointStorage.commit(self.store, [write]))
        assert isinstance(admitted, Admitted)
        plan.key, plan.epoch = admitted.trace, admitted.epoch
        return plan

    def taken_over(self) -> Plan:
        """A plan of what is stored of the trace, owned anew."""
        record = now(self.store.trace("t"))
        assert record is not None
        (acquired,) = now(InMemoryCheckpointStorage.commit(self.store, [Acquire(record.trace, "t", record.epoch, "p")]))
        assert isinstance(acquired, Acquired)
        plan = Plan(self.graph, "t")
        plan.restore(now(self.store.load("t")), retry=False)
        self.rev = record.rev
        return plan

    def run(
        self,
        plan: Plan,
        *,
        may_start: Callable[[], bool] = lambda: True,
        stopped: bool = False,
        observed: bool = True,
        high_water: HighWater | None = None,
    ) -> Run:
        return Run(
            plan,
            self.nodes,
            Bounds(self.graph),
            journal=self.journal,
            rev=self.rev,
            durability=self.policy.durability,
            merges=self.policy.merges,
            stopped=stopped,
            may_start=may_start,
            high_water=high_water,
            emit=self.events.append if observed else None,
        )

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


@asynccontextmanager
async def rig(
    graph: Graph,
    store: Noting | None = None,
    *,
    durability: Durability = "async",
    each_node: bool = True,
    interval: float = 5.0,
    mailbox: int = 256,
) -> AsyncIterator[Rig]:
    policy = Policy(each_node=each_node, interval=interval, durability=durability, keep=100)
    made = Rig(graph, store or Noting(), policy)
    to_writer, write_inbox = anyio.create_memory_object_stream[WriteMessage](mailbox)
    schedule, schedule_inbox = anyio.create_memory_object_stream[ScheduleMessage](mailbox)
    ring, bell = anyio.create_memory_object_stream[Hurry](1)
    made.journal = Journal(schedule, ring)
    shields = [anyio.CancelScope(shield=True) for _ in range(2)]
    async with anyio.create_task_group() as actors:
        await actors.start(StorageWriter(made.store, write_inbox, shields[0], keep=100).run)
        await actors.start(CheckpointScheduler(policy, schedule_inbox, bell, to_writer.clone(), shields[1]).run)
        made.nodes, inbox = anyio.create_memory_object_stream[NodeMessage](mailbox)
        await actors.start(NodeExecutor(graph, inbox, deps=None, debug_mutation=True).run)
        try:
            yield made
        finally:
            for outbox in (made.nodes, made.journal, to_writer):
                outbox.close()
