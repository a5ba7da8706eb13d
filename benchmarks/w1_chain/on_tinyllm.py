"""W1: a chain of `n` nodes that each pass on a text of 200 bytes; they do nothing else, so all time is the engine's."""

from __future__ import annotations

from common import Case, Clock, Figures, main
from with_tinyllm import executing, measuring

from tinyllm import Graph, GraphBuilder


async def step(state: str) -> str:
    return state


def chain(n: int) -> Graph:
    builder = GraphBuilder("chain")
    for index in range(n):
        builder.node(step, id=f"n{index}")
    return builder.chain(*[f"n{index}" for index in range(n)]).build()


async def run_chain(case: Case) -> Figures:
    async with executing(chain(case.n), case) as executor:
        with Clock() as clock:
            await executor.execute("x" * 200)
    return {"us_per_node": clock.seconds / case.n * 1e6, "payload_bytes": case.n * 200}


if __name__ == "__main__":
    main(measuring(run_chain, warm_up=100))
