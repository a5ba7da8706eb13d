"""W1 on DBOS: a workflow of `n` trivial steps that hand on 200 bytes; the wall time of one workflow by its steps."""

from __future__ import annotations

from dbos import DBOS

from common import Case, Clock, Figures, main
from with_dbos import measured


@DBOS.step()
async def step(text: str) -> str:
    return text


@DBOS.workflow()
async def chain(n: int) -> str:
    text = "x" * 200
    for _ in range(n):
        text = await step(text)
    return text


async def run(case: Case) -> Figures:
    with Clock() as clock:
        await chain(case.n)
    return {"us_per_node": clock.seconds / case.n * 1e6}


if __name__ == "__main__":
    main(lambda case: measured(case, 20, run))
