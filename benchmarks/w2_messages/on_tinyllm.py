"""W2: `n` steps, each of which adds a message of 1 KiB to the history."""

from __future__ import annotations

from common import Case, Clock, Figures, main
from tinyllm import Result
from with_tinyllm import executing, loop, measuring

SIZE = 1024


async def say(message: str) -> Result:
    left = int(message.split(maxsplit=1)[0]) - 1
    return Result(f"{left} ".ljust(SIZE, "m"), goto="step" if left else None)


async def run_messages(case: Case) -> Figures:
    async with executing(loop(say), case) as executor:
        with Clock() as clock:
            await executor.execute(f"{case.n} ".ljust(SIZE, "m"))
    return {"us_per_node": clock.seconds / case.n * 1e6, "payload_bytes": (case.n + 1) * SIZE}


if __name__ == "__main__":
    main(measuring(run_messages, warm_up=100))
