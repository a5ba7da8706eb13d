"""Which owners are dead, as far as others than their parents can tell. Pure: whoever asks says what time it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import attrs

from tinyllm.actors.lease import TTL
from tinyllm.storage.contract import Lease

PARENT_SECONDS = 0.9
"""How long the parent of a dead process has to say why it died, which nobody else knows."""


@attrs.define
class _Seen:
    lease: Lease
    since: float


@attrs.define
class Absent:
    """Remembers what was seen of each lease, and since when it is as it is."""

    _seen: dict[str, _Seen] = attrs.field(factory=dict)

    def dead(self, leases: Iterable[Lease], ours: Collection[str], now: float) -> list[Lease]:
        """Those that are dead by now. `ours`: whose death is for somebody here to see. `now`: seconds, rising."""
        last, self._seen = self._seen, {}
        found = []
        for lease in leases:
            if lease.id in ours:
                continue
            seen = last.get(lease.id)
            if seen is None or (seen.lease.alive, seen.lease.beat) != (lease.alive, lease.beat):
                seen = _Seen(lease, now)
            self._seen[lease.id] = seen
            # Else only its lease tells, which is not renewed, by our own clock: it cannot be seen from here; or it is
            # stopped, and nobody is there who would end it.
            if now - seen.since >= (PARENT_SECONDS if lease.alive is False else TTL):
                found.append(lease)
        return found
