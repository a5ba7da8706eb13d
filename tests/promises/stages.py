"""The graph `my-graph`: five nodes in a row that count their calls, say what they were given, and fail when told to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs

from tinyllm.core.graph import Graph
from tinyllm.graph.build import GraphBuilder
from tinyllm.graph.node import Result

NODES = ("node1", "node2", "node3", "node4", "node5")


@attrs.define
class Stages:
    calls: Counter[str] = attrs.field(factory=Counter)
    broken: str | None = None

    def graph(self, graph_id: str = "my-graph") -> Graph:
        return GraphBuilder(graph_id).chain(*map(self._node, NODES)).build()

    def _node(self, name: str) -> Any:
        async def run(value: str, context: Any) -> Any:
            self.calls[name] += 1
            if name == self.broken:
                raise ConnectionError(f"{name} is broken")
            context.add_tokens(20, 30)
            return Result(f"{value} > {name}", set={"key": "value", "seen": context.variables.get("seen", 0) + 1})

        run.__name__ = name
        return run
