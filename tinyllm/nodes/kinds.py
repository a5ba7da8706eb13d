"""The kinds of node a graph may name, and what each of them calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tinyllm.graph.definition import Graph, Node
from tinyllm.graph.node import NodeFunction

Bind = Callable[[Graph, Node], NodeFunction | None]
"""What a node of this kind calls; None: it passes its input on unchanged."""


def _passes_on(_graph: Graph, _node: Node) -> None:
    return None


KINDS: Mapping[str, Bind] = {"entry": _passes_on, "exit": _passes_on, "function": Graph.function}
