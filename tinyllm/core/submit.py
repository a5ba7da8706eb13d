"""`submit`: a trace is accepted, durably, and executed by whoever claims it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

import attrs

from tinyllm.actors.plan import Plan
from tinyllm.core.admission import admission, check_same_task, input_digest, perhaps_admitted
from tinyllm.core.checks import check_arguments, initial_variables
from tinyllm.core.config import CheckpointConfig
from tinyllm.core.outside import found
from tinyllm.core.store import borrowed_storage, check_trace_id, new_trace_id, opened_storage
from tinyllm.core.wake import wake
from tinyllm.errors import ConfigError, TraceExists
from tinyllm.graph.definition import Graph
from tinyllm.graph.durations import LATEST
from tinyllm.graph.payload import Captured, encode_payload
from tinyllm.storage.contract import CheckpointStorage, TraceRecord

PRIORITIES = range(-(2**53) + 1, 2**53)
"""Whole numbers that every program that reads JSON keeps."""


async def submit(
    graph: Graph,
    task: Any,
    checkpoint_storage: CheckpointStorage | str | os.PathLike[str],
    *,
    trace_id: str | None = None,
    variables: Mapping[str, Any] | None = None,
    priority: int = 0,
    not_before: datetime | float | None = None,
    config: CheckpointConfig | None = None,
) -> TraceRecord:
    """Have `task` executed by a supervisor of the store, now or later. Returns when the trace is durable as `queued`.

    It waits there until a supervisor claims it, which executes graphs from files and knows what waits by the id of its
    graph; or until it is resumed, or executed by its id, by hand. So a graph that was built in a program can be
    submitted, too, and the file that is supervised be another one with the same id.

    The same id and task mean the same trace: the record of one that exists is returned, whatever its status is.

    :param checkpoint_storage: a path, which is opened as a SQLite store and closed; or a storage, which stays open.
    :param variables: initial ones.
    :param priority: of the traces that wait, those with the highest are executed first; then, the oldest.
    :param not_before: when it may be claimed: a datetime that has a time zone, or UTC seconds since 1970.
    :param config: of its settings, `redact` applies to what is stored here.
    :raises TraceMismatch: `trace_id` is a trace of another task or graph.
    :raises ConfigError: a setting is out of its range, or `not_before` has no time zone.
    :raises ValueNotStorable: the task or a variable cannot be recorded.
    :raises StorageUnavailable, DatabaseLocked: the store takes no writes just now; call this once more, with the
        `trace_id` that a note of the error tells.
    """
    found = await submission(
        graph,
        task,
        checkpoint_storage,
        trace_id=trace_id,
        variables=variables,
        priority=priority,
        not_before=not_before,
        config=config,
    )
    return found.record


@attrs.frozen
class Submission:
    """`admitted`: now; else it was there before, and nothing was changed. `supervisors`: how many heard of it."""

    record: TraceRecord
    admitted: bool
    supervisors: int


async def submission(
    graph: Graph,
    task: Any,
    checkpoint_storage: CheckpointStorage | str | os.PathLike[str],
    *,
    trace_id: str | None,
    variables: Mapping[str, Any] | None,
    priority: int,
    not_before: datetime | float | None,
    config: CheckpointConfig | None,
) -> Submission:
    """As `submit()`, and tells what it did."""
    check_arguments(graph, config, checkpoint_storage)
    if checkpoint_storage is None:
        raise ConfigError("checkpoint_storage", None, "a path or a storage: what is submitted waits there")
    if isinstance(priority, bool) or not isinstance(priority, int) or priority not in PRIORITIES:
        raise ConfigError("priority", priority, "a whole number from -(2**53 - 1) to 2**53 - 1")
    due = None if not_before is None else _seconds(not_before)
    if trace_id is not None:
        check_trace_id(trace_id)
    redaction = None if config is None else config.redaction
    captured = Captured(encode_payload(task, "task", redaction))
    initial = initial_variables(graph, variables or {}, "variables", redaction)
    async with _storage(checkpoint_storage) as storage:
        return await _submitted(storage, graph, captured, initial, trace_id, priority, due)


async def _submitted(
    storage: CheckpointStorage,
    graph: Graph,
    task: Captured,
    variables: Mapping[str, bytes],
    trace_id: str | None,
    priority: int,
    not_before: float | None,
) -> Submission:
    task_digest = input_digest(task, variables)
    record = None if trace_id is None else await storage.trace(trace_id)
    while record is None:
        name = trace_id or new_trace_id(graph.id)
        first = Plan(graph, name).begin(task, variables, "queued")
        write = admission(graph, name, task_digest, first, owner=None, priority=priority, not_before=not_before)
        with perhaps_admitted(name):
            (outcome,) = await storage.commit([write])
        if not isinstance(outcome, Exception):
            supervisors = wake(storage)
            return Submission(await found(storage, name), True, supervisors)
        if not isinstance(outcome, TraceExists):
            raise outcome
        # Chosen at random, or admitted by somebody else just now.
        record = None if trace_id is None else await storage.trace(trace_id)
    check_same_task(graph, record, task_digest)
    return Submission(record, False, wake(storage))  # whoever admitted it may have died before that


def _storage(
    given: CheckpointStorage | str | os.PathLike[str],
) -> AbstractAsyncContextManager[CheckpointStorage]:
    return borrowed_storage(given) if isinstance(given, CheckpointStorage) else opened_storage(given)


def _seconds(when: datetime | float) -> float:
    """:raises ConfigError: that is no time, or it has no time zone."""
    if isinstance(when, datetime) and when.utcoffset() is not None:
        seconds = max(0.0, when.timestamp())
    elif isinstance(when, int | float) and not isinstance(when, bool):
        seconds = float(min(when, 2 * LATEST))  # one that is too large for a float, too
    else:
        seconds = math.nan
    if not 0 <= seconds <= LATEST:
        allowed = "a datetime with a time zone, or UTC seconds since 1970, and not beyond the year 8941"
        raise ConfigError("not_before", when, allowed)
    return seconds
