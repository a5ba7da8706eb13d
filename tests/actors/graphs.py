"""Small graphs, and ways to drive a plan by hand: without actors, without an event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from tinyllm.actors.activation import Activation
from tinyllm.actors.node_executor import BLOCKED_MS
from tinyllm.actors.plan import Plan
from tinyllm.core.fork import fork_delta
from tinyllm.core.outside import carried_out
from tinyllm.graph.definition import END, Edge, Graph, Node, Reducer
from tinyllm.graph.ids import activation_id
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.node import NodeFunction
from tinyllm.graph.payload import Captured, encode_payload
from tinyllm.graph.questions import Question
from tinyllm.graph.values import capture
from tinyllm.graph.variables import Variables
from tinyllm.nodes.call import Failure, Output
from tinyllm.storage.contract import (
    Acquire,
    Acquired,
    Admit,
    Admitted,
    Append,
    Appended,
    Command,
    CommandKind,
    Delta,
    Fork,
    Leave,
    Left,
    Outcome,
    Snapshot,
    Write,
)
from tinyllm.storage.memory import InMemoryCheckpointStorage

T = TypeVar("T")

BOOM = ErrorInfo(type="ValueError", message="boom", node_id="a")


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine that never waits returns (nothing in the memory store does)."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waited")


def shape(
    *edges: str | Edge,
    entry: str | None = None,
    exits: Sequence[str] | None = None,
    joins: Iterable[str] = (),
    variables: Mapping[str, Reducer] | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    **nodes: Mapping[str, Any],
) -> Graph:
    """A graph from edges such as `a -> b`, `a => b` (for_each) and `a -> b if structured > 1`.

    The entry is the first node named, exits those that lead nowhere. `functions` are called by the nodes of that name;
    the others call nothing that a test would run.
    """
    parsed = [_edge(edge) if isinstance(edge, str) else edge for edge in edges]
    ids = list(
        dict.fromkeys([*(node for e in parsed for node in (e.from_node, e.to_node)), *nodes, *(functions or {})])
    )
    given = functions or {}
    leaving = {edge.from_node for edge in parsed}
    made = {}
    for node in ids:
        keys = dict(nodes.get(node, {}))
        if node in joins:
            keys["join"] = "all"
        made[node] = Node(id=node, **keys)
    return Graph(
        id="g",
        nodes=made,
        edges=tuple(parsed),
        entry_points=(entry or ids[0],),
        exit_points=tuple(exits if exits is not None else (n for n in ids if n not in leaving and not made[n].targets)),
        variables=variables or {},
        functions={node: NodeFunction.of(given.get(node, _idle)) for node in ids},
    )


def _edge(text: str) -> Edge:
    route, _, condition = text.partition(" if ")
    for_each = "=>" in route
    start, end = route.replace("=>", "->").split("->")
    return Edge(from_node=start.strip(), to_node=end.strip(), condition=condition or None, for_each=for_each)


async def _idle(value: Any) -> Any:
    return value


def output(
    value: Any = None,
    *,
    set: Mapping[str, Any] | None = None,
    goto: Sequence[str] | None = None,
    sends: Sequence[tuple[str, Any]] | None = None,
) -> Output:
    return Output(
        encode_payload(value),
        tuple((key, capture(item)) for key, item in (set or {}).items()),
        None if goto is None else tuple(goto),
        None if sends is None else tuple((node, encode_payload(item)) for node, item in sends),
    )


class Hand:
    """Moves a plan by hand and keeps its deltas."""

    def __init__(self, graph: Graph, task: Any = "task", *, trace_id: str = "t", variables: Any = None) -> None:
        self.plan = Plan(graph, trace_id)
        initial = {key: capture(value) for key, value in (variables or {}).items()}
        self.deltas = [self.plan.begin(Captured(encode_payload(task)), initial)]

    def live(self, node: str) -> list[Activation]:
        return sorted((a for a in self.plan.activations.values() if a.node == node), key=lambda a: (a.path, a.id))

    def waiting(self) -> dict[str, int]:
        return dict(self.plan.waiting())

    def finish(self, what: str | Activation, value: Any = None, **said: Any) -> Delta:
        """Finish an activation, or the first one of a node."""
        activation = self.live(what)[0] if isinstance(what, str) else what
        delta = self.plan.finish(activation.seq, output(value, **said), ended_at=0.0, duration_ms=1.0)
        self.deltas.append(delta)
        return delta

    def fail(self, what: str | Activation, error: ErrorInfo = BOOM, at: float = 0.0) -> Delta:
        activation = self.live(what)[0] if isinstance(what, str) else what
        failure = Failure(error, (error.type, "Exception", "BaseException"))
        self.deltas.append(self.plan.fail(activation.seq, failure, at=at, duration_ms=1.0))
        return self.deltas[-1]

    def exits(self) -> list[Any]:
        return [a.input.value for a in self.plan.joins.arrived(END) if a.message is not None]

    def variables(self) -> dict[str, Any]:
        return dict(Variables(self.plan.versions))


class Record:
    """One trace in a memory store, written as an executor would write it."""

    def __init__(self, graph: Graph, trace_id: str = "t", store: InMemoryCheckpointStorage | None = None) -> None:
        self.graph = graph
        self.trace_id = trace_id
        self.store = store or InMemoryCheckpointStorage()
        self.key = 0
        self.epoch = 0
        self.rev = 0
        self.written: list[tuple[Write, Outcome]] = []
        """All that was, with what became of it."""

    def write(self, write: Write) -> Outcome:
        (outcome,) = now(self.store.commit([write]))
        self.written.append((write, outcome))
        return outcome

    def admission(self, first: Delta) -> Admit:
        return Admit(
            trace_id=self.trace_id,
            graph_id=self.graph.id,
            graph_version="1",
            fingerprint="",
            definition=b"{}",
            graph_path=None,
            task_digest="",
            history=self.graph.history,
            owner=None,
            first=first,
        )

    def admit(self, plan: Plan, first: Delta) -> None:
        self._admitted(self.write(self.admission(first)))
        plan.key, plan.epoch = self.key, self.epoch

    def append(self, delta: Delta) -> None:
        self.rev += 1
        stamped = attrs.evolve(delta, trace=self.key, epoch=self.epoch, rev=self.rev)
        assert self.write(Append(self.trace_id, stamped)) == Appended(self.rev)

    def resume(self, *, retry: bool = True) -> Plan:
        """A plan of what is stored, owned anew."""
        self._acquire()
        plan = Plan(self.graph, self.trace_id)
        plan.restore(self.load(), retry=retry)
        return plan

    def fork(self, rev: int, trace_id: str) -> Record:
        """Another trace, from the checkpoint `rev`."""
        child = Record(self.graph, trace_id, self.store)
        delta = fork_delta(self.load(rev), {})
        child._admitted(self.write(Fork(parent=self.key, rev=rev, trace_id=trace_id, owner=None, first=delta)))
        return child

    def leave(self, kind: CommandKind, question: Question | None = None, body: bytes | None = None) -> None:
        activation = None if question is None else self.causal(question)
        name = None if question is None else question.name
        assert isinstance(self.write(Leave(self.key, self.trace_id, kind, activation, name, body)), Left)

    def causal(self, question: Question) -> bytes:
        """The causal id of the activation that asks."""
        ids = {activation_id(self.trace_id, row.id).hex(): row.id for row in self.load().frontier}
        return ids[question.activation_id]

    def commands(self) -> list[Command]:
        return now(self.store.commands(trace=self.key))

    def carry_out(self) -> None:
        """What was left, by one who becomes the owner for that."""
        self._acquire()
        if commands := self.commands():
            self.append(carried_out(self.load(), commands))

    def load(self, rev: int | None = None) -> Snapshot:
        snapshot = now(self.store.load(self.trace_id, rev))
        told, rows = snapshot.counts, (snapshot.frontier, snapshot.arrivals, snapshot.variables)
        assert [told.frontier, told.arrivals, told.variables] == [len(found) for found in rows]
        return snapshot

    def kept(self) -> list[int]:
        """The revs of the checkpoints that are there."""
        return [found.rev for found in now(self.store.checkpoints(self.trace_id, limit=10_000))]

    def _acquire(self) -> None:
        acquired = self.write(Acquire(self.key, self.trace_id, self.epoch, "o", "", b"{}", None))
        assert isinstance(acquired, Acquired)
        self.epoch = acquired.epoch

    def _admitted(self, outcome: Outcome) -> None:
        assert isinstance(outcome, Admitted)
        self.key, self.epoch, self.rev = outcome.trace, outcome.epoch, outcome.rev


def block_loop() -> None:
    """Keep the event loop for longer than others are made to wait for."""
    end = time.perf_counter() + BLOCKED_MS * 1.5 / 1000
    while time.perf_counter() < end:
        pass
