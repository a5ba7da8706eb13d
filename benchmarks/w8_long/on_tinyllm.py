"""W8: one trace of `n` steps (1,000 or more) that keeps 100 checkpoints and a history of 100 messages: whether its last
1,000 steps cost what its first 1,000 did, in time (`us_per_step`), memory and disk.

`prune_debt` is how many checkpoints are there beyond those that are kept when the executor has closed,
`prune_debt_at_return` when `execute()` has returned. `prune_share` is the processor's time for pruning and for giving
pages back, over the time of the run; `prune_share_elapsed` is the same by the clock, with the waits for the interpreter
lock, during which the run goes on. Both are taken where the storage prunes. (To compare with a run that keeps all of
its checkpoints would tell nothing: that one writes more, and two runs differ by more than pruning takes.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter, thread_time
from typing import Any

from common import Case, Clock, Figures, disk_bytes, main
from tinyllm import CheckpointStorage, Executor, ExecutorConfig, Graph, Result
from tinyllm.storage import memory
from tinyllm.storage.sqlite import prune
from tinyllm.storage.sqlite.store import SQLiteCheckpointStorage
from with_tinyllm import SETTINGS, loop, measuring, opened, rss_bytes

KEPT = 100
STRETCH = 1000
TRACE = "long"


class Watch:
    """Seconds that calls took, and how many of them were spent on a processor."""

    def __init__(self) -> None:
        self.elapsed = self.cpu = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began, began_cpu = perf_counter(), thread_time()
            try:
                return function(*args)
            finally:
                self.elapsed += perf_counter() - began
                self.cpu += thread_time() - began_cpu

        return call


@contextmanager
def pruning() -> Iterator[Watch]:
    """Times what stores do to prune and to give pages back, in whatever thread."""
    watch = Watch()
    places = ((prune, "prune"), (memory, "prune"), (SQLiteCheckpointStorage, "_reclaim"))
    own = [getattr(place, name) for place, name in places]
    for (place, name), function in zip(places, own, strict=True):
        setattr(place, name, watch.timed(function))
    try:
        yield watch
    finally:
        for (place, name), function in zip(places, own, strict=True):
            setattr(place, name, function)


async def run_long(case: Case) -> Figures:
    looks: list[tuple[float, int, int]] = []

    async def say(left: int) -> Result:
        if (case.n - left) % STRETCH == 0:
            looks.append((perf_counter(), rss_bytes(), disk_bytes(case.folder)))
        return Result(left - 1, goto="step" if left else None)

    graph = loop(say, history=f"window({KEPT})")
    config = ExecutorConfig(**SETTINGS[case.mode], max_checkpoints_per_trace=KEPT)
    async with opened(case.mode, case.folder) as storage:
        with Clock() as clock, pruning() as pruned:
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
        "prune_share": pruned.cpu / clock.seconds,
        "prune_share_elapsed": pruned.elapsed / clock.seconds,
    }


async def debt(storage: CheckpointStorage | None, graph: Graph) -> int:
    if storage is None:
        return 0
    listed = await storage.list_checkpoints(graph.id, TRACE)
    return max(len(listed) - (KEPT + 1), 0)  # the first one stays, too


if __name__ == "__main__":
    main(measuring(run_long, warm_up=STRETCH))
