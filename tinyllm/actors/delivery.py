"""What a result causes: activations, arrivals at joins, joins that fire. The part of a plan that plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tinyllm.actors.activation import Activation
from tinyllm.actors.draft import Draft
from tinyllm.actors.frontier import Frontier
from tinyllm.actors.joins import NOTHING, Arrival, joined
from tinyllm.actors.routes import Route, Router
from tinyllm.graph.definition import AFTER, END, Graph
from tinyllm.graph.payload import Captured
from tinyllm.storage.contract import ActivationRow, ArrivalRow, Fired

NEVER_COUNTED = 2**31 - 1
"""Readers of a message that is read by what is planned later: it does not go when those of now have gone."""


class Delivery(Frontier):
    __slots__ = ("_router", "generation", "number")

    def __init__(self, graph: Graph, trace_id: str) -> None:
        super().__init__(graph, trace_id)
        self.generation = 1
        self.number = -1
        """Of the newest delta; admission is 0."""
        self._router = Router(graph, self.generation)

    def _deliver(
        self,
        delta: Draft,
        source: str,
        routes: Sequence[Route],
        bodies: Sequence[Captured],
        *,
        path: tuple[int, ...],
        depth: int,
    ) -> None:
        """Record what `source` sends, and plan what that causes."""
        if len(bodies) == 1:
            sent = [(delta.message(source, len(routes), bodies[0]), bodies[0])]
        else:
            consumers = Counter(route.body for route in routes)
            sent = [(delta.message(source, consumers[index], body), body) for index, body in enumerate(bodies)]
        self._plan(delta, source, routes, sent, path=path, depth=depth)

    def _plan(
        self,
        delta: Draft,
        source: str,
        routes: Sequence[Route],
        sent: Sequence[tuple[int, Captured]],
        *,
        path: tuple[int, ...],
        depth: int,
    ) -> None:
        origins = [((seq, source),) for seq, _ in sent]  # shared by all that read the message: Python looks after each
        for route in routes:
            inner = path if route.index is None else (*path, route.index)
            seq, carried = sent[route.body]
            if route.node == END or self.graph.nodes[route.node].join == "all":
                self._arrive(delta, route.node, route.id, seq, source, carried, inner, depth)
                continue
            reads = carried if route.item is None else carried.item(route.item)
            row = ActivationRow(delta.next_activation(), route.id, route.node, seq, route.item, inner, depth)
            delta.activations.append(row)
            origin = origins[route.body]
            self._add(Activation(row.seq, row.id, row.node, origin, reads, inner, depth, self.number + 1))

    def _await(self, delta: Draft, source: str, joins: Iterable[str], cause: Activation) -> None:
        """An empty fan-out arrives, with nothing, at the joins behind it."""
        for join in joins:
            self._arrive(delta, join, cause.id, None, source, NOTHING, cause.path, cause.depth + 1)

    def _leave_undecided(self, delta: Draft, activation: Activation, captured: Captured) -> None:
        """Keep a result in the frontier, under the id of what made it, until its edges can be decided."""
        seq = delta.message(activation.node, NEVER_COUNTED, captured)
        waiting = Activation(
            seq=delta.next_activation(),
            id=activation.id,
            node=activation.node + AFTER,
            sources=((seq, activation.node),),
            input=captured,
            path=activation.path,
            depth=activation.depth,
            born=self.number + 1,
        )
        row = ActivationRow(waiting.seq, waiting.id, waiting.node, seq, None, waiting.path, waiting.depth)
        delta.activations.append(row)
        self.undecided[waiting.seq] = waiting
        self._lives(activation.node)

    def _arrive(
        self,
        delta: Draft,
        node: str,
        identity: bytes,
        message: int | None,
        source: str,
        captured: Captured,
        path: tuple[int, ...],
        depth: int,
    ) -> None:
        """A message reaches a join: it is kept until the round fires."""
        round_ = self.joins.rounds.get(node)
        if round_ is None:
            round_ = self.joins.open(node, delta.next_activation())
            delta.activations.append(ActivationRow(round_.seq, b"", node, None, state="buffered"))
        row = ArrivalRow(delta.next_arrival(), round_.seq, message, identity, path, depth)
        delta.arrivals.append(row)
        round_.arrivals.append(Arrival(row.seq, message, source, captured, identity, path, depth))

    def _settle(self, delta: Draft) -> None:
        """Fire every join that nothing live can still reach."""
        if not self.joins.rounds:
            return
        alive = bool(self.activations or self.parked or self.stuck or self.undecided)
        for node in self.joins.ready(self.active, anything_runs=alive):
            round_ = self.joins.rounds.pop(node)
            arrivals = self.joins.ordered(round_)
            fired = Fired(
                round_.seq,
                self.joins.round_id(self.generation, round_),
                1 + max(a.depth for a in arrivals),
            )
            delta.fired.append(fired)
            sources, reads = joined(arrivals)
            self._add(Activation(round_.seq, fired.id, node, sources, reads, (), fired.depth, self.number + 1))
