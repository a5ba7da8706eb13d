"""W10 on LangGraph: a fan-out of `n` at once, with `Send`; wall time by node, and how long the event loop stood."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from common import Case, Clock, Figures, main
from stalls import stalls
from with_langgraph import measured, opened, options, pragmas


class State(TypedDict):
    total: Annotated[int, operator.add]


async def part(item: dict[str, int]) -> dict[str, Any]:
    return {"total": item["one"]}


async def run(case: Case) -> Figures:
    builder = StateGraph(State)
    builder.add_node("part", part)
    builder.add_conditional_edges(START, lambda _: [Send("part", {"one": 1})] * case.n, ["part"])
    builder.add_edge("part", END)
    figures: Figures = {}
    async with opened(case.mode, case.folder) as saver:
        graph = builder.compile(checkpointer=saver)
        async with stalls(figures):
            with Clock() as clock:
                end = await graph.ainvoke({"total": 0}, **options(case.mode))
        assert end["total"] == case.n
        return figures | {"us_per_node": clock.seconds / case.n * 1e6, **await pragmas(saver)}


if __name__ == "__main__":
    main(lambda case: measured(case, 5, run))
