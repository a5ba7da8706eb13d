"""W3 on LangGraph: `n` traces of 50 trivial nodes at once, with one saver; steps a second, and stalls of the loop."""

from __future__ import annotations

import asyncio
from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from common import Case, Clock, Figures, main
from stalls import stalls
from with_langgraph import measured, opened, options, pragmas

STEPS = 50


class State(TypedDict):
    count: int
    text: str


async def step(state: State) -> dict[str, int]:
    return {"count": state["count"] + 1}


async def run(case: Case) -> Figures:
    builder = StateGraph(State)
    builder.add_sequence([(f"step{i}", step) for i in range(STEPS)])
    builder.add_edge(START, "step0")
    builder.add_edge(f"step{STEPS - 1}", END)
    figures: Figures = {}
    async with opened(case.mode, case.folder) as saver:
        graph = builder.compile(checkpointer=saver)
        traces = [graph.ainvoke({"count": 0, "text": "x" * 200}, **options(case.mode)) for _ in range(case.n)]
        async with stalls(figures):
            with Clock() as clock:
                ends = await asyncio.gather(*traces)
        assert all(end["count"] == STEPS for end in ends)
        nodes = case.n * STEPS
        return figures | {
            "us_per_node": clock.seconds / nodes * 1e6,
            "steps_per_second": nodes / clock.seconds,
            **await pragmas(saver),
        }


if __name__ == "__main__":
    main(lambda case: measured(case, 2, run))
