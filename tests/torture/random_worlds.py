"""Worlds (`tests/actors/worlds.py`) out of a seed: small graphs with all that a graph may have."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

import attrs

from tests.actors.worlds import BUDGET, HOPS, QUESTIONS, End, TooLong, Walk, World, with_functions
from tinyllm.actors.dispatch import Bounds
from tinyllm.graph.definition import Edge, Graph, Limits, Node, Retry
from tinyllm.nodes.call import Caller

T = TypeVar("T")

SHORTEST, LONGEST = 4, 40
"""Steps of a world, undisturbed."""


@attrs.frozen
class Drawn:
    world: World
    first: Graph
    """What a trace begins with: perhaps with a limit, or a condition, that makes it fail. It goes on with the other."""
    end: End
    """How it ends, undisturbed."""
    undisturbed: frozenset[bytes]
    """The ids of all activations, if nothing disturbs it."""
    callers: Mapping[str, Caller]
    bounds: Bounds


def draw_world(rng: random.Random) -> Drawn:
    while True:
        world = _draw(rng)
        reference = Walk(world, random.Random(0), most_steps=LONGEST)
        reference.begin()
        with suppress(TooLong):
            reference.rest()
            if len(reference.steps) >= SHORTEST:
                return Drawn(
                    world,
                    _spoilt(rng, world.graph),
                    reference.end(),
                    frozenset(id for _, id in reference.steps),
                    {node: Caller(function) for node, function in world.graph.functions.items()},
                    Bounds(world.graph),
                )


def _some(rng: random.Random, of: Sequence[T], likely: float) -> list[T]:
    return [each for each in of if rng.random() < likely]


def _draw(rng: random.Random) -> World:
    ids = [f"n{number}" for number in range(rng.randint(3, 8))]
    joins = set(_some(rng, ids[1:], 0.35))
    fans = set(_some(rng, ids, 0.35))
    senders = set(_some(rng, [node for node in ids[:-1] if node not in fans], 0.2))
    edges = _edges(rng, ids, fans, joins)
    leaving = {edge.from_node for edge in edges}
    retries = {
        node: Retry(max_attempts=rng.randint(1, BUDGET), initial=rng.choice([0.0, 2.0]), on=("Stumble",))
        for node in _some(rng, ids, 0.4)
    }
    # A failure that led back would not count as a hop.
    mends = {node: rng.choice(ids[ids.index(node) + 1 :]) for node in _some(rng, list(retries), 0.5) if node != ids[-1]}
    targets = {node: tuple(sorted(_few(rng, ids[1:], 2))) for node in sorted(senders)}
    effects = set(_some(rng, ids, 0.25))
    nodes = {
        node: Node(
            id=node,
            join="all" if node in joins else "any",
            targets=targets.get(node, ()),
            retry=retries.get(node),
            on_error=mends.get(node),
            effects=node in effects,
            max_concurrency=rng.choice([None, None, None, 1]),
        )
        for node in ids
    }
    graph = Graph(
        id="g",
        nodes=nodes,
        edges=edges,
        entry_points=(ids[0],),
        exit_points=tuple(node for node in ids if node not in leaving or rng.random() < 0.4),
        variables={"log": "append", "sum": "add", "facts": "merge"},
        history=rng.choice([None, None, 0, 2]),
        limits=Limits(max_concurrency=rng.choice([None, None, 2])),
    )
    return with_functions(
        World(
            graph,
            frozenset(fans),
            frozenset(senders),
            {key: frozenset(_some(rng, ids, 0.5)) for key in ("log", "sum", "facts")},
            {node: QUESTIONS[: rng.randint(1, 2)] for node in _some(rng, ids, 0.15)},
            frozenset(_some(rng, ids, 0.2)),
        )
    )


def _few(rng: random.Random, of: Sequence[T], most: int) -> set[T]:
    return set(rng.sample(of, min(len(of), rng.randint(1, most))))


def _edges(rng: random.Random, ids: Sequence[str], fans: set[str], joins: Iterable[str]) -> tuple[Edge, ...]:
    edges: dict[tuple[str, str, bool], Edge] = {}

    def lead(start: str, end: str, *, back: bool) -> None:
        when = ["len(structured) > 1", "len(structured) != 1"] if start in fans else []
        when = when or ["structured['hops'] % 2 == 0", "structured['tag'] > '8'"]
        condition = f"structured['hops'] < {HOPS}" if back else rng.choice([None, None, None, None, *when])
        for_each = start in fans and end not in joins and rng.random() < 0.5
        edge = Edge(from_node=start, to_node=end, condition=condition, for_each=for_each)
        edges.setdefault((start, end, for_each), edge)

    for number, node in enumerate(ids[1:], start=1):
        for start in sorted(_few(rng, ids[:number], 2)):
            lead(start, node, back=False)
    for start in [node for node in ids[1:] if node not in fans and rng.random() < 0.15]:
        lead(start, rng.choice(ids[1:]), back=True)
    return tuple(edges.values())


def _spoilt(rng: random.Random, graph: Graph) -> Graph:
    chance = rng.random()
    if chance < 0.15:
        return attrs.evolve(graph, limits=attrs.evolve(graph.limits, max_steps=rng.randint(2, 15)))
    if chance < 0.3 and graph.edges:
        broken = rng.choice(graph.edges)
        edges = (attrs.evolve(e, condition="structured['nope'] > 1") if e is broken else e for e in graph.edges)
        return attrs.evolve(graph, edges=tuple(edges))
    return graph
