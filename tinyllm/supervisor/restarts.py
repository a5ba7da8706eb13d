"""When a worker that died is replaced. Pure: whoever asks says what time it is."""

from __future__ import annotations

from collections import deque

import attrs

SHORT_SECONDS = 1.0
"""A worker that dies sooner after it became ready may be followed by one that does so, too."""

FIRST_SECONDS = 0.1
LONGEST_SECONDS = 30.0

DEATHS = 5
WITHIN_SECONDS = 60.0
"""So many deaths that no trace can be blamed for, in so long a time, and the supervisor gives up: it would go on for
ever. (Those that a trace may be blamed for come to an end: it is quarantined.)"""


@attrs.define
class Backoff:
    """How long one slot waits before it starts the next worker: twice as long after each short life."""

    short: int = 0
    """Short lives, one after the other."""

    def after(self, lived: float) -> float:
        """Seconds to wait after a worker that was ready for `lived` seconds (0: never)."""
        if lived >= SHORT_SECONDS:
            self.short = 0
            return 0.0
        self.short += 1
        return float(min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(self.short - 1, 20)))


@attrs.define
class Intensity:
    """Whether workers die too often for no trace's sake."""

    _at: deque[float] = attrs.field(factory=deque)

    def exceeded(self, now: float) -> bool:
        """Count one more death, at `now` (seconds of a clock that only rises)."""
        self._at.append(now)
        while self._at[0] < now - WITHIN_SECONDS:
            self._at.popleft()
        return len(self._at) >= DEATHS
