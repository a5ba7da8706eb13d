"""Lets through one at a time those who would all begin in the same turn of the event loop."""

from __future__ import annotations

import time

import anyio

APART_SECONDS = 0.001
"""Who comes so long after the last one need not wait for a turn: the loop has had some."""


class Turnstile:
    """To begin something costs about as much as a few nodes. A thousand traces that are asked for at once would keep
    the loop for half a second; so each waits for its turn, and what runs already goes on in between."""

    def __init__(self) -> None:
        self._gate = anyio.Lock()
        self._passed = 0.0

    async def wait(self) -> None:
        """Return when it is one's turn; what is then done without waiting is all that is done in this turn here."""
        if self._gate.locked() or time.perf_counter() - self._passed < APART_SECONDS:
            async with self._gate:  # who gets it is woken in a turn of its own
                pass
        self._passed = time.perf_counter()
