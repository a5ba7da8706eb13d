"""Lets through one at a time those who would all begin in the same turn of the event loop."""

from __future__ import annotations

import time

import anyio
import anyio.lowlevel

APART_SECONDS = 0.001
"""Who comes so long after the last one need not wait: the loop has had some turns."""

LONG_SECONDS = 0.005
"""What the turns may take together: where others keep the loop that long, it is not for us to wait for more."""


class Turnstile:
    """To begin something costs about as much as a few nodes. A thousand traces that are asked for at once would keep
    the loop for half a second; so each waits for some `turns` of the loop, in which what has begun goes on.

    Turns, not a time: while nobody else wants the loop, they are over at once.
    """

    def __init__(self, turns: int = 1) -> None:
        self._turns = turns
        self._gate = anyio.Lock(fast_acquire=True)
        self._passed = 0.0

    async def wait(self) -> None:
        """Return when it is one's turn; what is then done without waiting is all that is done in this turn here."""
        if self._gate.locked() or time.perf_counter() - self._passed < APART_SECONDS:
            async with self._gate:
                for _ in range(self._turns):
                    await anyio.lowlevel.checkpoint()
                    if time.perf_counter() - self._passed > LONG_SECONDS:
                        break
        self._passed = time.perf_counter()
