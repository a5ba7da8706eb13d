"""What an observer of an executor is told, in order, from within the event loop: it must return at once."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.questions import Question
from tinyllm.storage.contract import Status


@attrs.frozen
class TraceStarted:
    """A trace begins or goes on.

    `kept`: durable steps. `again`: activations that were running when it stopped and run again. `lost`: finished steps
    that were not durable yet, None where nothing can tell. `changes`: what is different in the graph since.
    `waiting`: the frontier, by node.
    """

    trace_id: str
    resumed: bool
    kept: int
    again: int
    lost: int | None
    changes: tuple[str, ...]
    waiting: Mapping[str, int]


@attrs.frozen
class FellBack:
    """A trace was damaged, and goes on from its newest checkpoint that is whole.

    `what` is damaged. `step`: where it goes on, of `reached`; `again`: what had ended since, by node, and runs again
    (None: not known). `kept_as`: the id under which the damaged trace is kept, as `quarantined`.
    """

    trace_id: str
    what: str
    step: int
    reached: int
    again: Mapping[str, int] | None
    kept_as: str


@attrs.frozen
class Planned:
    trace_id: str
    node_id: str
    count: int


@attrs.frozen
class NodeStarted:
    trace_id: str
    node_id: str


@attrs.frozen
class NodeFinished:
    trace_id: str
    node_id: str
    step: int
    duration_ms: float


@attrs.frozen
class NodeRetried:
    """An attempt failed, and another will start `wait` seconds later."""

    trace_id: str
    node_id: str
    error: ErrorInfo
    attempt: int
    wait: float


@attrs.frozen
class NodePaused:
    """The activation waits for an answer, which can be given from now on: the question is durable."""

    trace_id: str
    node_id: str
    question: Question


@attrs.frozen
class NodeAnswered:
    """The answer to the question `name` has come: the activation is planned again."""

    trace_id: str
    node_id: str
    name: str


@attrs.frozen
class NodeFailed:
    """The last attempt failed: the trace fails, unless there is a `handler`, the node which that goes to."""

    trace_id: str
    node_id: str
    error: ErrorInfo
    handler: str | None = None


@attrs.frozen
class Committed:
    """Everything up to `step` is durable."""

    trace_id: str
    step: int
    rev: int


@attrs.frozen
class StoreStalled:
    """The store takes no writes at present, for `reason`, and is tried again, for two minutes at most. Meanwhile the
    trace goes on as far as it can, and no other begins. (Of a lock it is told when that has been waited for ten
    seconds.)"""

    trace_id: str
    reason: str


@attrs.frozen
class StoreRecovered:
    """The store takes writes again."""

    trace_id: str


@attrs.frozen
class TraceEnded:
    trace_id: str
    status: Status
    step: int


Event = (
    FellBack
    | TraceStarted
    | Planned
    | NodeStarted
    | NodeFinished
    | NodeRetried
    | NodePaused
    | NodeAnswered
    | NodeFailed
    | Committed
    | StoreStalled
    | StoreRecovered
    | TraceEnded
)
