"""Which process this is, which owners live in it, and whether one elsewhere still does.

A process id alone proves nothing: it is given again, counts anew after a boot, and means another process in every
container. What is never given twice is the id together with the boot, the pid namespace and the start time.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from functools import cache
from pathlib import Path

from tinyllm.errors import TraceOwned
from tinyllm.storage.contract import Owner, TraceRecord

_ENDED = frozenset("ZXx")
"""States of a process that is dead but not yet reaped: it will write nothing more."""

_kept: set[str] = set()
"""The ids of the owners whose leases this process keeps. A process outlives them: where the store fails, an owner that
ended leaves its lease behind, and the process would lock itself out of its own traces. (No lock: `add`, `discard` and
`in` are atomic, and one that another thread held at a fork would be held in the child for good.)"""


def keep(owner: str) -> None:
    """From now on this process keeps the lease of the owner of that id."""
    _kept.add(owner)


def let_go(owner: str) -> None:
    """The owner of that id has ended, whether or not the store could be told."""
    _kept.discard(owner)


def boottime() -> float:
    """Seconds that also pass while the machine sleeps; the monotonic clock stops then, and a lease would not end."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def is_owned(record: TraceRecord) -> bool:
    """Whether a process that may be alive executes the trace."""
    return record.owner is not None and record.owner_alive is not False


def refuse_owned(record: TraceRecord) -> None:
    """:raises TraceOwned: a process that may be alive executes the trace."""
    owner = record.owner
    if owner is not None and is_owned(record):
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.since))
        raise TraceOwned(record.trace_id, owner.host, owner.pid, since)


def this_process() -> Owner:
    """A new owner in this process. Whoever keeps a lease has one of its own, so that retiring it ends no other's."""
    pid = os.getpid()
    state = _stat(pid)
    return Owner(
        id=secrets.token_hex(8),
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=pid,
        started=state[1] if state else "",
        since=time.time(),
    )


def alive(owner: Owner) -> bool | None:
    """Whether `owner`'s process lives and, if it is this one, keeps it; None where that cannot be judged from here."""
    boot_id = _boot_id()
    if boot_id and owner.boot_id == boot_id:
        return _runs(owner) if owner.pid_namespace == _pid_namespace() else None
    if owner.host != socket.gethostname():
        return None
    if boot_id and owner.boot_id:
        return False  # this host was booted since
    # Nothing tells boots apart here: a missing process is dead, but one that is there may be another.
    return None if _exists(owner.pid) else False


def _runs(owner: Owner) -> bool | None:
    if not _exists(owner.pid):
        return False
    state = _stat(owner.pid)
    if state is None:
        # Hidden from this user (hidepid), or it ended just now.
        return None if _exists(owner.pid) else False
    if state[0] in _ENDED or state[1] != owner.started:
        return False
    return owner.pid != os.getpid() or owner.id in _kept


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _stat(pid: int) -> tuple[str, str] | None:
    """State and start time (clock ticks since boot) of a process, where /proc tells."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    # The name stands in parentheses and may itself contain spaces and parentheses.
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], fields[19]


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


@cache
def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
