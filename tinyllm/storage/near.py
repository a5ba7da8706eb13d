"""What to say of a trace id that no trace has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tinyllm.errors import TraceNotFound

AMONG = 1000
"""Of how many traces, the newest, the ids are compared: with all of a large store's it would take seconds."""


def not_found(trace_id: str, store: str, known: Iterable[str]) -> TraceNotFound:
    """The error, with those of the ids `known` that look like `trace_id`."""
    return TraceNotFound(trace_id, store, difflib.get_close_matches(trace_id, list(known)))
