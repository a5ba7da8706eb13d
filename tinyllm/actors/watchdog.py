"""The watchdog: says when a node blocks the event loop, and where."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tinyllm.nodes.call import users_frames
from tinyllm.storage.thread import loop_caller

logger = logging.getLogger(__name__)

BLOCKED_SECONDS = 1.0
"""A loop that has not turned for so long is reported: everything else in the program stands still meanwhile."""

PING_SECONDS = 0.5


class Watchdog:
    """Asks the loop, from a thread, to answer; where it does not, logs the stack of the loop's thread, once. It sleeps
    while nothing is executed: a process that only waits is not to wake up again and again."""

    def __init__(self) -> None:
        self._awake = threading.Event()
        self._over = threading.Event()

    def wake(self) -> None:
        """Nodes may be executed from now on."""
        self._awake.set()

    def rest(self) -> None:
        """None is, until `wake()`."""
        self._awake.clear()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch the loop that calls this."""
        call_soon, loop_thread = loop_caller(), threading.get_ident()

        def watch() -> None:
            while self._awake.wait() and not self._over.wait(PING_SECONDS):
                asked, answered = time.monotonic(), threading.Event()
                try:
                    call_soon(answered.set)
                except RuntimeError:  # the loop has closed
                    return
                if answered.wait(BLOCKED_SECONDS) or self._over.is_set():
                    continue
                frames = traceback.extract_stack(sys._current_frames().get(loop_thread))
                logger.warning(
                    "the event loop is blocked for %.1f s now (make the node a plain def, or process: true), at:\n%s",
                    time.monotonic() - asked,
                    "".join(traceback.format_list(users_frames(frames) or frames)),
                )
                while not (answered.wait(PING_SECONDS) or self._over.is_set()):
                    pass
                logger.warning("the event loop was blocked for %.1f s", time.monotonic() - asked)

        thread = threading.Thread(target=watch, name="tinyllm watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()  # it ends by itself, at the latest with its present wait
            self._awake.set()
