"""Variables that are written over and over: what that costs, and when to say so. Pure; beside `plan.py`."""

from __future__ import annotations

TIMES = 10
"""A key that was written with this many times the bytes of its value costs more than it holds."""

NOTICEABLE = 4096
"""Bytes: smaller values may be written as often as one likes."""


class WriteCounter:
    """What was written of each variable, as full values, since this process has the trace."""

    def __init__(self) -> None:
        self._written: dict[str, int | None] = {}
        """By key; None once it was said."""

    def wrote(self, key: str, size: int) -> int | None:
        """Count a full value of `size` bytes. The bytes written so far if this is the moment to say something, which
        comes once for each key; else None."""
        if size < NOTICEABLE or (before := self._written.get(key, 0)) is None:
            return None
        written = before + size
        tells = written > TIMES * size
        self._written[key] = None if tells else written
        return written if tells else None
