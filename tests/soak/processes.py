"""What /proc tells of processes: when they were born and died, what they use, and what they hold."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

POLL_SECONDS = 0.01

MARK = "TINYLLM_SOAK"
"""The environment variable by which every process of a run is known, whosever child it has become."""

WRITE_LOCK = "120 120"
"""The bytes of a database's `-shm` file that are locked by whoever writes."""

_TICKS = os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Stat:
    """`started` tells a process from a later one of the same pid. `cpu` is in seconds."""

    state: str
    started: str
    cpu: float

    @property
    def lives(self) -> bool:
        return self.state not in "ZXx"


def stat(pid: int) -> Stat | None:
    """None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return Stat(fields[0], fields[19], (int(fields[11]) + int(fields[12])) / _TICKS)


def children(pid: int) -> list[int]:
    """Of all its threads."""
    found: list[int] = []
    for thread in threads(pid):
        try:
            found += map(int, (thread / "children").read_text().split())
        except OSError:
            continue
    return found


def threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def marked(mark: str) -> Iterator[int]:
    """The living processes that were started with that mark, by us or by one that was."""
    wanted = f"{MARK}={mark}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in path.read_bytes().split(b"\0"):  # of one that has ended it is empty
                yield int(path.parent.name)
        except OSError:
            continue


def holds_write_lock(pid: int, shared: Path) -> bool:
    """Whether the process is in the middle of writing to the database whose `-shm` file is given."""
    try:
        file = f":{shared.stat().st_ino}"
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    return any(f" WRITE {pid} " in line and f"{file} {WRITE_LOCK}" in line for line in locks)


@attrs.define(eq=False)
class Life:
    """A supervisor's, or that of a worker, whose `parent` it is. Times are UTC seconds. `cpu`: seconds that it used."""

    pid: int
    started: str
    parent: Life | None
    born: float
    died: float | None = None
    cpu: float = 0.0

    def lived(self, at: float) -> bool:
        return self.born <= at and (self.died is None or at < self.died)


class Watcher:
    """From `with` to its end, notes when supervisors and their workers are born and die, in a thread of its own."""

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watcher")

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def add(self, pid: int, parent: Life | None = None) -> Life | None:
        """Watch a process, too; None if it has ended."""
        seen = stat(pid)
        if seen is None:
            return None
        with self._lock:
            for life in self.lives:
                if (life.pid, life.started) == (pid, seen.started):
                    return life
            life = Life(pid, seen.started, parent, time.time())
            self.lives.append(life)
            return life

    def workers(self, supervisor: Life) -> list[Life]:
        """Those of its workers that live, the oldest first."""
        with self._lock:
            return [life for life in self.lives if life.parent is supervisor and life.died is None]

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            with self._lock:
                living = [life for life in self.lives if life.died is None]
            for life in living:
                seen = stat(life.pid)
                if seen is None or seen.started != life.started or not seen.lives:
                    life.died = time.time()
                    continue
                life.cpu = seen.cpu
                if life.parent is None:
                    known = {worker.pid for worker in living if worker.parent is life}
                    for pid in children(life.pid):
                        if pid not in known:
                            self.add(pid, life)
