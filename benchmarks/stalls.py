"""How long an asyncio event loop did not come back to a task that only sleeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from common import Figures, percentile

NAP = 0.001


@asynccontextmanager
async def stalls(figures: Figures) -> AsyncIterator[None]:
    """Sleep a millisecond, again and again, while the block runs; into `figures` goes by how much it was overslept."""
    late: list[float] = []

    async def nap() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(NAP)
            late.append(time.perf_counter() - began - NAP)

    napping = asyncio.create_task(nap())
    try:
        yield
        await asyncio.sleep(NAP)  # the last nap ends, however long the block held the loop
    finally:
        napping.cancel()
    figures["stall_p50_ms"] = percentile(late, 50) * 1e3
    figures["stall_p99_ms"] = percentile(late, 99) * 1e3
    figures["stall_max_ms"] = max(late) * 1e3
