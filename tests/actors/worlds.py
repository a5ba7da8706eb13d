"""Random graphs of deterministic nodes, and what each node does, as data: for plans by hand and for executors alike."""

from __future__ import annotations

import json
import random
import types
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import attrs
from hypothesis import strategies as st

from tinyllm.actors.activation import Activation
from tinyllm.actors.plan import Plan
from tinyllm.graph.definition import Edge, Graph, Node, Retry
from tinyllm.graph.ids import activation_id
from tinyllm.graph.node import NodeFunction, Pause, Send
from tinyllm.graph.payload import Captured
from tinyllm.graph.questions import Question
from tinyllm.graph.values import capture
from tinyllm.graph.variables import Variables
from tinyllm.nodes.call import Call, Caller, Prepared, asked_by, failure
from tinyllm.storage.contract import Command, Delta

HOPS = 7
"""Edges that lead back are taken only by values that have come fewer steps than this."""

TASK = {"hops": 0, "tag": "task"}

MOST_STEPS = 150


BUDGET = 3
"""Attempts that a node has at most."""

QUESTIONS = ("may I?", "how?")


class Stumble(Exception):
    """An attempt fails."""


@attrs.frozen(repr=False)
class World:
    """A graph and what its nodes do.

    What a node returns follows from its id, the value that it gets and the answers that it is given; how often it fails
    first, from the id of its activation (or from its value, where all its attempts fail).
    """

    graph: Graph
    fans: frozenset[str]
    """Nodes that return a list; the others return one value."""
    sends: frozenset[str]
    """Nodes that name where their values go."""
    writes: Mapping[str, frozenset[str]]
    """The nodes that write each variable: append to `log`, add to `sum`, merge into `facts`."""
    asks: Mapping[str, tuple[str, ...]]
    """What nodes ask, in order, before they do anything else."""
    saves: frozenset[str]
    """Nodes that save their progress, once for each attempt."""

    def __repr__(self) -> str:
        nodes = [
            f"{node.id}{' join' * (node.join == 'all')}{' fan' * (node.id in self.fans)}"
            f"{''.join(f' {key}' for key, writers in self.writes.items() if node.id in writers)}"
            f"{' asks ' * (node.id in self.asks) + ', '.join(self.asks.get(node.id, ()))}"
            f"{' saves' * (node.id in self.saves)}{f' tried {node.retry.max_attempts}x' if node.retry else ''}"
            f"{f' else {node.on_error}' if node.on_error else ''}{' ' + '|'.join(node.targets) if node.targets else ''}"
            for node in self.graph.nodes.values()
        ]
        edges = [
            f"{e.from_node} {'=>' if e.for_each else '->'} {e.to_node}{' if ' + e.condition if e.condition else ''}"
            for e in self.graph.edges
        ]
        return f"<World {nodes}, {edges}, exits {self.graph.exit_points}>"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:  # hypothesis would print every field
        printer.text(repr(self))

    async def answer(self, node: str, value: Any, context: Any) -> Any:
        """What the node function does."""
        said = _tag(node, _text(value))
        told = [await context.ask(f"{name} {said}", name=name) for name in self.asks.get(node, ())]
        tag = _tag(said, *told)
        number, hops = int(tag, 16), 1 + _hops(value)
        if node in self.saves:
            # What failed had saved before, and what is tried again finds it.
            assert context.progress == tag or (context.progress is None and context.attempt == 1)
            await context.save_progress(tag)
        if context.attempt <= self._failures(node, number, context.activation_id):
            raise Stumble(f"{node}: attempt {context.attempt}")
        self._write(node, tag, context)
        if node in self.sends:
            targets = self.graph.nodes[node].targets
            items = [{"hops": hops, "tag": f"{tag}.{index}"} for index in range(1 + number % 2)] if hops < HOPS else []
            chosen = [(targets[(number >> index) % len(targets)], item) for index, item in enumerate(items)]
            return [Send(*each) for each in chosen] or {"hops": hops, "tag": tag}
        if node in self.fans:
            return [{"hops": hops, "tag": f"{tag}.{index}"} for index in range(number % 4)]
        return {"hops": hops, "tag": tag}

    def _failures(self, node: str, number: int, activation: str) -> int:
        """How many attempts fail. A budget that began anew with each process would let those succeed that fail for
        good."""
        tried = self.graph.nodes[node]
        if tried.retry is None:
            return 0
        if tried.on_error and number % 2:
            return tried.retry.max_attempts
        return int(activation[:4], 16) % tried.retry.max_attempts

    def _write(self, node: str, tag: str, context: Any) -> None:
        number = int(tag, 16)
        written = {
            "log": f"{node}:{tag}",
            "sum": number % 1000,
            "facts": {f"k{number % 3}": node},
        }
        for key, item in written.items():
            if node in self.writes[key]:
                context.set_variable(key, item)
        if node == self.graph.entry_points[0]:
            context.set_variable("first", tag)  # nobody writes beside it

    def reply(self, question: Question) -> str:
        """What somebody answers."""
        return _tag("reply", question.node_id, question.prompt)

    def end(self, status: str, value: Any, variables: Mapping[str, Any], steps: Counter[Any]) -> End:
        return End(status, value, {key: _text(item) for key, item in variables.items()}, steps)


@attrs.frozen
class End:
    """The state in which a trace ends."""

    status: str
    value: Any
    variables: dict[str, Any]
    steps: Counter[Any]
    """By node and activation id; from a store, by node."""

    @property
    def by_node(self) -> End:
        """The same, as two traces may have it in common."""
        nodes = Counter(node for node, _ in self.steps.elements())
        return attrs.evolve(self, steps=nodes)


def _text(value: Any) -> str:
    return json.dumps(value)


def _tag(*parts: str) -> str:
    return blake2b(":".join(parts).encode(), digest_size=4).hexdigest()


def _hops(value: Any) -> int:
    if isinstance(value, list):
        return max(map(_hops, value), default=HOPS - 2)
    return int(value["hops"])


@st.composite
def worlds(draw: st.DrawFn, *, asking: bool = True) -> World:
    """Graphs of up to eight nodes: branches, conditions, nested fan-outs, joins behind joins, cycles, sends; nodes that
    ask (where `asking`), save progress, fail and are tried again, or whose failure another node handles."""
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
    retries = {
        node: Retry(max_attempts=draw(st.integers(1, BUDGET)), initial=0.0, on=("Stumble",))
        for node in draw(st.sets(st.sampled_from(ids), max_size=4))
    }
    # A failure that led back would not count as a hop.
    mends = {
        node: draw(st.sampled_from(ids[ids.index(node) + 1 :]))
        for node in sorted(retries)
        if node != ids[-1] and draw(st.booleans())
    }
    some = st.frozensets(st.sampled_from(ids))
    few = st.sets(st.sampled_from(ids), max_size=3)
    world = World(
        Graph(
            id="g",
            nodes={
                node: Node(
                    id=node,
                    join="all" if node in joins else "any",
                    targets=targets.get(node, ()),
                    retry=retries.get(node),
                    on_error=mends.get(node),
                )
                for node in ids
            },
            edges=tuple(edges.values()),
            entry_points=(ids[0],),
            exit_points=tuple(sorted(exits)),
            variables={"log": "append", "sum": "add", "facts": "merge"},
            history=draw(st.sampled_from([None, None, 0, 2])),
        ),
        frozenset(fans),
        frozenset(senders),
        {key: draw(some) for key in ("log", "sum", "facts")},
        {node: QUESTIONS[: draw(st.integers(1, 2))] for node in sorted(draw(few))} if asking else {},
        frozenset(draw(few)),
    )
    return with_functions(world)


def with_functions(world: World) -> World:
    """The same, with functions that its graph calls."""
    functions = {node: NodeFunction.of(_function(world, node)) for node in world.graph.nodes}
    return attrs.evolve(world, graph=attrs.evolve(world.graph, functions=functions))


def _function(world: World, node: str) -> Any:
    async def run(value: Any, context: Any) -> Any:
        if context.deps is not None:
            context.deps.append((node, context.activation_id))
        return await world.answer(node, value, context)

    run.__name__ = node
    return run


class TooLong(Exception):
    pass


class Walk:
    """Executes a world's plan by itself, in an order that `rng` chooses."""

    def __init__(
        self, world: World, rng: random.Random, plan: Plan | None = None, *, most_steps: int = MOST_STEPS
    ) -> None:
        self.world = world
        self.rng = rng
        self._most_steps = most_steps
        self.plan = plan or Plan(world.graph, "t")
        self.steps: list[tuple[str, bytes]] = []
        self._answered: set[str] = set()
        self._callers = {node: Caller(function) for node, function in world.graph.functions.items()}
        self._running: dict[int, tuple[Prepared, Coroutine[Any, Any, Any]]] = {}
        self._saved: Delta | None = None

    def begin(self) -> Delta:
        return self.plan.begin(Captured(capture(TASK)), {})

    def go_on(self, plan: Plan) -> None:
        """In another process, with what was stored."""
        self.plan = plan
        self._running.clear()

    def next(self) -> Delta | None:
        """An attempt ends, or saves its progress, or a question is answered; None where nothing is left."""
        if self.plan.parked and (not self.plan.activations or self.rng.random() < 0.3):
            question = self.rng.choice(self.plan.questions)
            self.plan.status = "running"  # as after a resume
            body = capture(self.world.reply(question))
            (activation,) = (a.id for a in self.plan.parked.values() if a.question(self.plan.trace_id) == question)
            assert question.id not in self._answered, "it is asked again"
            self._answered.add(question.id)
            return self.plan.heed([Command(len(self._answered), 0, "answer", activation, question.name, body, 0.0)])
        return self.attempt()

    def attempt(self) -> Delta | None:
        """The same, where somebody else answers."""
        plan = self.plan
        if not plan.activations:
            return None
        if plan.step > self._most_steps:
            raise TooLong
        activation = plan.activations[self.rng.choice(sorted(plan.activations))]
        if activation.seq not in self._running:
            self._running[activation.seq] = self._start(activation)
        prepared, running = self._running[activation.seq]
        at = float(plan.step)
        try:
            running.send(None)
        except StopIteration as done:
            output = self._callers[activation.node].output(prepared, done.value)
            delta = plan.finish(activation.seq, output, ended_at=at, duration_ms=0.0)
        except Pause as pause:
            delta = plan.park(activation.seq, asked_by(prepared.call, pause))
        except Stumble as error:
            delta = plan.fail(activation.seq, failure(activation.node, error), at=at, duration_ms=0.0)
        else:
            assert self._saved is not None
            return self._saved
        del self._running[activation.seq]
        self.steps += [(step.node, activation_id(self.plan.trace_id, activation.id)) for step in delta.steps]
        return delta

    def _start(self, activation: Activation) -> tuple[Prepared, Coroutine[Any, Any, Any]]:
        async def save(body: bytes) -> None:
            self._saved = self.plan.save_progress(activation.seq, body)
            await _turn()

        call = Call(
            self.plan.trace_id,
            activation.node,
            activation_id(self.plan.trace_id, activation.id),
            activation.attempts + 1,
            activation.input,
            activation.sources,
            self.plan.versions,
            activation.progress,
            activation.asked,
        )
        caller = self._callers[activation.node]
        prepared = caller.prepare(call, save)
        return prepared, caller.function.call(*prepared.arguments, **prepared.keywords)

    def cut_off(self) -> Delta:
        """Something that is live is cancelled."""
        seq = self.rng.choice(sorted(self.plan.activations))
        self._running.pop(seq, None)
        return self.plan.cut_off(seq)

    def rest(self) -> list[Delta]:
        found = []
        while (delta := self.next()) is not None:
            found.append(delta)
        return found

    def end(self) -> End:
        plan = self.plan
        return self.world.end(plan.status, plan.outcome(), Variables(plan.versions), Counter(self.steps))


@types.coroutine
def _turn() -> Iterator[None]:
    """Whoever drives the coroutine has a turn."""
    yield


def whole(world: World, seed: int = 0) -> End:
    """How the world ends, uninterrupted."""
    walk = Walk(world, random.Random(seed))
    walk.begin()
    walk.rest()
    return walk.end()
