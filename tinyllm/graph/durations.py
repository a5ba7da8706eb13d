"""Lengths of time as people write them: `250ms`, `30s`, `5m`, `1.5h`, `2d`."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

from tinyllm.graph.findings import shown

_UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
"""In seconds; decimal, so that `0.1h` is 360 seconds and not a hair more."""

LATEST = 2.2e11
"""UTC seconds since 1970, in the year 8941. Nobody means a later time, and soon behind it there are no dates."""

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_DURATION = re.compile(f"({_NUMBER})({'|'.join(_UNITS)})")

LONGEST = 36_500 * 86_400.0
"""Seconds. Beyond a century it is a slip of the pen, and clocks stop adding up."""


def parse_duration(text: Any) -> float:
    """The seconds that `text` stands for.

    :raises ValueError: it is no duration; the message says how one is written.
    """
    if not isinstance(text, str) or not (written := _DURATION.fullmatch(text)):
        hint = f"; write `{text}s`" if not isinstance(text, bool) and re.fullmatch(_NUMBER, str(text)) else ""
        raise ValueError(f"must be a duration such as `30s`, `5m`, `1.5h` or `250ms`, not {shown(text)}{hint}")
    seconds = float(Decimal(written[1]) * _UNITS[written[2]])
    if seconds > LONGEST:
        raise ValueError(f"must be at most a century, `36500d`, not {shown(text)}")
    return seconds


def duration_text(seconds: float) -> str:
    """What `parse_duration` reads as exactly `seconds`; it refuses it where `seconds` is no length of time."""
    return f"{Decimal(repr(seconds)).normalize():f}s"
