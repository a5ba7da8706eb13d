"""What a supervisor and its workers tell each other: one JSON object on a line, its only key the kind of message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import msgspec

from tinyllm.core.config import ExecutorConfig
from tinyllm.graph.redact import Rule

MAX_LINE = 64 * 1024
"""Bytes; the longest is an assignment, with a path for each graph."""


@attrs.frozen(kw_only=True)
class Assignment:
    """What a worker is to do: the first line that it is told.

    `graphs`: paths of graph files; `path`: the supervisor's `sys.path`, which their modules are imported with.
    `limits`: by graph id, how many traces may be executed at once in the whole store. `concurrency`: how many this
    worker executes at once. `apart`: it executes those that are to be executed apart, and ends when there are none.
    `grace`: seconds that its nodes have to end when it is to stop. `settings`: those of its executors, as `settings_of`
    has them. `hang_seconds`: after so long a silence it is taken to hang. `log_level`: as of `logging`.
    """

    graphs: tuple[str, ...]
    path: tuple[str, ...]
    storage: str
    concurrency: int
    limits: Mapping[str, int]
    apart: bool
    grace: float
    hang_seconds: float
    accept_graph_change: bool
    settings: Mapping[str, Any]
    log_level: int


@attrs.frozen
class Wake:
    """Something may wait to be claimed."""


@attrs.frozen
class Drain:
    """Claim nothing more, let what runs come to a durable point, and end."""


ToWorker = Assignment | Wake | Drain


@attrs.frozen
class Ready:
    """It can execute traces of these graphs, as these owners."""

    graphs: tuple[str, ...]
    owners: tuple[str, ...]


@attrs.frozen
class Beat:
    """Its event loop turns. `running`: traces now; the others: how many it has executed to such an end."""

    running: int
    completed: int
    failed: int
    others: int


@attrs.frozen
class Refused:
    """A trace cannot be executed as things are; it is tried again later."""

    trace_id: str
    reason: str


@attrs.frozen
class Freed:
    """A trace need not be executed apart any more."""

    trace_id: str


Reason = Literal["drained", "store", "broken"]
"""Why a worker ends of its own accord. `store`: the store failed; `broken`: it could not start."""


@attrs.frozen
class Leaving:
    """The last that a worker tells, if it is not killed. `usage`: a graph file or a setting is wrong."""

    reason: Reason
    text: str = ""
    usage: bool = False


ToSupervisor = Ready | Beat | Refused | Freed | Leaving

_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (Assignment, Wake, Drain, Ready, Beat, Refused, Freed, Leaving)
}


def encode(message: ToWorker | ToSupervisor) -> bytes:
    """The line of a message."""
    return msgspec.json.encode({type(message).__name__: message}) + b"\n"


def decode(line: bytes) -> Any:
    """The message of a line.

    :raises ValueError: it is none.
    """
    ((kind, fields),) = msgspec.json.decode(line, type=dict[str, Any]).items()
    if kind not in _KINDS:
        raise ValueError(f"no message is called {kind!r}")
    return msgspec.convert(fields, _KINDS[kind])


def settings_of(config: ExecutorConfig) -> dict[str, Any]:
    """The settings of an executor as JSON can hold them."""
    settings = attrs.asdict(config, recurse=False)
    settings["redact"] = [rule if isinstance(rule, str) else [rule.pattern, rule.flags] for rule in config.redact]
    return settings


def config_of(settings: Mapping[str, Any]) -> ExecutorConfig:
    """The config that `settings_of` was given."""
    rules: list[Rule] = [rule if isinstance(rule, str) else re.compile(*rule) for rule in settings["redact"]]
    return ExecutorConfig(**{**settings, "redact": rules})
