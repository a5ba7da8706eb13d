"""What is checked before a trace goes on: whose it is, of which graph, and what it is given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tinyllm.core.changes import changes
from tinyllm.core.config import CheckpointConfig
from tinyllm.errors import (
    CheckpointDamaged,
    ConfigError,
    GraphChanged,
    NodeMissing,
    NothingToRun,
    Quarantined,
    TraceEnded,
    TraceExists,
    TraceMismatch,
    ValueNotStorable,
)
from tinyllm.graph.definition import END, Graph, after
from tinyllm.graph.payload import decode_error
from tinyllm.graph.redact import Redaction
from tinyllm.graph.values import digest
from tinyllm.graph.variables import capture_variables
from tinyllm.storage.contract import CheckpointRecord, CheckpointStorage, Snapshot, TraceRecord
from tinyllm.storage.records import BY_HAND


def check_arguments(
    graph: object, config: object, checkpoint_storage: object, kind: type[CheckpointConfig] = CheckpointConfig
) -> None:
    """:raises ConfigError: that is no graph, no settings of that kind, or no storage; or they do not go together."""
    if not isinstance(graph, Graph):
        raise ConfigError("graph", graph, "a Graph: load_graph(path) reads one, GraphBuilder makes one")
    if not isinstance(config, kind | None):
        raise ConfigError("config", config, f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}")
    if not isinstance(checkpoint_storage, CheckpointStorage | str | os.PathLike | None):
        raise ConfigError("checkpoint_storage", checkpoint_storage, "None, a path, or a storage")
    if config is not None:
        refuse_hidden(graph, config.redaction)


def initial_variables(
    graph: Graph, variables: Mapping[str, Any], where: str, redaction: Redaction | None
) -> dict[str, bytes]:
    """Variables that are given from outside."""
    captured = capture_variables(variables, where)
    for key, body in captured.items():
        if graph.variables.get(key) == "append" and not body.startswith(b"["):
            raise ValueNotStorable(f"{where}[{key!r}]", "its reducer is append; give it a list")
    return captured if redaction is None else redaction.variables(captured)


def refuse_hidden(graph: Graph, redaction: Redaction | None) -> None:
    """:raises ConfigError: a variable would be replaced as a whole of which its reducer needs the kind."""
    for key, reducer in graph.variables.items() if redaction is not None else ():
        if reducer != "last" and redaction is not None and redaction.hides(key):
            wanted = f"rules that do not hide the variable {key!r}, whose reducer is {reducer}"
            raise ConfigError("redact", key, wanted)


def check_own_graph(graph: Graph, record: TraceRecord) -> None:
    if record.fingerprint == BY_HAND:
        raise NothingToRun(record.trace_id)
    if record.graph_id != graph.id:
        remedy = f"resume it with graph {record.graph_id!r}, or use a new id"
        raise TraceMismatch(record.trace_id, f"graph ({record.graph_id!r})", remedy)


def refuse_cancelled(record: TraceRecord, *, force: bool = False) -> None:
    """:raises TraceEnded: it is cancelled, or quarantined; with `force`, only if it cannot be released either."""
    if record.status == "cancelled" or (record.status == "quarantined" and not (force and releasable(record))):
        raise _ended(record)


def refuse_quarantined(record: TraceRecord, *, force: bool) -> None:
    """:raises Quarantined: it killed who executed it, and is not to be released; or it is, and was damaged instead."""
    if record.status == "quarantined" and force != releasable(record):
        raise _ended(record)


def releasable(record: TraceRecord) -> bool:
    """Whether a quarantined trace is so because the processes that executed it died of it; else it was damaged."""
    return record.error is None or decode_error(record.error).type != CheckpointDamaged.__name__


def _ended(record: TraceRecord) -> TraceEnded:
    if record.status != "quarantined":
        return TraceEnded(record.trace_id, record.status)
    why = "why cannot be read" if record.error is None else decode_error(record.error).message
    return Quarantined(record.trace_id, record.status, why, releasable=releasable(record))


async def check_same_fork(
    storage: CheckpointStorage,
    parent: TraceRecord,
    point: CheckpointRecord,
    child: TraceRecord,
    variables: Mapping[str, bytes],
) -> None:
    """Refuse to take an existing trace for a fork that was made otherwise."""
    remedy = "use a new id, or resume the trace"
    if child.parent != parent.trace_id:
        raise TraceExists(child.trace_id)
    if child.parent_rev != point.rev:
        raise TraceMismatch(child.trace_id, "point to fork from", remedy)
    before, first = (
        await storage.load(parent.trace_id, point.rev),
        await storage.load(child.trace_id, point.rev + 1),
    )
    was, now = ({key: rows[0].seq for key, rows in snapshot.variables.items()} for snapshot in (before, first))
    changed = {key: first.variables[key][0].body for key, seq in now.items() if was.get(key) != seq}
    if changed != dict(variables):
        raise TraceMismatch(child.trace_id, "set of variables", remedy)


async def check_graph(
    storage: CheckpointStorage, graph: Graph, snapshot: Snapshot, accept_graph_change: bool
) -> list[str]:
    """What changed in the graph and may be accepted."""
    trace_id = snapshot.record.trace_id
    serious: list[str] = []
    harmless: list[str] = []
    if snapshot.record.definition_digest != digest(graph.definition):
        serious, harmless = changes(await storage.definition(trace_id), graph)
    if serious and not accept_graph_change:
        raise GraphChanged(trace_id, tuple(serious))
    missing = sorted({after(row.node) for row in snapshot.frontier} - graph.nodes.keys() - {END})
    if missing:
        raise NodeMissing(trace_id, tuple(missing))
    return serious + harmless
