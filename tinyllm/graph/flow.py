"""Where results flow in a graph definition, and the faults of that flow: cycles, unreachable nodes, dead ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from tinyllm.graph.definition import Node
from tinyllm.graph.findings import Finding, Path, listed, near
from tinyllm.graph.schema import UNKNOWN, Shape

_MAX_GUESSES = 100
"""A guess takes time with the number of nodes, and of more dangling ids nobody reads the end of the list."""

Steps = Mapping[str, Mapping[str, Path]]
"""For each node, its successors, and the edge, target or `on_error` that makes each one so."""


class Flow:
    """The steps of a definition that may still have faults.

    One misspelt id must not be reported again as a graph that falls apart. So there are two views: `steps` has what is
    certain; `loose_steps` also reads a dangling id as the node that was probably meant and as `UNKNOWN`, which may come
    before and after anything.
    """

    def __init__(self, shape: Shape, ids: Mapping[str, Path]) -> None:
        """`ids` tells where each node id is first used."""
        self._keys = shape.keys
        self._malformed = shape.malformed
        self._cycles_allowed = bool(shape.keys.get("allow_cycles")) or "allow_cycles" in shape.malformed
        self._ids = ids
        self._nodes = {node.id: node for _, node in reversed(shape.nodes)}
        self._guesses: dict[str, str | None] = {}
        steps: dict[str, dict[str, Path]] = {node: {} for node in ids}
        loose: dict[str, dict[str, Path]] = {node: {} for node in (*ids, UNKNOWN)}
        results: dict[str, dict[str, Path]] = {node: {} for node in (*ids, UNKNOWN)}
        self._open_ends = 0
        for start, end, path in _all_steps(shape):
            self._open_ends += self._candidates(end) == (UNKNOWN,)
            if start in ids and end in ids:
                steps[start].setdefault(end, path)
            for first in self._candidates(start):
                for second in self._candidates(end):
                    loose[first].setdefault(second, path)
                    if path[-1] != "on_error":
                        results[first].setdefault(second, path)
        self.steps: Steps = steps
        self.loose_steps: Steps = loose
        self.results: Steps = results
        """The loose steps without those that a failure takes: a node whose result goes nowhere is an exit, or wrong."""
        self.entries = self._points("entry", "entry_points", _reversed(loose))
        self.exits = self._points("exit", "exit_points", results)

    def has(self, node: str) -> bool:
        return node in self._ids

    def guess(self, node: str) -> str | None:
        """The id that a dangling one was probably meant to be."""
        if node not in self._guesses:
            tried = len(self._guesses) >= _MAX_GUESSES
            self._guesses[node] = None if tried or node == UNKNOWN else near(node, self._ids)
        return self._guesses[node]

    def check_cycles(self) -> Iterator[Finding]:
        """Every step that leads back: without these, there would be no cycle."""
        if self._cycles_allowed:
            return
        done: set[str] = set()
        for start in (*self.entries, *self._ids):
            way: dict[str, Iterator[tuple[str, Path]]] = {}  # from start to here, with the steps not taken yet
            if start in self.steps and start not in done:
                way[start] = iter(self.steps[start].items())
            while way:
                here = next(reversed(way))
                for successor, path in way[here]:
                    if successor in way:
                        nodes = [*way, successor]
                        cycle = " -> ".join(nodes[nodes.index(successor) :])
                        yield Finding(path, f"closes the cycle {cycle}; if it is meant, write `allow_cycles: true`")
                    elif successor not in done:
                        way[successor] = iter(self.steps[successor].items())
                        break
                else:
                    done.add(here)
                    del way[here]

    def check_entries(self) -> Iterator[Finding]:
        """It is clear where the task enters, and every node is reached from there."""
        if not self._nodes or "entry_points" in self._malformed:
            return
        inferred = "entry_points" not in self._keys and not self._of_type("entry")
        if not self.entries:
            if not self.loose_steps[UNKNOWN] and self._cycles_allowed:  # else the cycle is what is wrong
                yield Finding((), "every node follows another one; write where the task enters: `entry_points: [...]`")
        elif inferred and len(self.entries) > 1:
            if len(self.entries) - 1 > self._open_ends:  # else dangling edges may be all that is wrong
                yield Finding(
                    ("nodes",),
                    f"nothing leads to {listed(self.entries)}: lead to all but one of them, or write where the task "
                    f"enters: `entry_points: [{', '.join(self.entries)}]`",
                )
        elif UNKNOWN not in self.entries:
            reached = _closure((*self.entries, UNKNOWN, *self._of_type(UNKNOWN)), self.loose_steps)
            for node in self._ids:
                if node not in reached:
                    yield Finding(
                        self._ids[node],
                        f"`{node}` is unreachable: no path leads to it from {listed(self.entries)}; "
                        "add an edge to it, or list it in `entry_points`",
                    )

    def check_exits(self, acts: Callable[[Node], bool]) -> Iterator[Finding]:
        """Every result reaches an exit, or a node that `acts` on the outside; else it was computed for nothing."""
        if not self._nodes or "exit_points" in self._malformed:
            return
        before = _reversed(self.results)
        if not self.exits:
            if not before[UNKNOWN] and self._cycles_allowed:
                yield Finding((), "every node leads to another one; write where the graph ends: `exit_points: [...]`")
            return
        if UNKNOWN in self.exits:
            return
        ends = [*self.exits, UNKNOWN, *(node.id for node in self._nodes.values() if acts(node))]
        told = _closure(ends, before)  # of these, nothing (more) is to be said
        for node in self._ids:
            if node not in told and not self.results[node]:
                told |= _closure([node], before)
                yield Finding(
                    self._ids[node],
                    f"nothing uses the result of `{node}`: add an edge from it, list it in `exit_points`, or, if it "
                    "acts on the outside, write `effects: true`",
                )
        for node in self._ids:
            if node not in told:
                after = _closure([node], self.results)
                told |= _closure(after, before)
                message = f"no path leads from `{node}` to an exit, only round {listed(sorted(after))}"
                yield Finding(self._ids[node], message)

    def _points(self, type_: str, key: str, neighbours: Steps) -> tuple[str, ...]:
        """What is written down, else the nodes of that type, else those with nothing on that side."""
        written = [meant for node in self._keys.get(key, ()) for meant in self._candidates(node)]
        alone = (node for node in self._ids if not neighbours[node].keys() - {node})
        return tuple(written) or self._of_type(type_) or tuple(alone)

    def _of_type(self, type_: str) -> tuple[str, ...]:
        return tuple(node for node in self._ids if self._nodes[node].type == type_)

    def _candidates(self, node: str) -> tuple[str, ...]:
        if self.has(node):
            return (node,)
        guess = self.guess(node)
        return (UNKNOWN,) if guess is None else (UNKNOWN, guess)


def _all_steps(shape: Shape) -> Iterator[tuple[str, str, Path]]:
    for path, edge in shape.edges:
        yield edge.from_node, edge.to_node, path
    for path, node in shape.nodes:
        for index, target in enumerate(node.targets):
            yield node.id, target, (*path, "targets", index)
        if node.on_error and node.on_error != node.id:
            yield node.id, node.on_error, (*path, "on_error")


def _reversed(steps: Steps) -> Steps:
    """For each node, its predecessors."""
    before: dict[str, dict[str, Path]] = {node: {} for node in steps}
    for node, after in steps.items():
        for successor, path in after.items():
            before[successor][node] = path
    return before


def _closure(starts: Iterable[str], steps: Steps) -> set[str]:
    """`starts` and everything that follows them."""
    seen = set(starts)
    todo = list(seen)
    while todo:
        fresh = steps[todo.pop()].keys() - seen
        seen |= fresh
        todo.extend(fresh)
    return seen
