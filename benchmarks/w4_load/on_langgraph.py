"""W4 on LangGraph: a thread of `n` messages of 1 KiB is opened anew: until a node starts, and until all are read.

A new connection and a new graph each time, as after a restart, both made before the clock starts; the medians of five.
LangGraph reads the newest state whole before a node starts; with the `DeltaChannel` it folds what was written since
its last snapshot. The thread is made with the durability `exit` for the plain reducer, which writes its list once and
leaves the smallest file; the delta needs its steps.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

from langgraph.graph import END, START, StateGraph

from common import Case, Clock, Figures, main
from with_langgraph import growing, measured, opened, options, pragmas

started: list[float] = []


async def step(state: dict[str, Any]) -> dict[str, Any]:
    started.append(time.perf_counter())
    message = {"by": "assistant", "text": f"{state['left']:08}" + "m" * 1016}
    return {"items": [message], "left": state["left"] - 1}


def graph(mode: str) -> StateGraph:
    builder = StateGraph(growing(mode))
    builder.add_node("step", step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", lambda state: "step" if state["left"] else END)
    return builder


async def first_node(mode: str, folder: Path) -> float:
    async with opened(mode, folder) as saver:
        compiled = graph(mode).compile(checkpointer=saver)
        started.clear()
        asked = time.perf_counter()
        await compiled.ainvoke({"left": 1}, **options(mode, "thread"))
    return started[0] - asked


async def all_read(mode: str, folder: Path) -> float:
    async with opened(mode, folder) as saver:
        compiled = graph(mode).compile(checkpointer=saver)
        with Clock() as clock:
            state = await compiled.aget_state(options(mode, "thread")["config"])
            texts = [message["text"] for message in state.values["items"]]
    assert texts
    return clock.seconds


async def run(case: Case) -> Figures:
    writing = case.mode if case.mode.endswith("-delta") else "exit"
    async with opened(case.mode, case.folder) as saver:
        compiled = graph(case.mode).compile(checkpointer=saver)
        await compiled.ainvoke({"items": [], "left": case.n}, **options(writing, "thread"))
        found = await pragmas(saver)
    return {
        "first_node_ms": median([await first_node(case.mode, case.folder) for _ in range(5)]) * 1e3,
        "all_read_ms": median([await all_read(case.mode, case.folder) for _ in range(5)]) * 1e3,
        **found,
    }


if __name__ == "__main__":
    main(lambda case: measured(case, 20, run))
