"""A worker's end of the pipes to its supervisor."""

from __future__ import annotations

import faulthandler
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import attrs

from tinyllm.supervisor.messages import Assignment, Leaving, ToSupervisor, decode, encode

PARENT_SECONDS = 2.0
"""How often is looked whether the supervisor is still the parent: a process that the supervisor's had forked may hold
its end of the pipe open after it died."""

MAX_WRITE = 4096
"""Bytes: what is not longer goes into a pipe whole, or not at all."""


class Channel:
    """Takes stdin and stdout for itself. What nodes print goes to stderr from then on, and they find nothing to read.

    Messages come in a thread, so that a blocked event loop does not keep the end of the supervisor from being noticed.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._in, self._out = os.dup(0), os.dup(1)
        os.set_blocking(self._out, False)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        self._end_in = 0.0
        self._lines = self._read()

    def assignment(self) -> Assignment | None:
        """The first message; None if the supervisor is gone already."""
        for line in self._lines:
            first = decode(line)
            assert isinstance(first, Assignment)
            return first
        return None

    def listen(self, heard: Callable[[Any], None], *, grace: float, hang_seconds: float) -> None:
        """Call `heard` with each message from now on, in a thread, and with None at the supervisor's end; `grace`
        seconds after that the process ends, whatever it does. Where a node lets no thread of Python's have a turn, so
        that the end is not seen, it ends when the supervisor would have ended it."""
        self._end_in = max(grace, hang_seconds) + 2 * PARENT_SECONDS

        def act() -> None:
            for line in self._lines:
                heard(decode(line))
            self._end_in = grace
            self._alarm()
            heard(None)

        threading.Thread(target=act, name="tinyllm supervisor's messages", daemon=True).start()

    def tell(self, message: ToSupervisor) -> None:
        """Tell the supervisor, without waiting: one that does not listen, because it is stopped or gone, misses it."""
        line = encode(message)
        if len(line) > MAX_WRITE and isinstance(message, Leaving):
            line = encode(attrs.evolve(message, text=message.text[: MAX_WRITE // 8]))
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._out, line)

    def _alarm(self) -> None:
        # A thread of C's, which needs no turn of the interpreter.
        faulthandler.dump_traceback_later(self._end_in, exit=True)

    def _read(self) -> Iterator[bytes]:
        buffer = b""
        while True:
            if self._end_in:
                self._alarm()
            ready, _, _ = select.select([self._in], [], [], PARENT_SECONDS)
            if not ready:
                if os.getppid() != self._parent:
                    return
                continue
            got = os.read(self._in, 65536)
            if not got:
                return
            *lines, buffer = (buffer + got).split(b"\n")
            yield from lines
