"""W5: `n` steps that count, beside a variable of 5 MiB of nested JSON: each step looks into it, none changes it.

`us_per_node` is of the whole: that the constant is recorded once is in it. `us_per_step` is from the start of the first
node on.
"""

from __future__ import annotations

import json
from time import perf_counter
from typing import Any

from common import Case, Clock, Figures, main
from tinyllm import NodeContext, Result
from with_tinyllm import executing, loop, measuring, noise

CHAPTERS, PAGES, SIZE = 80, 64, 1024 - 40


def library() -> dict[str, Any]:
    texts = iter(noise(CHAPTERS * PAGES, SIZE))
    return {
        f"chapter {chapter}": [{"page": page, "read": False, "text": next(texts)} for page in range(PAGES)]
        for chapter in range(CHAPTERS)
    }


async def run_constant(case: Case) -> Figures:
    started = 0.0

    async def count(left: int, context: NodeContext) -> Result:
        nonlocal started
        started = started or perf_counter()
        page = context.variables["library"][f"chapter {left % CHAPTERS}"][left % PAGES]
        return Result(left - 1, set={"counter": page["page"]}, goto="step" if left > 1 else None)

    constant = library()
    async with executing(loop(count), case) as executor:
        with Clock() as clock:
            await executor.execute(case.n, variables={"library": constant})
            ended = perf_counter()
    return {
        "us_per_node": clock.seconds / case.n * 1e6,
        "us_per_step": (ended - started) / case.n * 1e6,
        "payload_bytes": len(json.dumps(constant)),
    }


if __name__ == "__main__":
    main(measuring(run_constant, warm_up=100))
