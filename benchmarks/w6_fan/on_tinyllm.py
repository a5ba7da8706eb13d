"""W6: `n` rounds of one node, 50 in parallel, and one that joins them and begins the next round."""

from __future__ import annotations

from common import Case, Clock, Figures, main
from tinyllm import Graph, GraphBuilder, Result
from with_tinyllm import executing, measuring

WIDTH = 50


async def spread(left: int) -> list[int]:
    return [left] * WIDTH


async def work(left: int) -> int:
    return left


async def gather(lefts: list[int]) -> Result:
    return Result(lefts[0] - 1, goto="spread" if lefts[0] > 1 else None)


def rounds() -> Graph:
    builder = GraphBuilder("rounds", allow_cycles=True).edge(spread, work, for_each=True).edge(work, gather)
    return builder.node(gather, join="all", targets=spread).entry(spread).exit(gather).build()


async def run_rounds(case: Case) -> Figures:
    async with executing(rounds(), case) as executor:
        with Clock() as clock:
            response = await executor.execute(case.n)
    assert response.nodes_executed == case.n * (WIDTH + 2)
    return {"us_per_node": clock.seconds / response.nodes_executed * 1e6}


if __name__ == "__main__":
    main(measuring(run_rounds, warm_up=2))
