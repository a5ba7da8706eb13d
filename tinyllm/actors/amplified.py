"""Variables that are written over and over: what that costs, and when to say so. Pure; beside `plan.py`."""

from __future__ import annotations

TIMES = 10
"""A key that was written with this many times the bytes of its value costs more than it holds."""

NOTICEABLE = 4096
"""Bytes: smaller values may be written as often as one likes."""


class WriteCounter:
    """What was written of each variable, as full values, since this process has the trace."""

    def __init__(self) -> None:
        self._written: dict[str, int] = {}
        self._told: set[str] = set()

    def wrote(self, key: str, size: int) -> int | None:
        """Count a full value of `size` bytes. The bytes written so far if this is the moment to say something, which
        comes once for each key; else None."""
        if size < NOTICEABLE or key in self._told:
            return None
        written = self._written[key] = self._written.get(key, 0) + size
        if written <= TIMES * size:
            return None
        self._told.add(key)
        return written
