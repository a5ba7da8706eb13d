"""What a supervisor says of itself and its workers. Times are UTC seconds since 1970, spans are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from tinyllm.graph.structure import structure
from tinyllm.storage.contract import Backlog

REFUSED = 20
"""How many refused traces a status names: it is what somebody looks at, not a list of them all."""


@attrs.frozen
class WorkerStatus:
    """A place for a worker, whether or not there is a process in it just now."""

    number: int
    pid: int | None
    apart: bool
    """Whether it executes one trace only, which may be what killed another worker."""
    state: Literal["starting", "running", "draining", "stopping", "waiting"]
    """`waiting`: there is no process; the next is started in `restart_in`."""
    since: float
    """When it came into that state."""
    restart_in: float | None
    running: int
    """Traces that it executes now."""
    ended: int
    """Traces that ended in this place."""
    restarts: int
    last_death: str | None


@attrs.frozen
class Status:
    """A supervisor at one moment."""

    id: str
    pid: int
    host: str
    version: str
    store: str
    since: float
    """When it was started."""
    state: Literal["starting", "running", "draining", "stopping"]
    graphs: tuple[str, ...]
    workers: tuple[WorkerStatus, ...]
    backlog: Backlog
    """Of its graphs, whoever executes them."""
    lag: float | None
    """For how long the oldest trace that could be claimed has waited; None if none waits."""
    completed: int
    failed: int
    per_minute: int
    """Traces that ended in the last minute."""
    restarts: int
    deaths: Mapping[str, int]
    """By cause, how many workers died."""
    refused: Mapping[str, str]
    """By trace id, why it could not be executed; the newest, `REFUSED` at most."""


def to_json(status: Status) -> dict[str, Any]:
    """`status` as JSON has it, where every field is present."""
    return {
        **attrs.asdict(status),
        "deaths": dict(status.deaths),
        "refused": dict(status.refused),
    }


def from_json(found: Any) -> Status:
    """What `to_json` made.

    :raises ValueMismatch: it is something else, such as the status of another version: nothing is coerced, left out or
        filled in.
    """
    status: Status = structure(found, Status, "status")
    return status
