"""A graph as pure data, and what follows from its shape: neighbours, reachability, fingerprint."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import Any, Literal

import attrs
import msgspec

from tinyllm.graph.drawing import markdown
from tinyllm.graph.node import NodeFunction

Reducer = Literal["last", "append", "add", "merge"]
"""What becomes of a value that is written to a variable: see `variables.reduced`."""

Lifespan = Callable[[], AbstractAsyncContextManager[Any]]
"""A function that is decorated with `@lifespan`, or any other that makes such a context manager."""

END = "$end"
"""Where the results of exits arrive: a join behind every graph that no graph can name (ids start with a letter)."""


AFTER = ">"
"""`node>` in a frontier: what `node` returned, while it is undecided which edges it takes. No graph can name it."""


def after(name: str) -> str:
    """The node of a name in a frontier: itself, or the one whose result is undecided."""
    return name.removesuffix(AFTER)


def is_undecided(name: str) -> bool:
    return name.endswith(AFTER)


@attrs.frozen(kw_only=True)
class Retry:
    """How often a node is tried, and how long it waits in between: `initial`, then `factor` times as long each time, at
    most `max` (seconds); of that, a part between none and `jitter` of the whole is left out, so that many nodes that
    failed together do not come back together.

    `on` names the exceptions that are tried again, by their class or one of its bases; empty: all.
    """

    max_attempts: int
    initial: float = 1.0
    factor: float = 2.0
    max: float = 60.0
    jitter: float = 0.5
    on: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Limits:
    """What bounds a trace; None: nothing does. `max_steps` counts within a generation, `timeout` is seconds of
    execution (not of pauses), `max_concurrency` how many activations run at once."""

    max_steps: int | None = None
    timeout: float | None = None
    max_concurrency: int | None = None


@attrs.frozen(kw_only=True)
class Node:
    """One unit of work. `effects=None` means what its kind or function says; `timeout` is seconds for one attempt;
    `on_error` is the node that gets the failure when the last attempt has failed."""

    id: str
    type: str = "function"
    name: str | None = None
    description: str | None = None
    config: Mapping[str, Any] = attrs.field(factory=dict)
    join: Literal["any", "all"] = "any"
    process: bool = False
    max_concurrency: int | None = None
    effects: bool | None = None
    targets: tuple[str, ...] = ()
    retry: Retry | None = None
    timeout: float | None = None
    on_error: str | None = None

    @property
    def call(self) -> str:
        """The name of the function that a `function` node calls."""
        return str(self.config.get("call", self.id))


@attrs.frozen(kw_only=True)
class Edge:
    """From one node to another, taken when `condition` holds; `for_each` makes one activation per item."""

    from_node: str
    to_node: str
    condition: str | None = None
    for_each: bool = False


@attrs.frozen(kw_only=True, eq=False, repr=False, slots=False)  # no slots: cached properties
class Graph:
    """Nodes and edges. Build one with `GraphBuilder` or `load_graph`; both validate it."""

    id: str
    nodes: Mapping[str, Node]
    edges: tuple[Edge, ...] = ()
    entry_points: tuple[str, ...] = ()
    exit_points: tuple[str, ...] = ()
    version: str = "1.0.0"
    name: str | None = None
    description: str | None = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    allow_cycles: bool = False
    variables: Mapping[str, Reducer] = attrs.field(factory=dict)
    history: int | None = None
    """How many of the newest messages a trace keeps: None all, 0 none."""
    limits: Limits = attrs.field(factory=Limits)
    protected: tuple[str, ...] = ()
    """Nodes that tools which rewrite graphs must leave as they are; nothing here reads it."""
    functions: Mapping[str, NodeFunction] = attrs.field(factory=dict)
    lifespan: Lifespan | None = None
    """What makes `context.deps` for as long as an executor runs, where the executor was given none."""
    path: str | None = None
    """The absolute path of the file it was loaded from."""

    def __repr__(self) -> str:
        flow = f"{', '.join(self.entry_points)} -> {', '.join(self.exit_points)}"
        return f"<Graph {self.id} {self.version}: {len(self.nodes)} nodes, {len(self.edges)} edges, {flow}>"

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return markdown(self)

    def function(self, node: Node) -> NodeFunction | None:
        """What `node` calls; None for kinds that call nothing."""
        return self.functions[node.call] if node.type == "function" else None

    def has_effects(self, node: Node) -> bool:
        if node.effects is not None:
            return node.effects
        function = self.function(node)
        return function is not None and function.effects

    @cached_property
    def place(self) -> Mapping[str, int]:
        """Each node's place in the order in which they were written: it breaks ties."""
        return {node: at for at, node in enumerate(self.nodes)}

    @cached_property
    def outgoing(self) -> Mapping[str, tuple[Edge, ...]]:
        edges: dict[str, list[Edge]] = {node: [] for node in self.nodes}
        for edge in self.edges:
            edges[edge.from_node].append(edge)
        return {node: tuple(leaving) for node, leaving in edges.items()}

    @cached_property
    def labelled(self) -> Mapping[str, tuple[tuple[Edge, str], ...]]:
        """`outgoing`, with what names each edge in the ids of what it causes."""
        found = {}
        for node, edges in self.outgoing.items():
            between = dict.fromkeys((edge.to_node for edge in edges), 0)
            labels = []
            for edge in edges:
                labels.append((edge, f"{node}->{edge.to_node}:{between[edge.to_node]}"))
                between[edge.to_node] += 1
            found[node] = tuple(labels)
        return found

    @cached_property
    def successors(self) -> Mapping[str, frozenset[str]]:
        """Every node that a node's result, or its failure, may reach directly."""
        return {
            node.id: frozenset(node.targets)
            | {e.to_node for e in self.outgoing[node.id]}
            | ({node.on_error} if node.on_error else set())
            for node in self.nodes.values()
        }

    @cached_property
    def reach(self) -> Mapping[str, frozenset[str]]:
        """For each node, every node that a path of one or more steps leads to."""

        def closure(start: str) -> frozenset[str]:
            seen: set[str] = set()
            todo = [start]
            while todo:
                fresh = self.successors[todo.pop()] - seen
                seen |= fresh
                todo.extend(fresh)
            return frozenset(seen)

        return {node: closure(node) for node in self.nodes}

    @cached_property
    def first_joins(self) -> Mapping[str, frozenset[str]]:
        """For each node, the joins that paths from it on meet first (itself, if it is one); behind an exit, the end."""

        def met(node: str) -> frozenset[str]:
            found: set[str] = set()
            seen: set[str] = set()
            todo = [node]
            while todo:
                here = todo.pop()
                if here in seen:
                    continue
                seen.add(here)
                if self.nodes[here].join == "all":
                    found.add(here)
                else:
                    if here in self.exit_points:
                        found.add(END)
                    todo.extend(self.successors[here])
            return frozenset(found)

        return {node: met(node) for node in self.nodes}

    @cached_property
    def rank(self) -> Mapping[str, int]:
        """A topological number for each strongly connected component: lower runs before higher."""
        component = {n: frozenset({n} | {m for m in self.reach[n] if n in self.reach[m]}) for n in self.nodes}
        # Whatever reaches a node from outside its component also reaches what that node reaches: counting them orders.
        return {n: sum(n in self.reach[m] and m not in component[n] for m in self.nodes) for n in self.nodes}

    @cached_property
    def fingerprint(self) -> str:
        """A digest of what a resume relies on: `topology()`."""
        return hashlib.blake2b(self._topology, digest_size=16).hexdigest()

    @cached_property
    def definition(self) -> bytes:
        """What is recorded of the graph: readable JSON, the same for the same graph."""
        return b'{"details":%b,"topology":%b}' % (_as_json(self.details()), self._topology)

    @cached_property
    def _topology(self) -> bytes:
        """As JSON, which a large graph makes once for both: it takes as long as to run some dozens of its nodes."""
        return _as_json(self.topology())

    def topology(self) -> dict[str, Any]:
        """What must not change under a trace unasked: nodes, edges, joins, targets, reducers, node versions."""
        versions = {n.id: f.version for n in self.nodes.values() if (f := self.function(n)) and f.version is not None}
        return {
            "nodes": {
                n.id: {"type": n.type, "join": n.join, "targets": sorted(n.targets)}
                | ({"on_error": n.on_error} if n.on_error else {})
                for n in self.nodes.values()
            },
            "edges": sorted([e.from_node, e.to_node, "for_each" if e.for_each else ""] for e in self.edges),
            "entry_points": sorted(self.entry_points),
            "exit_points": sorted(self.exit_points),
            "variables": {key: reducer for key, reducer in self.variables.items() if reducer != "last"},
            "versions": versions,
        }

    def details(self) -> dict[str, str]:
        """What may change under a trace, and is then reported: conditions and config as text, code as a digest."""
        found = {
            f"edge {e.from_node} -> {e.to_node}{' (for_each)' if e.for_each else ''}: condition": e.condition
            for e in self.edges
            if e.condition
        }
        if self.limits != Limits():
            found["limits"] = json.dumps(attrs.asdict(self.limits), sort_keys=True)
        if self.history is not None:
            found["history"] = str(self.history)
        digests: dict[int, str] = {}  # of each function once, however many nodes call it: reading source is slow
        for n in self.nodes.values():
            if n.config:
                found[f"node {n.id}: config"] = json.dumps(n.config, sort_keys=True, default=str)
            if n.retry is not None:
                found[f"node {n.id}: retry"] = json.dumps(attrs.asdict(n.retry), sort_keys=True)
            if n.timeout is not None:
                found[f"node {n.id}: timeout"] = f"{n.timeout:g} s"
            if function := self.function(n):
                code = id(function.call)
                if code not in digests:
                    digests[code] = _code_digest(function)
                found[f"node {n.id}: code"] = digests[code]
        return found


def _as_json(said: dict[str, Any]) -> bytes:
    return msgspec.json.encode(said, order="sorted")  # in a fifth of the time that json takes


def _code_digest(function: NodeFunction) -> str:
    """A digest of the function's source text; empty where Python has none (typed into a shell)."""
    try:
        source = inspect.getsource(function.call)
    except (OSError, TypeError):
        return ""
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
