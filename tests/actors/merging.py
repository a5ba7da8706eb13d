"""Two deltas as one, for tests."""

from __future__ import annotations

from tinyllm.actors.merge import Merged
from tinyllm.storage.contract import Delta


def merge(earlier: Delta, later: Delta) -> Delta:
    """The delta that does what `earlier` and then `later` do; both are of one trace and epoch."""
    merged = Merged(earlier)
    merged.add(later)
    return merged.delta()
