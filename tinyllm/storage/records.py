"""`CheckpointRecord`: what a person or a program sees of one checkpoint, most of it only when it is looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import attrs
import msgspec

from tinyllm.graph.messages import Message
from tinyllm.graph.pages import Pages
from tinyllm.graph.payload import decode_messages
from tinyllm.graph.values import reads
from tinyllm.graph.variables import Version

if TYPE_CHECKING:
    from tinyllm.storage.contract import (
        CheckpointStorage,
        Counts,
        Marks,
        Reads,
        Snapshot,
        Status,
        TraceRecord,
    )

T = TypeVar("T")

BY_HAND = ""
"""The fingerprint of a trace that no graph executes: a program saved a context of its own under that id."""

STATE = "$state."
"""How the variables begin that hold what a program saved in `state` beside what every state has."""


@attrs.frozen
class Place:
    """A checkpoint in a store."""

    storage: CheckpointStorage
    trace_id: str
    rev: int

    def ask(self, question: Callable[[Reads], T]) -> T:
        return self.storage.read_now(question)


class StoredMessages(Pages[Message]):
    """The history at a checkpoint; with a window, what is left of it.

    Where every message belongs to the history, as it mostly does, numbers tell places, and any item is read alone.
    """

    __slots__ = ("_began", "_dense", "_first", "_place")

    def __init__(self, place: Place, trace: TraceRecord, marks: Marks, counts: Counts) -> None:
        said = counts.messages
        super().__init__(counts.shown(trace.history))
        self._place = place
        self._first = said - len(self)
        self._dense = marks.message == said
        self._began = utc(trace.created_at)

    @property
    def place(self) -> Place:
        return self._place

    def read(self, start: int, count: int) -> list[Message]:
        place = self._place
        if self._dense:
            rows = place.ask(lambda store: store.messages(place.trace_id, place.rev, self._first + start, count))
        else:
            rows = place.ask(lambda store: store.messages(place.trace_id, place.rev, 0, start + count))[start:]
        return decode_messages(rows, place.trace_id, self._began)


class StoredNodes(Pages[str]):
    """The nodes that had finished at a checkpoint, in order."""

    __slots__ = ("_place",)

    def __init__(self, place: Place, length: int) -> None:
        super().__init__(length)
        self._place = place

    @property
    def place(self) -> Place:
        return self._place

    def read(self, start: int, count: int) -> list[str]:
        rows = self._place.ask(lambda store: store.steps(self._place.trace_id, start, count))
        return [row.node for row in rows]


class StoredState:
    """The state at a checkpoint: a dict when it is first looked at."""

    __slots__ = ("_node", "_place", "_value")

    def __init__(self, place: Place, node: str | None) -> None:
        self._place = place
        self._node = node
        self._value: dict[str, Any] | None = None

    @property
    def value(self) -> dict[str, Any]:
        if self._value is None:
            self._value = self._place.ask(self._read)
        return self._value

    @reads("the state of a checkpoint")
    def _read(self, store: Reads) -> dict[str, Any]:
        trace_id = self._place.trace_id
        snapshot = store.load(trace_id, self._place.rev)
        variables = {key: Version.stored(rows).value for key, rows in snapshot.variables.items()}
        more: dict[str, Any] = {}
        start_time = utc(snapshot.record.created_at).isoformat()
        if snapshot.record.fingerprint == BY_HAND:
            start_time = msgspec.json.decode(store.definition(trace_id))["start_time"]
            more = {key[len(STATE) :]: variables.pop(key) for key in list(variables) if key.startswith(STATE)}
        return {
            "current_node": self._node,
            "visited_nodes": StoredNodes(self._place, visited(snapshot)),
            "variables": variables,
            "step_count": snapshot.step,
            "total_tokens_in": snapshot.tokens_in,
            "total_tokens_out": snapshot.tokens_out,
            "start_time": start_time,
            **more,
        }

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StoredState):
            return (self._place, self._node) == (other._place, other._node) or self.value == other.value
        return self.value == other

    __hash__ = None  # type: ignore[assignment]


class _Point(Protocol):
    @property
    def rev(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def node(self) -> str | None: ...
    @property
    def status(self) -> Status: ...
    @property
    def label(self) -> str | None: ...
    @property
    def created_at(self) -> float: ...
    @property
    def marks(self) -> Marks: ...
    @property
    def counts(self) -> Counts: ...


@attrs.frozen(kw_only=True, repr=False)
class CheckpointRecord:
    """One checkpoint. Of one in a store, `id` is `<trace id>@<rev>`.

    `node_id` is the node that finished last; of a checkpoint that was saved by hand, or got a label, what it was saved
    as (the node is `metadata["node"]` then). `state` is a dict: `current_node, visited_nodes, variables, step_count`,
    `total_tokens_in, total_tokens_out`, `start_time` (ISO 8601, UTC), and what else a program saved in it. From a
    store, `state`, the sequence `state["visited_nodes"]` and the sequence `messages` are read when they are first
    looked at: a short read that blocks, and that raises `StorageNotOpen` after the store was closed and
    `CheckpointNotFound` after the checkpoint was pruned.
    """

    id: str
    graph_id: str
    trace_id: str
    step: int
    _state: dict[str, Any] | StoredState = attrs.field(factory=dict)
    messages: Sequence[Message] = ()
    node_id: str | None = None
    status: str = "pending"
    created_at: datetime = attrs.field(factory=lambda: datetime.now(UTC))
    updated_at: datetime = attrs.field()
    metadata: dict[str, Any] = attrs.field(factory=dict)
    message_count: int = attrs.field()
    rev: int = 0
    label: str | None = None
    frontier_count: int = 0

    @updated_at.default
    def _never_updated(self) -> datetime:
        return self.created_at

    @message_count.default
    def _counted(self) -> int:
        return len(self.messages)

    @classmethod
    def of(cls, storage: CheckpointStorage, trace: TraceRecord, at: _Point) -> CheckpointRecord:
        """The record of the checkpoint `at` of `trace`, which `storage` has."""
        place = Place(storage, trace.trace_id, at.rev)
        node = at.node if at.label is None else at.label
        messages = StoredMessages(place, trace, at.marks, at.counts)
        return cls(
            id=f"{trace.trace_id}@{at.rev}",
            graph_id=trace.graph_id,
            trace_id=trace.trace_id,
            step=at.step,
            state=StoredState(place, node),
            messages=messages,
            node_id=node,
            metadata={} if at.label is None else {"node": at.node},
            status=at.status,
            created_at=utc(at.created_at),
            message_count=len(messages),
            rev=at.rev,
            label=at.label,
            frontier_count=at.counts.frontier,
        )

    @property
    def state(self) -> dict[str, Any]:
        return self._state.value if isinstance(self._state, StoredState) else self._state

    @property
    def visited_nodes(self) -> Sequence[str]:
        """The same as in `state`."""
        visited: Sequence[str] = self.state.get("visited_nodes", ())
        return visited

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        label = "" if self.label is None else f", label={self.label!r}"
        return (
            f"<CheckpointRecord {self.id}: step {self.step}, node {self.node_id!r}, {self.status}, "
            f"{self.message_count:,} messages{label}>"
        )


def visited(snapshot: Snapshot) -> int:
    """How many nodes a trace has visited: one with each step, but one saved by hand counts steps as it likes."""
    return snapshot.marks.activation if snapshot.record.fingerprint == BY_HAND else snapshot.step


def utc(seconds: float) -> datetime:
    """UTC seconds since 1970, aware."""
    return datetime.fromtimestamp(seconds, UTC)
