"""How a trace is admitted, whoever does it: one that is executed at once, or one that waits to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tinyllm.core.checks import check_own_graph
from tinyllm.errors import DatabaseLocked, StorageUnavailable, TraceMismatch
from tinyllm.graph.definition import Graph
from tinyllm.graph.payload import Captured
from tinyllm.graph.values import digest
from tinyllm.storage.contract import Admit, Delta, TraceRecord


def admission(
    graph: Graph,
    trace_id: str,
    task_digest: str,
    first: Delta,
    *,
    owner: str | None,
    priority: int = 0,
    not_before: float | None = None,
) -> Admit:
    return Admit(
        trace_id=trace_id,
        graph_id=graph.id,
        graph_version=graph.version,
        fingerprint=graph.fingerprint,
        definition=graph.definition,
        graph_path=graph.path,
        task_digest=task_digest,
        history=graph.history,
        owner=owner,
        priority=priority,
        not_before=not_before,
        first=first,
    )


def input_digest(task: Captured, variables: Mapping[str, bytes]) -> str:
    """Of the task and the initial variables: the same id with others is refused."""
    return digest(task.body + b"".join(b"\n%s=%s" % (key.encode(), variables[key]) for key in sorted(variables)))


def check_same_task(graph: Graph, record: TraceRecord, task_digest: str) -> None:
    """:raises TraceMismatch: the trace that has the id is of another task, or another graph."""
    check_own_graph(graph, record)
    if record.task_digest != task_digest:
        remedy = "use a new id, or resume the trace without naming them"
        raise TraceMismatch(record.trace_id, "task, or other initial variables", remedy)


@contextmanager
def perhaps_admitted(trace_id: str) -> Iterator[None]:
    """An error of the store leaves open whether the trace was admitted: it says how to find out."""
    try:
        yield
    except (DatabaseLocked, StorageUnavailable) as error:
        error.add_note(f"it may have been admitted all the same; call again with trace_id={trace_id!r}")
        raise
