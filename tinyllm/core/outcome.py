"""What a trace came to: the response, or the error that is raised for it."""

from __future__ import annotations

import time

import msgspec

from tinyllm.actors.plan import Plan
from tinyllm.errors import ExecutionError, ExitNotReached
from tinyllm.graph.messages import ErrorInfo, TaskResponse
from tinyllm.graph.payload import decode_error
from tinyllm.graph.values import capture
from tinyllm.storage.contract import Snapshot, Status, TraceRecord


def response(plan: Plan, status: Status, began: float, ended: float | None = None) -> TaskResponse:
    """The response of a trace in `plan`'s state. `began` and `ended` (now) are UTC seconds."""
    value = plan.outcome() if status == "completed" else None
    return TaskResponse(
        trace_id=plan.trace_id,
        status=status,
        value=value,
        content=_text(value),
        error=plan.error,
        questions=plan.questions if status == "paused" else (),
        nodes_executed=plan.step,
        total_latency_ms=((time.time() if ended is None else ended) - began) * 1000,
        total_tokens_in=plan.tokens[0],
        total_tokens_out=plan.tokens[1],
    )


def stored_response(plan: Plan, snapshot: Snapshot) -> TaskResponse:
    """The response of a trace that ended before; `plan` has been restored from `snapshot`."""
    record = snapshot.record
    plan.error = stored_error(record)
    return response(plan, record.status, record.created_at, record.updated_at)


def stored_error(record: TraceRecord) -> ErrorInfo | None:
    return None if record.error is None else decode_error(record.error)


def failure(
    told: TaskResponse, cause: BaseException | None = None, *, stored: bool = False, recorded: bool = True
) -> ExecutionError:
    """The error to raise for a response with the status `failed`. `stored`: of a trace that failed earlier; `recorded`:
    of one that a store has."""
    error = told.error
    assert error is not None
    reason = f"{error.type}: {error.message}" if error.node_id else error.message
    # Where no exit was reached, nothing is left to try again; only a fork can.
    resumable = recorded and error.type != ExitNotReached.__name__
    raised = ExecutionError(told.trace_id, error.node_id, told.nodes_executed, reason, told, resumable, stored)
    raised.__cause__ = cause
    return raised


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.format(capture(value), indent=2).decode()
