"""W9 on LangGraph: a list of 1 MiB to which each of `n` steps adds one item; wall time by step, and the disk.

The plain reducer writes the whole list at each step, the `DeltaChannel` (mode `...-delta`) what was added.
"""

from __future__ import annotations

from typing import Any

from langgraph.graph import END, START, StateGraph

from common import Case, Clock, Figures, main
from with_langgraph import growing, measured, opened, options, pragmas

ITEM = "i" * 1024


async def step(state: dict[str, Any]) -> dict[str, Any]:
    return {"items": [ITEM], "left": state["left"] - 1}


async def run(case: Case) -> Figures:
    builder = StateGraph(growing(case.mode))
    builder.add_node("step", step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda state: "step" if state["left"] else END)
    async with opened(case.mode, case.folder) as saver:
        graph = builder.compile(checkpointer=saver)
        with Clock() as clock:
            end = await graph.ainvoke({"items": [ITEM] * 1024, "left": case.n}, **options(case.mode))
        assert len(end["items"]) == 1024 + case.n
        return {
            "us_per_node": clock.seconds / case.n * 1e6,
            "payload_bytes": case.n * 1024,
            **await pragmas(saver),
        }


if __name__ == "__main__":
    main(lambda case: measured(case, 5, run))
