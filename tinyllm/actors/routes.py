"""Where a result goes: along the edges whose condition holds, or to the targets that the node names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

from tinyllm.errors import NodeError
from tinyllm.graph.conditions import compile_condition, environment
from tinyllm.graph.definition import END, Graph, Node
from tinyllm.graph.ids import causal_id
from tinyllm.graph.payload import Captured
from tinyllm.graph.records import record
from tinyllm.graph.variables import Variables, Version
from tinyllm.nodes.call import Output

FAN_OUT_CAP = 10_000
"""Activations that one result may plan along one edge. Each is a row; wider work belongs into batches."""


@record
class Route:
    """One way that a result takes: the id, and the fan-out index, of what it causes at `node`."""

    node: str
    id: bytes
    body: int = 0
    """Which of the result's bodies travels: 0 is the value itself, the others are its sends."""
    item: int | None = None
    index: int | None = None


compiled = lru_cache(maxsize=1024)(compile_condition)
"""Conditions, for all traces of a process."""


class Names:
    """What conditions see of a result: its payload, the variables as it leaves them, the step it makes."""

    def __init__(self, captured: Captured, versions: Mapping[str, Version], step: int) -> None:
        self._captured = captured
        self._versions = versions
        self._step = step

    @cached_property
    def all(self) -> Mapping[str, Any]:
        """Made when the first condition asks: most edges have none."""
        return environment(self._captured.payload, Variables(self._versions), self._step)


class Router:
    """The routes of one trace's results, each with the id of what it causes."""

    def __init__(self, graph: Graph, generation: int) -> None:
        self._graph = graph
        self._generation = generation

    def entries(self) -> list[Route]:
        """Where the task arrives."""
        return [Route(node, self._id(b"", f"entry:{node}", 0)) for node in self._graph.entry_points]

    def on_error(self, node: str, cause: bytes) -> Route:
        """Where the failure of activation `cause` goes."""
        return Route(node, self._id(cause, f"error:{node}", 0))

    def routes(
        self, node_id: str, cause: bytes, output: Output, captured: Captured, names: Names
    ) -> tuple[list[Route], frozenset[str]]:
        """Where the result of activation `cause` goes, and which joins an empty fan-out leaves waiting for nothing.

        :raises NodeError: it names an undeclared target, or its value does not fit an edge.
        :raises ConditionError: a condition cannot be decided.
        """
        node = self._graph.nodes[node_id]
        awaited: frozenset[str] = frozenset()
        if output.sends is not None:
            targets = [target for target, _ in output.sends]
            self._check_declared(node, targets)
            self._check_width(node, len(targets), "it sends")
            return [
                Route(target, self._id(cause, f"send:{target}", at), at + 1, index=at)
                for at, target in enumerate(targets)
            ], awaited
        if output.goto is None and node.targets and not self._graph.outgoing[node_id] and output.body == b"[]":
            # No sends: an empty fan-out.
            return [], frozenset().union(*(self._graph.first_joins[target] for target in node.targets))
        if output.goto is not None:
            self._check_declared(node, output.goto)
            routes = [Route(target, self._id(cause, f"goto:{target}", 0)) for target in dict.fromkeys(output.goto)]
        else:
            routes, awaited = self._along_edges(node, cause, captured, names)
        if not routes and not awaited and node_id in self._graph.exit_points:
            routes = [Route(END, self._id(cause, END, 0))]  # what an exit returns goes to the end, if nowhere else
        return routes, awaited

    def _along_edges(
        self, node: Node, cause: bytes, captured: Captured, names: Names
    ) -> tuple[list[Route], frozenset[str]]:
        routes: list[Route] = []
        awaited: frozenset[str] = frozenset()
        for edge, label in self._graph.labelled[node.id]:
            if edge.condition is not None and not compiled(edge.condition).holds(names.all):
                continue
            if not edge.for_each:
                routes.append(Route(edge.to_node, self._id(cause, label, 0)))
                continue
            items = captured.value
            if not isinstance(items, list):
                is_a = "None" if items is None else f"a {type(items).__name__}"
                raise NodeError(
                    node.id, f"the edge to {edge.to_node!r} is for_each, but the value is {is_a}, not a list"
                )
            self._check_width(node, len(items), f"the edge to {edge.to_node!r} makes")
            if not items:
                awaited |= self._graph.first_joins[edge.to_node]
            routes += [Route(edge.to_node, self._id(cause, label, at), item=at, index=at) for at in range(len(items))]
        return routes, awaited

    def _check_declared(self, node: Node, targets: list[str] | tuple[str, ...]) -> None:
        for target in targets:
            if target not in node.targets:
                declared = ", ".join(node.targets) or "none"
                raise NodeError(node.id, f"it names {target!r}, which is not among its targets ({declared})")

    def _check_width(self, node: Node, width: int, what: str) -> None:
        if width > FAN_OUT_CAP:
            raise NodeError(
                node.id, f"{what} {width:,} activations, more than the {FAN_OUT_CAP:,} allowed; send batches of items"
            )

    def _id(self, cause: bytes, edge: str, ordinal: int) -> bytes:
        return causal_id(self._generation, cause, edge, ordinal)
