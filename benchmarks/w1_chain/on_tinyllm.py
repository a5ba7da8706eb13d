"""W1: a chain of `n` nodes that each pass on a text of 200 bytes."""

from __future__ import annotations

from common import Case, Clock, Figures, main
from with_tinyllm import chain, executing, measuring


async def run_chain(case: Case) -> Figures:
    async with executing(chain(case.n), case) as executor:
        with Clock() as clock:
            await executor.execute("x" * 200)
    return {"us_per_node": clock.seconds / case.n * 1e6, "payload_bytes": case.n * 200}


if __name__ == "__main__":
    main(measuring(run_chain, warm_up=100))
