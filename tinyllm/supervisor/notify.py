"""Tells the service manager how a supervisor is: the protocol of sd_notify(3), without libsystemd.

It is written here because it is one datagram, and what is on PyPI for it either binds libsystemd, which has to be
compiled (systemd-python), or has had no release for years (sdnotify, sd-notify).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

import attrs

logger = logging.getLogger(__name__)

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""They are meant for the process that the service manager started. Whoever starts another process (the supervisor does,
its workers) leaves them out of its environment; they stay in this one's, because the supervisor may live in a program
that tells the service manager things of its own."""


@attrs.frozen
class Notifier:
    """Where the service manager listens, if one does; without it nothing is sent.

    What cannot be sent is not: a service manager that is gone, or does not read, is no reason to stop working.
    """

    address: str | None
    watchdog_seconds: float | None
    """The manager kills the process if it hears no `watchdog()` for so long; None if it does not wait for any."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """As the service manager said to the process that it started."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address.startswith("@"):
            address = f"\0{address[1:]}"
        for_us = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "")
        waits = for_us and microseconds.isdecimal() and int(microseconds) > 0
        return cls(address or None, int(microseconds) / 1e6 if waits else None)

    def ready(self) -> None:
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for people, which `systemctl status` shows."""
        self._send(f"STATUS={' '.join(text.split())}")  # a line end would begin another assignment

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if self.address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)  # or a manager that does not read would stop the event loop
                sender.sendto(message.encode(errors="replace"), self.address)
        except OSError as error:
            logger.debug("the service manager was not told %s: %s", message, error)
