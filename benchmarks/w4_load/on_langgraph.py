"""W4 on LangGraph: a thread of `n` messages of 1 KiB is opened anew: until a node starts, and until all are read.

A new connection and a new graph each time, as after a restart. LangGraph reads the newest state whole before a node
starts; with the `DeltaChannel` it folds what was written since the last snapshot. The thread is made with the
durability `exit` for the plain reducer, which writes its list once and leaves the smallest file; the delta needs its steps.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from langgraph.graph import END, START, StateGraph

from common import Case, Figures, main
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
    started.clear()
    began = time.perf_counter()
    async with opened(mode, folder) as saver:
        await graph(mode).compile(checkpointer=saver).ainvoke({"left": 1}, **options(mode, "thread"))
    return started[0] - began


async def all_read(mode: str, folder: Path) -> float:
    began = time.perf_counter()
    async with opened(mode, folder) as saver:
        state = await graph(mode).compile(checkpointer=saver).aget_state(options(mode, "thread")["config"])
        messages = [message["text"] for message in state.values["items"]]
        ended = time.perf_counter()
    assert messages
    return ended - began


async def run(case: Case) -> Figures:
    writing = case.mode if case.mode.endswith("-delta") else "exit"
    async with opened(case.mode, case.folder) as saver:
        compiled = graph(case.mode).compile(checkpointer=saver)
        await compiled.ainvoke({"items": [], "left": case.n}, **options(writing, "thread"))
        found = await pragmas(saver)
    return {
        "all_read_ms": await all_read(case.mode, case.folder) * 1e3,
        "first_node_ms": await first_node(case.mode, case.folder) * 1e3,
        **found,
    }


if __name__ == "__main__":
    main(lambda case: measured(case, 20, run))
