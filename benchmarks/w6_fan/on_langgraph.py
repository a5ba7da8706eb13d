"""W6 on LangGraph: one node, 50 in parallel, their join, `n` times; wall time by node, 52 of them a round."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph

from common import Case, Clock, Figures, main
from with_langgraph import measured, opened, options, pragmas

WIDTH = 50


class State(TypedDict):
    round: int
    total: Annotated[int, operator.add]


async def fork(state: State) -> dict[str, Any]:
    return {"round": state["round"] + 1}


async def part(state: State) -> dict[str, Any]:  # noqa: ARG001 - LangGraph passes it
    return {"total": 1}


async def join(state: State) -> dict[str, Any]:  # noqa: ARG001
    return {}


async def run(case: Case) -> Figures:
    builder = StateGraph(State)
    builder.add_node("fork", fork)
    builder.add_node("join", join)
    parts = [f"part{i}" for i in range(WIDTH)]
    for name in parts:
        builder.add_node(name, part)
        builder.add_edge("fork", name)
    builder.add_edge(START, "fork")
    builder.add_edge(parts, "join")
    builder.add_conditional_edges("join", lambda state: END if state["round"] >= case.n else "fork")
    async with opened(case.mode, case.folder) as saver:
        graph = builder.compile(checkpointer=saver)
        with Clock() as clock:
            end = await graph.ainvoke({"round": 0, "total": 0}, **options(case.mode))
        assert end["total"] == case.n * WIDTH
        return {"us_per_node": clock.seconds / (case.n * (WIDTH + 2)) * 1e6, **await pragmas(saver)}


if __name__ == "__main__":
    main(lambda case: measured(case, 1, run))
