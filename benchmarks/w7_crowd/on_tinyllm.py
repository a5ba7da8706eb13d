"""W7: `n` traces of 10 nodes at once; how many steps a second, and whether all of them are served alike."""

from __future__ import annotations

import anyio

from common import Case, Clock, Figures, main, percentile
from tinyllm import Executor
from with_tinyllm import chain, executing, measuring, rss_bytes

NODES = 10


async def run_crowd(case: Case) -> Figures:
    seconds: list[float] = []

    async def one(executor: Executor) -> None:
        with Clock() as clock:
            await executor.execute("x" * 200)
        seconds.append(clock.seconds)

    async with executing(chain(NODES), case) as executor:
        with Clock() as clock:
            async with anyio.create_task_group() as tasks:
                for _ in range(case.n):
                    tasks.start_soon(one, executor)
        rss = rss_bytes()
    steps = case.n * NODES
    return {
        "us_per_node": clock.seconds / steps * 1e6,
        "steps_per_second": steps / clock.seconds,
        "p99_over_p50": percentile(seconds, 99) / percentile(seconds, 50),
        "rss_bytes": rss,
    }


if __name__ == "__main__":
    main(measuring(run_crowd, warm_up=50))
