"""When a run must act although nobody told it anything. Pure; beside `run.py`."""

from __future__ import annotations

from typing import Literal

Alarm = Literal["drain", "look", "retry", "limit"]
"""Cancel what still runs after a failure; look whether the lease was renewed; try again what failed; the time of the
trace is over."""


class Alarms:
    """All times are the event loop's, in seconds. `limit` bounds the time of execution, of which `elapsed` have passed
    in earlier processes."""

    def __init__(self, limit: float | None, elapsed: float) -> None:
        self._limit = limit
        self._elapsed = elapsed
        self._began = 0.0
        self.drain_at: float | None = None
        self.look_at: float | None = None
        self.retry_at: float | None = None
        self.limited = limit is not None
        """Whether the limit still matters: not once the trace fails or has ended."""

    def begin(self, now: float) -> None:
        self._began = now

    def elapsed(self, now: float) -> float:
        """Seconds of execution, over all processes."""
        return self._elapsed + now - self._began

    def next(self) -> tuple[float, Alarm] | None:
        """The earliest."""
        if self.drain_at is self.look_at is self.retry_at is None and not self.limited:
            return None
        found: list[tuple[float, Alarm]] = []
        if self.drain_at is not None:
            found.append((self.drain_at, "drain"))
        if self.look_at is not None:
            found.append((self.look_at, "look"))
        if self.retry_at is not None:
            found.append((self.retry_at, "retry"))
        if self.limited and self._limit is not None:
            found.append((self._began + self._limit - self._elapsed, "limit"))
        return min(found, default=None)
