"""What to do while the store takes no writes: what may pass, and when to try again. Pure; beside `writer.py`."""

from __future__ import annotations

from tinyllm.errors import DatabaseLocked, StorageUnavailable
from tinyllm.storage.contract import Append, Prune, Release, Write

PATIENCE_SECONDS = 120.0
"""How long a store may take no writes before it has failed for good: twice what a backup or a stopped process has been
seen to hold its lock for. What waits meanwhile takes no more memory, however long it waits."""

FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 1.0
"""Between two tries: what has been mended is noticed so soon."""


def pause(error: Exception, lasted: float, tries: int) -> float | None:
    """Seconds until what failed with `error` is tried again, `lasted` seconds after it failed first, and tried again
    `tries` times since; None: it has failed for good."""
    if not isinstance(error, DatabaseLocked | StorageUnavailable) or lasted >= PATIENCE_SECONDS:
        return None
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(tries, 10), LONGEST_PAUSE_SECONDS, PATIENCE_SECONDS - lasted)


def is_repeatable(write: Write) -> bool:
    """Whether it may be committed again when nobody knows if it was: it does nothing twice, and has the same outcome.

    An `Admit`, `Fork` or `Acquire` that was carried out the first time is told that somebody else was quicker.
    """
    return isinstance(write, Append | Release | Prune)
