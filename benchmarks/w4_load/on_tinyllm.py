"""W4: a trace of `n` steps with a message of 1 KiB each was interrupted. How long it takes, in an executor and a store
that are opened anew as after a restart, from asking for its resume until its next node starts; and how long to read all
its messages. The medians of five. Modes: `sync`, `async`, `interval`, as the trace was made.
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

from common import Case, Clock, Figures, main
from tinyllm import Executor, Result
from with_tinyllm import executing, loop, measuring, opened

SIZE = 1024
MESSAGE = "m" * SIZE
TRACE = "interrupted"


async def run_load(case: Case) -> Figures:
    executor: Executor
    left, started = case.n, 0.0

    async def say(_: str) -> Result:
        nonlocal left, started
        started = perf_counter()
        left -= 1
        if left == 0:
            executor.stop()
        return Result(MESSAGE, goto="step")

    graph = loop(say)
    async with executing(graph, case) as executor:
        await executor.execute(MESSAGE, trace_id=TRACE)
    first, read = [], []
    for _ in range(5):
        left = 1
        async with executing(graph, case) as executor:
            asked = perf_counter()
            await executor.resume_from_checkpoint(TRACE)
            first.append(started - asked)
        async with opened(case.mode, case.folder) as storage:
            with Clock() as clock:
                newest = await storage.get_latest_checkpoint(graph.id, TRACE)
                messages = list(newest.messages)
            read.append(clock.seconds)
    return {
        "first_node_ms": median(first) * 1000,
        "all_read_ms": median(read) * 1000,
        "payload_bytes": len(messages) * SIZE,
    }


if __name__ == "__main__":
    main(measuring(run_load, warm_up=50))
