"""W3: `n` traces of 50 nodes at once, while another task of the program looks how long it has to wait for the loop."""

from __future__ import annotations

import anyio

from common import Case, Clock, Figures, main
from with_tinyllm import Stalls, chain, executing, measuring

NODES = 50


async def run_many(case: Case) -> Figures:
    stalls = Stalls()
    async with executing(chain(NODES), case) as executor, stalls.watching():
        with Clock() as clock:
            async with anyio.create_task_group() as tasks:
                for _ in range(case.n):
                    tasks.start_soon(executor.execute, "x" * 200)
    steps = case.n * NODES
    return {
        "us_per_node": clock.seconds / steps * 1e6,
        "steps_per_second": steps / clock.seconds,
        **stalls.figures(),
    }


if __name__ == "__main__":
    main(measuring(run_many, warm_up=5))
