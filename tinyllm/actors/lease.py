"""The lease keeper: says, from a thread of its own, that this process is alive."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tinyllm.errors import StorageError
from tinyllm.storage.contract import CheckpointStorage, Owner
from tinyllm.storage.owners import boottime, let_go
from tinyllm.storage.thread import DedicatedThread

logger = logging.getLogger(__name__)

TTL = 30.0
"""Seconds: an owner whose lease is older than this may be taken for dead by those who cannot see its process."""

RENEW_EVERY = 10.0
RETRY_EVERY = 1.0

MARGIN = 5.0
"""Seconds before its end in which the owner starts nothing: what starts then could run beside the next owner's."""


class LeaseKeeper:
    """Renews `owner`'s lease from a thread: a blocked event loop does not lose it (that is the watchdog's business)."""

    def __init__(self, storage: CheckpointStorage, owner: Owner) -> None:
        self.owner = owner
        self._storage = storage
        self._ends_at = 0.0
        self._abandoned = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {owner.id}", daemon=True)

    def may_start(self) -> bool:
        """Whether the lease is long enough for something new to start."""
        return boottime() < self._ends_at - MARGIN

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold the lease; at the end remove it.

        :raises StorageError: it cannot be written at all.
        """
        await self._call(self._renew)
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            await self._call(self._end)

    def abandon(self) -> None:
        """Leave the lease where it is, as if this process had died: the store did not take all that was handed over,
        and whoever goes on must see how much that was."""
        self._abandoned = True

    async def _call(self, function: Callable[[], None]) -> None:
        """Call it in a thread, and wait for it whatever happens: bounded, by the store's busy time-out. (asyncio's own
        cancellation would leave a call in a thread pool to go on alone: a lease that nobody removes.)"""
        caller = DedicatedThread(f"lease of {self.owner.id}")
        caller.start()
        try:
            await caller.call(function)
        finally:
            caller.stop()

    def _renew(self) -> None:
        began = boottime()  # the lease counts from before the write, in case it takes long
        self._storage.renew(self.owner)
        self._ends_at = began + TTL

    def _keep(self) -> None:
        fails = False
        while not self._over.wait(RETRY_EVERY if fails else RENEW_EVERY):
            try:
                self._renew()
            except StorageError as error:
                if not fails:  # it will go on failing: once is enough to say so
                    logger.warning("the lease on %s could not be renewed: %s", self._storage.name, error)
                fails = True
            else:
                if fails:
                    logger.warning("the lease on %s is renewed again", self._storage.name)
                fails = False

    def _end(self) -> None:
        self._thread.join()
        if self._abandoned:
            let_go(self.owner.id)
            return
        try:
            self._storage.retire(self.owner)
        except StorageError as error:
            logger.warning("the lease on %s could not be removed: %s", self._storage.name, error)
