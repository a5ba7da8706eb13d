"""W10: one node, `n` in parallel, and one that joins them, while another task looks how long it waits for the loop."""

from __future__ import annotations

from common import Case, Clock, Figures, main
from tinyllm import GraphBuilder
from with_tinyllm import Stalls, executing, measuring


async def spread(width: int) -> list[int]:
    return list(range(width))


async def work(item: int) -> int:
    return item


async def gather(items: list[int]) -> int:
    return len(items)


async def run_wide(case: Case) -> Figures:
    builder = GraphBuilder("wide").edge(spread, work, for_each=True).edge(work, gather)
    stalls = Stalls()
    async with executing(builder.node(gather, join="all").build(), case) as executor, stalls.watching():
        with Clock() as clock:
            response = await executor.execute(case.n)
    assert response.nodes_executed == case.n + 2
    return {"us_per_node": clock.seconds / response.nodes_executed * 1e6, **stalls.figures()}


if __name__ == "__main__":
    main(measuring(run_wide, warm_up=100))
