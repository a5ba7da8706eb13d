"""W8: one trace of `n` steps (1,000 or more) that keeps 100 checkpoints and a history of 100 messages: whether its last
1,000 steps cost what its first 1,000 did, in time (`us_per_step`), memory and disk.

`prune_debt` is how many checkpoints are there beyond those that are kept when the executor has closed,
`prune_debt_at_return` when `execute()` has returned. `prune_share` is the part of the time that pruning takes: the
same trace is made again, in another store, and keeps all of its checkpoints.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

from common import Case, Clock, Figures, disk_bytes, main
from tinyllm import CheckpointStorage, Executor, ExecutorConfig, Graph, Result
from with_tinyllm import SETTINGS, loop, measuring, opened, rss_bytes

KEPT = 100
STRETCH = 1000
TRACE = "long"


async def run_steps(case: Case, kept: int) -> Figures:
    looks: list[tuple[float, int, int]] = []

    async def say(left: int) -> Result:
        if (case.n - left) % STRETCH == 0:
            looks.append((perf_counter(), rss_bytes(), disk_bytes(case.folder)))
        return Result(left - 1, goto="step" if left else None)

    graph = loop(say, history=f"window({KEPT})")
    config = ExecutorConfig(**SETTINGS[case.mode], max_checkpoints_per_trace=kept)
    async with opened(case.mode, case.folder) as storage:
        with Clock() as clock:
            async with Executor(graph, config, storage) as executor:
                await executor.execute(case.n, trace_id=TRACE)
                returned = perf_counter()
                debt_at_return = await debt(storage, graph)
        debt_at_end = await debt(storage, graph)
    times, rss, disk = zip(*looks, strict=True)
    return {
        "us_per_node": (returned - times[0]) / case.n * 1e6,
        "us_per_step_first": (times[1] - times[0]) / STRETCH * 1e6,
        "us_per_step": (times[-1] - times[-2]) / STRETCH * 1e6,
        "rss_bytes_first": rss[1],
        "rss_bytes": rss[-1],
        "disk_bytes_first": disk[1],
        "disk_bytes_most": max(disk),
        "prune_debt_at_return": debt_at_return,
        "prune_debt": debt_at_end,
        "seconds": clock.seconds,
    }


async def debt(storage: CheckpointStorage | None, graph: Graph) -> int:
    if storage is None:
        return 0
    listed = await storage.list_checkpoints(graph.id, TRACE)
    return max(len(listed) - (KEPT + 1), 0)  # the first one stays, too


async def run_long(case: Case) -> Figures:
    figures = await run_steps(case, KEPT)
    if case.mode != "none":
        all_kept = await run_steps(replace(case, folder=case.folder.with_name(f"{case.folder.name}-all")), case.n + 2)
        figures["prune_share"] = 1 - float(all_kept["seconds"]) / float(figures["seconds"])
    return figures


if __name__ == "__main__":
    main(measuring(run_long, warm_up=STRETCH))
