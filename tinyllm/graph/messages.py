"""What flows along edges, what goes in (`TaskPayload`) and what comes out (`TaskResponse`)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import attrs

from tinyllm.graph.records import Referable
from tinyllm.graph.shown import call_of, line_of, markdown_of


@attrs.frozen(kw_only=True)
class ErrorInfo:
    """A failure as it is recorded: the exception's type name, its text, and where it happened."""

    type: str
    message: str
    node_id: str | None = None
    traceback: str | None = None

    def __repr__(self) -> str:
        return call_of(self, "traceback")


@attrs.frozen
class TaskPayload:
    """The input of a trace. A plain `str` or any other storable value may be given instead of one."""

    content: str
    metadata: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)

    def __repr__(self) -> str:
        return call_of(self)


@attrs.frozen(kw_only=True)
class MessagePayload(Referable):
    """What a message carries. A node's `str` goes to `content`, anything else to `structured`."""

    task: str | None = None
    content: str | None = None
    structured: Any = None
    route: str | None = None
    confidence: float | None = None
    tool_call: Any = None
    tool_result: Any = None
    error: ErrorInfo | None = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)

    @classmethod
    def of(cls, value: Any) -> MessagePayload:
        """The payload that carries `value`."""
        return cls(content=value) if isinstance(value, str) else cls(structured=value)

    @property
    def value(self) -> Any:
        """The node's value: `content` if it is text, else `structured`."""
        return self.structured if self.content is None else self.content

    def __repr__(self) -> str:
        return call_of(self)


@attrs.frozen
class Message(Referable):
    """The immutable value that flows along an edge."""

    trace_id: str
    source_node: str
    target_node: str | None = None
    payload: MessagePayload = attrs.field(factory=MessagePayload, kw_only=True)
    message_id: str = attrs.field(factory=lambda: uuid.uuid4().hex, kw_only=True)
    parent_id: str | None = attrs.field(default=None, kw_only=True)
    created_at: datetime = attrs.field(factory=lambda: datetime.now(UTC), kw_only=True)

    def __repr__(self) -> str:
        return call_of(self, "created_at")


@attrs.frozen(kw_only=True)
class TaskResponse:
    """The outcome of a trace.

    `value` is the exit's object and `content` its text (the text itself for a `str`, else JSON). Where an exit was
    reached more than once without a join, `value` is the list of all of them, in causal order.
    """

    trace_id: str
    status: str
    value: Any = None
    content: str = ""
    error: ErrorInfo | None = None
    questions: tuple[Any, ...] = ()
    nodes_executed: int = 0
    total_latency_ms: float = 0.0
    total_tokens_in: int = 0
    total_tokens_out: int = 0

    @property
    def success(self) -> bool:
        return self.status == "completed"

    def __repr__(self) -> str:
        return line_of(self)

    def _repr_markdown_(self) -> str:
        return markdown_of(self)
