"""W2 on DBOS: a workflow of `n` steps that each return a message of 1 KiB; wall time by step, and the disk.

DBOS keeps what a step returned and no state, so a workflow holds its messages itself; a resume calls it anew and gives
it what was recorded.
"""

from __future__ import annotations

from dbos import DBOS

from common import Case, Clock, Figures, main
from with_dbos import measured


@DBOS.step()
async def step(number: int) -> dict[str, str]:
    return {"by": "assistant", "text": f"{number:08}" + "m" * 1016}


@DBOS.workflow()
async def talk(n: int) -> int:
    messages = [await step(number) for number in range(n)]
    return len(messages)


async def run(case: Case) -> Figures:
    with Clock() as clock:
        count = await talk(case.n)
    assert count == case.n
    return {"us_per_node": clock.seconds / case.n * 1e6, "payload_bytes": case.n * 1024}


if __name__ == "__main__":
    main(lambda case: measured(case, 20, run))
