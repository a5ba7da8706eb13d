"""W5 on LangGraph: `n` steps that count, beside 5 MiB of nested JSON that never change; wall time by step, and disk."""

from __future__ import annotations

from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from common import Case, Clock, Figures, main
from with_langgraph import measured, opened, options, pragmas


class State(TypedDict):
    count: int
    document: Any


def document(size: int) -> dict[str, Any]:
    """Nested JSON of about `size` bytes."""
    entry = {"name": "n" * 40, "tags": ["red", "green", "blue"], "at": {"x": 1.5, "y": -2.25}, "text": "t" * 880}
    return {f"chapter{i}": {"entries": [entry] * 64} for i in range(max(1, size // 65536))}


async def step(state: State) -> dict[str, int]:
    return {"count": state["count"] + 1}


async def run(case: Case) -> Figures:
    builder = StateGraph(State)
    builder.add_node("step", step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda state: END if state["count"] >= case.n else "step")
    async with opened(case.mode, case.folder) as saver:
        graph = builder.compile(checkpointer=saver)
        with Clock() as clock:
            end = await graph.ainvoke({"count": 0, "document": document(5 * 2**20)}, **options(case.mode))
        assert end["count"] == case.n
        return {"us_per_node": clock.seconds / case.n * 1e6, **await pragmas(saver)}


if __name__ == "__main__":
    main(lambda case: measured(case, 2, run))
