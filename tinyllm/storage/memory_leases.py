"""The owners of a store in memory: their leases, and how far each was with its traces."""

from __future__ import annotations

from threading import Lock
from time import monotonic

import attrs

from tinyllm.storage import owners
from tinyllm.storage.contract import Owner

_RENEW_EVERY = 1.0
"""Seconds between two renewals by commits."""


@attrs.define(eq=False)
class Lease:
    owner: Owner
    beat: int = 0
    renewed: float = 0.0


@attrs.define(eq=False)
class HighWaterInMemory:
    epoch: int
    mark: tuple[int, int] | None = None

    def note(self, step: int, running: int) -> None:
        self.mark = (step, running)

    def close(self) -> None:
        self.mark = None


class Leases:
    """Any thread may call these: the lease keeper has one of its own."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._leases: dict[str, Lease] = {}
        self._retired: set[str] = set()
        """Those that still have to let go of their traces."""

    def get(self, owner_id: str | None) -> Lease | None:
        return self._leases.get(owner_id) if owner_id is not None else None

    def renew(self, owner: Owner) -> None:
        with self._lock:
            owners.keep(owner.id)
            lease = self._leases.get(owner.id)
            if lease is None:
                lease = self._leases[owner.id] = Lease(owner)
            lease.beat += 1
            lease.renewed = monotonic()

    def renew_if_due(self, owner_id: str) -> None:
        now = monotonic()
        with self._lock:
            lease = self._leases.get(owner_id)
            if lease and now - lease.renewed >= _RENEW_EVERY:
                lease.beat += 1
                lease.renewed = now

    def retire(self, owner: Owner) -> None:
        with self._lock:
            owners.let_go(owner.id)
            self._leases.pop(owner.id, None)
            self._retired.add(owner.id)

    def retired(self) -> set[str]:
        """The owners that were retired since this was last asked."""
        if not self._retired:
            return self._retired
        with self._lock:
            retired, self._retired = self._retired, set()
            return retired

    def clear(self) -> None:
        with self._lock:
            for owner in self._leases:
                owners.let_go(owner)
            self._leases.clear()
