"""W1 on LangGraph: a chain of `n` trivial nodes over a state of 200 bytes; the wall time of one run by its nodes.

The nodes are a cycle of ten and not `n` of them: a checkpoint of LangGraph names every node that ever ran, so a chain
of 1,000 different nodes costs it about a third more. Nine of ten edges are plain ones, which are its cheapest.
"""

from __future__ import annotations

from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from common import Case, Clock, Figures, main
from with_langgraph import measured, opened, options, pragmas

NODES = 10


class State(TypedDict):
    count: int
    text: str


async def step(state: State) -> dict[str, int]:
    return {"count": state["count"] + 1}


def chain(n: int) -> StateGraph:
    builder = StateGraph(State)
    names = [f"step{i}" for i in range(NODES)]
    builder.add_sequence([(name, step) for name in names])
    builder.add_edge(START, names[0])
    builder.add_conditional_edges(names[-1], lambda state: END if state["count"] >= n else names[0])
    return builder


async def run(case: Case) -> Figures:
    async with opened(case.mode, case.folder) as saver:
        graph = chain(case.n).compile(checkpointer=saver)
        with Clock() as clock:
            end = await graph.ainvoke({"count": 0, "text": "x" * 200}, **options(case.mode))
        assert end["count"] == case.n, "n must be a multiple of ten"
        return {"us_per_node": clock.seconds / case.n * 1e6, **await pragmas(saver)}


if __name__ == "__main__":
    main(lambda case: measured(case, 50, run))
