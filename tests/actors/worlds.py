"""Random graphs of deterministic nodes, and what each node does, as data: for plans by hand and for executors alike."""

from __future__ import annotations

import json
import random
from collections import Counter
from hashlib import blake2b
from typing import Any

import attrs
from hypothesis import strategies as st

from tests.actors.graphs import output
from tinyllm.actors.plan import Activation, Plan
from tinyllm.graph.definition import Edge, Graph, Node
from tinyllm.graph.node import NodeFunction, Result, Send
from tinyllm.graph.payload import Captured
from tinyllm.graph.values import capture
from tinyllm.graph.variables import Variables
from tinyllm.nodes.call import Output
from tinyllm.storage.contract import Delta

HOPS = 7
"""Edges that lead back are taken only by values that have come fewer steps than this."""

TASK = {"hops": 0, "tag": "task"}

MOST_STEPS = 150


@attrs.frozen(repr=False)
class World:
    """A graph and what its nodes do. What a node does follows from its id and the value that it gets."""

    graph: Graph
    fans: frozenset[str]
    """Nodes that return a list; the others return one value."""
    sends: frozenset[str]
    """Nodes that name where their values go."""
    logs: frozenset[str]
    """Nodes that append to the variable `log`."""

    def __repr__(self) -> str:
        nodes = [
            f"{node.id}{' join' * (node.join == 'all')}{' fan' * (node.id in self.fans)}"
            f"{' log' * (node.id in self.logs)}{' ' + '|'.join(node.targets) if node.targets else ''}"
            for node in self.graph.nodes.values()
        ]
        edges = [
            f"{e.from_node} {'=>' if e.for_each else '->'} {e.to_node}{' if ' + e.condition if e.condition else ''}"
            for e in self.graph.edges
        ]
        return f"<World {nodes}, {edges}, exits {self.graph.exit_points}>"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:  # hypothesis would print every field
        printer.text(repr(self))

    def answer(self, node: str, value: Any) -> Any:
        """What the node function returns."""
        text = json.dumps(value, sort_keys=True)
        tag = blake2b(f"{node}:{text}".encode(), digest_size=4).hexdigest()
        number, hops = int(tag, 16), 1 + _hops(value)
        said = {"log": f"{node}:{tag}"} if node in self.logs else {}
        if node in self.sends:
            targets = self.graph.nodes[node].targets
            items = [{"hops": hops, "tag": f"{tag}.{index}"} for index in range(1 + number % 2)] if hops < HOPS else []
            chosen = [(targets[(number >> index) % len(targets)], item) for index, item in enumerate(items)]
            return [Send(*each) for each in chosen] if chosen else Result({"hops": hops, "tag": tag}, set=said)
        if node in self.fans:
            return Result([{"hops": hops, "tag": f"{tag}.{index}"} for index in range(number % 4)], set=said)
        return Result({"hops": hops, "tag": tag}, set=said)

    def output(self, activation: Activation) -> Output:
        """The same, captured."""
        answer = self.answer(activation.node, activation.input.value)
        if isinstance(answer, Result):
            return output(answer.value, set=answer.set)
        return output(None, sends=[(send.node, send.value) for send in answer])


def _hops(value: Any) -> int:
    if isinstance(value, list):
        return max(map(_hops, value), default=HOPS - 2)
    return int(value["hops"])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Graphs of up to eight nodes: branches, conditions, nested fan-outs, joins behind joins, cycles, sends."""
    count = draw(st.integers(2, 8))
    ids = [f"n{number}" for number in range(count)]
    inner = st.sets(st.sampled_from(ids[1:]))
    joins = draw(inner)
    fans = draw(st.sets(st.sampled_from(ids)))
    senders = {node for node in draw(st.sets(st.sampled_from(ids), max_size=2)) if node not in fans and node != ids[-1]}
    edges: dict[tuple[str, str, bool], Edge] = {}

    def lead(start: str, end: str, *, back: bool) -> None:
        conditions: list[str | None] = []
        if start in fans:
            conditions += [None, None, "len(structured) > 1", "len(structured) != 1"]
        else:
            conditions += [None, None, "structured['hops'] % 2 == 0", "structured['tag'] > '8'"]
        condition = draw(st.sampled_from(conditions))
        if back:
            condition = f"structured['hops'] < {HOPS}"
        for_each = start in fans and end not in joins and draw(st.booleans())
        edges.setdefault(
            (start, end, for_each), Edge(from_node=start, to_node=end, condition=condition, for_each=for_each)
        )

    for number, node in enumerate(ids[1:], start=1):
        for start in draw(st.lists(st.sampled_from(ids[:number]), min_size=1, max_size=2)):
            lead(start, node, back=False)
    scalars = [node for node in ids[1:] if node not in fans]
    for start in draw(st.lists(st.sampled_from(scalars), max_size=2)) if scalars else ():
        lead(start, draw(st.sampled_from(ids[1:])), back=True)
    targets = {node: tuple(sorted(draw(st.sets(st.sampled_from(ids[1:]), min_size=1, max_size=2)))) for node in senders}
    leaving = {edge.from_node for edge in edges.values()}
    exits = draw(st.sets(st.sampled_from(ids))) | {node for node in ids if node not in leaving}
    graph = Graph(
        id="g",
        nodes={
            node: Node(id=node, join="all" if node in joins else "any", targets=targets.get(node, ())) for node in ids
        },
        edges=tuple(edges.values()),
        entry_points=(ids[0],),
        exit_points=tuple(sorted(exits)),
        variables={"log": "append"},
    )
    world = World(graph, frozenset(fans), frozenset(senders), frozenset(draw(st.sets(st.sampled_from(ids)))))
    functions = {node: NodeFunction.of(_function(world, node)) for node in ids}
    return attrs.evolve(world, graph=attrs.evolve(graph, functions=functions))


def _function(world: World, node: str) -> Any:
    async def run(value: Any, context: Any) -> Any:
        if context.deps is not None:
            context.deps.append((node, context.activation_id))
        return world.answer(node, value)

    run.__name__ = node
    return run


@attrs.frozen
class End:
    """The state in which a trace ends."""

    status: str
    value: list[Any]
    variables: dict[str, Any]
    steps: Counter[tuple[str, bytes]]


class TooLong(Exception):
    pass


class Walk:
    """Executes a world's plan by itself, in an order that `rng` chooses."""

    def __init__(self, world: World, rng: random.Random, plan: Plan | None = None) -> None:
        self.world = world
        self.rng = rng
        self.plan = plan or Plan(world.graph, "t")
        self.steps: list[tuple[str, bytes]] = []

    def begin(self) -> Delta:
        return self.plan.begin(Captured(capture(TASK)), {})

    def next(self) -> Delta | None:
        """Finish one activation; None where none is left."""
        if not self.plan.activations:
            return None
        if self.plan.step > MOST_STEPS:
            raise TooLong
        activation = self.plan.activations[self.rng.choice(sorted(self.plan.activations))]
        delta = self.plan.finish(activation.seq, self.world.output(activation), ended_at=0.0, duration_ms=0.0)
        self.steps.append((activation.node, activation.id))
        return delta

    def rest(self) -> list[Delta]:
        found = []
        while (delta := self.next()) is not None:
            found.append(delta)
        return found

    def end(self) -> End:
        plan = self.plan
        return End(
            plan.status,
            plan.outcome(),
            dict(Variables(plan.versions)),
            Counter(self.steps),
        )


def whole(world: World, seed: int = 0) -> End:
    """How the world ends, uninterrupted."""
    walk = Walk(world, random.Random(seed))
    walk.begin()
    walk.rest()
    return walk.end()
