"""A supervisor that there is not."""

from __future__ import annotations

from typing import Any

import attrs

from tinyllm.storage.contract import Backlog
from tinyllm.supervisor.status import Status, WorkerStatus

SINCE = 1_790_000_000.0


def worker(number: int, **changes: Any) -> WorkerStatus:
    made = WorkerStatus(
        number=number,
        pid=4000 + number,
        apart=False,
        state="running",
        since=SINCE + 5,
        restart_in=None,
        running=3,
        ended=1200,
        restarts=0,
        last_death=None,
    )
    return attrs.evolve(made, **changes)


def status(**changes: Any) -> Status:
    """Of two workers, one of which died and is not there again yet."""
    died = worker(1, pid=None, state="waiting", restart_in=1.5, running=0, restarts=2, last_death="killed (SIGKILL)")
    made = Status(
        id="5f3a9c0d1b2e4f60",
        pid=4000,
        host="node-7",
        version="0.1.0",
        store="/var/lib/tinyllm",
        since=SINCE,
        state="running",
        graphs=("survey", "digest"),
        workers=(worker(0), died),
        backlog=Backlog(waiting=1_234, apart=1, later=56, running=3, quarantined=2, oldest=SINCE + 60),
        lag=12.5,
        completed=2_345,
        failed=6,
        per_minute=120,
        restarts=2,
        deaths={"killed (SIGKILL)": 2},
        refused={"survey-7k3mq": "the graph changed since it was recorded"},
    )
    return attrs.evolve(made, **changes)
