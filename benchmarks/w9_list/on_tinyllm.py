"""W9: a list of 1 MiB that grows by an item of 1 KiB with each of `n` steps.

`before_bytes` is how large the store is with the list as it begins, after one step: what is beyond that was appended.
"""

from __future__ import annotations

from dataclasses import replace

from common import Case, Clock, Figures, disk_bytes, main
from tinyllm import Result
from with_tinyllm import executing, loop, measuring, noise

ITEM, ITEMS = 1024, 1024


async def grow(items: list[str], case: Case) -> float:
    """Seconds that it took."""
    more = iter(items[ITEMS:])

    async def append(left: int) -> Result:
        return Result(left - 1, set={"items": next(more)}, goto="step" if left > 1 else None)

    async with executing(loop(append, variables={"items": "append"}), case) as executor:
        with Clock() as clock:
            await executor.execute(case.n, variables={"items": items[:ITEMS]})
    return clock.seconds


async def run_list(case: Case) -> Figures:
    items = noise(ITEMS + case.n, ITEM)
    seconds = await grow(items, case)
    figures: Figures = {"us_per_node": seconds / case.n * 1e6, "payload_bytes": case.n * ITEM}
    if case.mode in ("none", "memory"):
        return figures
    disk = disk_bytes(case.folder)
    before = replace(case, n=1, folder=case.folder / "before")
    await grow(items, before)
    return figures | {"disk_bytes": disk, "before_bytes": disk_bytes(before.folder)}


if __name__ == "__main__":
    main(measuring(run_list, warm_up=100))
