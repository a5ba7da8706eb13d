"""What is known of the deaths at which a trace ran, as a supervisor keeps it with the trace."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import msgspec

from tinyllm.graph.durations import LATEST


@attrs.frozen(kw_only=True)
class Death:
    """A process died that executed the trace."""

    at: float
    """UTC seconds since 1970."""
    cause: str
    within: bool
    """Something that ran in the process did it."""
    pid: int
    beside: int
    """How many other traces it executed."""
    step: int
    """Where the trace was, as far as that was durable."""


def encode_deaths(deaths: Sequence[Death]) -> bytes:
    """As it is kept in `TraceRecord.deaths`."""
    return msgspec.json.encode(deaths)


def decode_deaths(stored: bytes | None) -> tuple[Death, ...]:
    """`TraceRecord.deaths`, the first death first; what makes no sense is none."""
    if stored is None:
        return ()
    try:
        found = msgspec.json.decode(stored, type=tuple[Death, ...])
    except msgspec.DecodeError:
        return ()
    return tuple(death for death in found if 0 <= death.at <= LATEST)
