"""W3 on DBOS: `n` workflows of 50 trivial steps at once; steps a second, and how long the event loop stood."""

from __future__ import annotations

import asyncio

from dbos import DBOS

from common import Case, Clock, Figures, main
from stalls import stalls
from with_dbos import measured

STEPS = 50


@DBOS.step()
async def step(text: str) -> str:
    return text


@DBOS.workflow()
async def chain() -> str:
    text = "x" * 200
    for _ in range(STEPS):
        text = await step(text)
    return text


async def run(case: Case) -> Figures:
    figures: Figures = {}
    async with stalls(figures):
        with Clock() as clock:
            await asyncio.gather(*(chain() for _ in range(case.n)))
    nodes = case.n * STEPS
    return figures | {"us_per_node": clock.seconds / nodes * 1e6, "steps_per_second": nodes / clock.seconds}


if __name__ == "__main__":
    main(lambda case: measured(case, 2, run))
