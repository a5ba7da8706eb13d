"""What a program asks of a store without an executor: checkpoints by id, by trace, by graph.

These are the promised methods of `CheckpointStorage`. They are built on what every backend has, so that no backend has
to have them too. Every listing begins with the newest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from tinyllm.errors import TraceNotFound
from tinyllm.graph.context import ExecutionContext
from tinyllm.graph.messages import Message, MessagePayload
from tinyllm.graph.settings import unknown
from tinyllm.storage.records import STATE, CheckpointRecord

if TYPE_CHECKING:
    from tinyllm.storage.contract import CheckpointStorage, TraceRecord

_PAGE = 100
_FILTERS = ("graph_id", "trace_id", "status", "node_id")


async def save_checkpoint(
    storage: CheckpointStorage,
    *,
    graph_id: str,
    trace_id: str,
    step: int = 0,
    state: Mapping[str, Any] | None = None,
    messages: Sequence[Any] = (),
    node_id: str | None = None,
) -> CheckpointRecord:
    """Save the state of a trace that a program keeps by itself; returns its checkpoint when it is durable.

    Only what is different from the trace's newest checkpoint is stored. `state` is that of a `CheckpointRecord`, or
    anything storable; `messages` are all of the trace, those saved before included: `Message` objects, or values.

    :raises TraceMismatch: the trace is another graph's, or its messages or visited nodes do not begin with those that
        were saved before.
    :raises TraceOwned: a live process executes it, and it is different.
    :raises ValueNotStorable: naming the path to the fault.
    """
    from tinyllm.storage.by_hand import save  # builds on the contract, which has this method

    state = dict(state or {})
    started: Any = state.pop("start_time", None)
    state.pop("step_count", None)  # `step` says so
    current = state.pop("current_node", None)
    node = current if node_id is None else node_id
    context = ExecutionContext(
        trace_id=trace_id,
        graph_id=graph_id,
        visited_nodes=state.pop("visited_nodes", ()),
        variables=dict(state.pop("variables", {})),
        messages=[_message(value, trace_id, node or "") for value in messages],
        step_count=step,
        total_tokens_in=state.pop("total_tokens_in", 0),
        total_tokens_out=state.pop("total_tokens_out", 0),
    )
    if started is not None:
        context.start_time = started if isinstance(started, datetime) else datetime.fromisoformat(started)
    context.variables |= {STATE + name: value for name, value in state.items()}
    return await save(storage, context, node)


async def get(storage: CheckpointStorage, checkpoint_id: str) -> CheckpointRecord | None:
    """The checkpoint of that id (`<trace id>@<rev>`), or None."""
    trace_id, _, rev = checkpoint_id.rpartition("@")
    if rev.isascii() and rev.isdecimal():
        async for record in _NewestFirst(storage, trace_id=trace_id):
            if record.rev <= int(rev):
                return record if record.id == checkpoint_id else None
    return None


async def delete(storage: CheckpointStorage, checkpoint_id: str) -> bool:
    """Delete the checkpoint of that id; returns whether it was there. With its only one, the trace goes.

    :raises CheckpointInUse: it is the newest of several or the first of them, or a fork starts from it.
    :raises TraceOwned: it is the only one of a trace that a live process executes.
    """
    from tinyllm.storage.by_hand import drop

    record = await get(storage, checkpoint_id)
    return record is not None and await drop(storage, record)


async def list_checkpoints(
    storage: CheckpointStorage, graph_id: str, trace_id: str | None = None
) -> list[CheckpointRecord]:
    """All kept checkpoints of a graph, or of one trace of it, the newest first. Reads no message."""
    filters = {"graph_id": graph_id} if trace_id is None else {"graph_id": graph_id, "trace_id": trace_id}
    return [record async for record in _NewestFirst(storage, **filters)]


async def get_latest_checkpoint(storage: CheckpointStorage, graph_id: str, trace_id: str) -> CheckpointRecord | None:
    """The newest checkpoint of a trace; None where `graph_id` has no such trace."""
    async for record in _NewestFirst(storage, graph_id=graph_id, trace_id=trace_id):
        return record
    return None


async def list_all(
    storage: CheckpointStorage, limit: int = 100, offset: int = 0, filters: Mapping[str, str] | None = None
) -> list[CheckpointRecord]:
    """Kept checkpoints of all traces, the newest first. `filters`: by `graph_id`, `trace_id`, `status`, `node_id`.

    :raises UnknownSetting: another filter.
    """
    filters = filters or {}
    for name, value in filters.items():
        if name not in _FILTERS:
            raise unknown(name, value, _FILTERS, {})
    traces = {name: filters[name] for name in ("graph_id", "trace_id") if name in filters}
    found: list[CheckpointRecord] = []
    async for record in _NewestFirst(storage, **traces):
        if len(found) == offset + limit:
            break
        if all(filters.get(name, getattr(record, name)) == getattr(record, name) for name in ("status", "node_id")):
            found.append(record)
    return found[offset : offset + limit]


class DirectUse:
    """The promised methods of a store."""

    save_checkpoint = save_checkpoint
    get = get
    delete = delete
    list_checkpoints = list_checkpoints
    get_latest_checkpoint = get_latest_checkpoint
    list = list_all


# -- in which order --------------------------------------------------------------------------------------------


class _Kept:
    """The checkpoints of one trace, the newest first."""

    def __init__(self, storage: CheckpointStorage, trace: TraceRecord) -> None:
        self.trace = trace
        self._storage = storage
        self._page: list[CheckpointRecord] = []
        self._read = 0

    async def next(self) -> CheckpointRecord | None:
        if not self._page:
            try:
                self._page = await self._storage.checkpoints(self.trace.trace_id, limit=_PAGE, offset=self._read)
            except TraceNotFound:  # deleted meanwhile
                return None
            self._read += len(self._page)
            self._page.reverse()
        return self._page.pop() if self._page else None


class _NewestFirst:
    """Merges the checkpoints of several traces. (No async generator: those must be closed by whoever stops early.)

    Traces come the last updated first; one that was updated before the next checkpoint was made is not looked at yet.
    """

    def __init__(self, storage: CheckpointStorage, *, graph_id: str | None = None, trace_id: str | None = None) -> None:
        self._storage = storage
        self._graph_id, self._trace_id = graph_id, trace_id
        self._traces: list[TraceRecord] = []
        self._read = 0
        self._waiting: list[tuple[float, int, CheckpointRecord, _Kept]] = []

    def __aiter__(self) -> _NewestFirst:
        return self

    async def __anext__(self) -> CheckpointRecord:
        while await self._next_is_older_than_a_trace():
            trace = self._traces.pop()
            await self._wait(_Kept(self._storage, trace))
        if not self._waiting:
            raise StopAsyncIteration
        _, _, record, kept = heappop(self._waiting)
        await self._wait(kept)
        return record

    async def _next_is_older_than_a_trace(self) -> bool:
        if not self._traces:
            self._traces = await self._more()
            self._read += len(self._traces)
            self._traces.reverse()
        return bool(self._traces) and (not self._waiting or -self._waiting[0][0] <= self._traces[-1].updated_at)

    async def _more(self) -> list[TraceRecord]:
        if self._trace_id is None:
            return await self._storage.traces(graph_id=self._graph_id, limit=_PAGE, offset=self._read)
        trace = await self._storage.trace(self._trace_id) if not self._read else None
        return [trace] if trace is not None and self._graph_id in (None, trace.graph_id) else []

    async def _wait(self, kept: _Kept) -> None:
        record = await kept.next()
        if record is not None:
            heappush(self._waiting, (-record.created_at.timestamp(), -kept.trace.trace, record, kept))


def _message(value: Any, trace_id: str, node: str) -> Message:
    return value if isinstance(value, Message) else Message(trace_id, node, payload=MessagePayload.of(value))
