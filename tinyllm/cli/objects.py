"""What `--json` prints: records by the glossary's names."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tinyllm.cli.text import utc

if TYPE_CHECKING:
    from tinyllm.graph.messages import TaskResponse
    from tinyllm.graph.questions import Question
    from tinyllm.storage.contract import CheckpointRecord, TraceRecord


def trace_object(record: TraceRecord) -> dict[str, Any]:
    """A trace; times are ISO 8601."""
    import attrs

    from tinyllm.core.deaths import decode_deaths

    owner = record.owner
    return {
        "trace_id": record.trace_id,
        "graph_id": record.graph_id,
        "graph_version": record.graph_version,
        "graph_path": record.graph_path,
        "fingerprint": record.fingerprint,
        "status": record.status,
        "step": record.step,
        "rev": record.rev,
        "epoch": record.epoch,
        "owner": None if owner is None else {"host": owner.host, "pid": owner.pid, "alive": record.owner_alive},
        "priority": record.priority,
        "not_before": None if record.not_before is None else utc(record.not_before),
        "apart": record.apart,
        "deaths": [{**attrs.asdict(death), "at": utc(death.at)} for death in decode_deaths(record.deaths)],
        "parent": record.parent,
        "parent_step": record.parent_step,
        "created_at": utc(record.created_at),
        "updated_at": utc(record.updated_at),
    }


def checkpoint_object(record: CheckpointRecord) -> dict[str, Any]:
    """A checkpoint by its record's field names, without what it would have to read: no state, no messages."""
    return {
        "id": record.id,
        "trace_id": record.trace_id,
        "graph_id": record.graph_id,
        "rev": record.rev,
        "step": record.step,
        "node_id": record.node_id,
        "status": record.status,
        "created_at": utc(record.created_at.timestamp()),
        "label": record.label,
        "message_count": record.message_count,
        "frontier_count": record.frontier_count,
    }


def question_object(question: Question) -> dict[str, Any]:
    """A question that waits for an answer; `id` and, where no other has the same, `name` are what an answer names."""
    from tinyllm.graph.values import capture

    return {
        "id": question.id,
        "node_id": question.node_id,
        "activation_id": question.activation_id,
        "name": question.name,
        "prompt": question.prompt,
        "schema": json.loads(capture(question.schema)),
    }


def response_object(response: TaskResponse) -> dict[str, Any]:
    """A response by its field names, and `success`; values that JSON does not have are as the store writes them."""
    import attrs

    from tinyllm.graph.values import capture

    return {
        **attrs.asdict(response, recurse=False),
        "value": json.loads(capture(response.value)),
        "error": attrs.asdict(response.error) if response.error is not None else None,
        "questions": [question_object(question) for question in response.questions],
        "success": response.success,
    }
