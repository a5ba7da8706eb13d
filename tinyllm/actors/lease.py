"""The lease keeper: says, from a thread of its own, that this process is alive."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from tinyllm.errors import StorageError
from tinyllm.storage.contract import CheckpointStorage, Owner

logger = logging.getLogger(__name__)

TTL = 30.0
"""Seconds: an owner whose lease is older than this may be taken for dead by those who cannot see its process."""

RENEW_EVERY = 10.0
RETRY_EVERY = 1.0

MARGIN = 5.0
"""Seconds before its end in which the owner starts nothing: what starts then could run beside the next owner's."""


def clock() -> float:
    """Seconds that also pass while the machine sleeps; the monotonic clock stops then, and a lease would not end."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class LeaseKeeper:
    """Renews `owner`'s lease from a thread: a blocked event loop does not lose it (that is the watchdog's business)."""

    def __init__(self, storage: CheckpointStorage, owner: Owner) -> None:
        self.owner = owner
        self._storage = storage
        self._ends_at = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {owner.id}", daemon=True)

    def may_start(self) -> bool:
        """Whether the lease is long enough for something new to start."""
        return clock() < self._ends_at - MARGIN

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the lease; at the end remove it.

        :raises StorageError: it cannot be written at all.
        """
        await anyio.to_thread.run_sync(self._renew)
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            with anyio.CancelScope(shield=True):  # bounded: a renewal ends with the store's busy time-out
                await anyio.to_thread.run_sync(self._end)

    def _renew(self) -> None:
        began = clock()  # the lease counts from before the write, in case it takes long
        self._storage.renew(self.owner)
        self._ends_at = began + TTL

    def _keep(self) -> None:
        wait = RENEW_EVERY
        while not self._over.wait(wait):
            try:
                self._renew()
                wait = RENEW_EVERY
            except StorageError as error:
                logger.warning("the lease on %s could not be renewed: %s", self._storage.name, error)
                wait = RETRY_EVERY

    def _end(self) -> None:
        self._thread.join()
        try:
            self._storage.retire(self.owner)
        except StorageError as error:
            logger.warning("the lease on %s could not be removed: %s", self._storage.name, error)
