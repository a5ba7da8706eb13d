"""Saving a context that a program keeps itself: what is different from what its trace has already is stored."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import anyio
import attrs
import msgspec

from tinyllm.errors import CheckpointNotFound, OwnershipLost, TraceExists, TraceMismatch, ValueNotStorable
from tinyllm.graph.context import ExecutionContext
from tinyllm.graph.messages import Message
from tinyllm.graph.payload import encode_message, encode_payload
from tinyllm.graph.redact import Redaction
from tinyllm.graph.variables import Version, capture_variables
from tinyllm.storage.caps import too_big
from tinyllm.storage.contract import (
    Acquire,
    Acquired,
    Admit,
    Admitted,
    Append,
    CheckpointStorage,
    Counts,
    Delete,
    Delta,
    Drop,
    Label,
    Marks,
    MessageRow,
    Outcome,
    Prune,
    Pruned,
    Release,
    Snapshot,
    StepRow,
    TraceRecord,
    VariableRow,
    Write,
    sum_of_changes,
)
from tinyllm.storage.owners import refuse_owned
from tinyllm.storage.records import (
    BY_HAND,
    CheckpointRecord,
    Place,
    StoredMessages,
    StoredNodes,
    visited,
)

T = TypeVar("T")

_ATTEMPTS = 20
"""How often it is tried again when somebody else saves the same trace at the same time."""

_PRUNE = 64


async def save(
    storage: CheckpointStorage,
    context: ExecutionContext,
    node: str | None,
    *,
    keep: int | None = None,
    redaction: Redaction | None = None,
) -> CheckpointRecord:
    """Save `context`, at `node`; returns the checkpoint when it is durable.

    The context of a trace that an executor executed, unchanged, is there already: its checkpoint gets the label `node`.
    Any other is stored by its difference from the trace's newest checkpoint, in an executor's trace with that label
    too: what it costs, beside capturing the variables, is what is new. `keep`: how many checkpoints of it are kept
    then, the first included.

    :raises TraceMismatch: the trace is another graph's, or goes on otherwise than the context does.
    :raises TraceOwned: a live process executes the trace, and the context is not just one of its states.
    :raises CheckpointNotFound: the state that the context is was pruned.
    :raises ValueNotStorable: naming the path to the fault.
    :raises OwnershipLost: others saved the trace at the same time, again and again.
    """
    variables = capture_variables(context.variables, "context.variables", redaction)
    for _ in range(_ATTEMPTS):
        try:
            return await _save(storage, context, variables, node, keep, redaction)
        except (OwnershipLost, TraceExists) as lost:
            error = lost
        except UnicodeEncodeError as half:
            reason = f"one of its names has the lone surrogate {half.object[half.start]!a} in it; remove it"
            raise ValueNotStorable("context", reason) from None
    raise error


async def _save(
    storage: CheckpointStorage,
    context: ExecutionContext,
    variables: dict[str, bytes],
    node: str | None,
    keep: int | None,
    redaction: Redaction | None,
) -> CheckpointRecord:
    record = await storage.trace(context.trace_id)
    if record is None:
        admitted = await _ask(storage, Admitted, _admission(context, variables, node, redaction))
        return await _saved(storage, context, admitted.rev)
    if record.graph_id != context.graph_id:
        raise TraceMismatch(record.trace_id, f"graph ({record.graph_id!r})", "save the context under another trace_id")
    if record.fingerprint != BY_HAND:
        shown = await storage.load(record.trace_id, context.rev)
        if _same(shown, _difference(storage, shown, context, variables, redaction)):
            await _ask(storage, object, Label(record.trace, record.trace_id, shown.rev, node))
            return await _saved(storage, context, shown.rev)
    snapshot = await storage.load(record.trace_id)
    delta = attrs.evolve(_difference(storage, snapshot, context, variables, redaction), node=node)
    refuse_owned(snapshot.record)
    if refused := too_big(delta):
        raise refused
    # Of a trace of its own, a program keeps the newest; one among an executor's is kept because it has a name.
    await _append(storage, snapshot.record, delta, None if record.fingerprint == BY_HAND else node)
    if keep is not None:
        await _prune(storage, record.trace, keep)
    return await _saved(storage, context, delta.rev)


async def _append(storage: CheckpointStorage, record: TraceRecord, delta: Delta, label: str | None) -> None:
    """Add a delta to a trace that nobody executes.

    In two commits: one could not stop the delta where somebody else acquired the trace first. What is left of the first
    without the second is a trace that is interrupted, which it is: it goes on from its newest checkpoint.
    """
    trace_id = record.trace_id
    with anyio.CancelScope(shield=True):  # bounded: by two commits
        acquired = await _ask(storage, Acquired, Acquire(record.trace, trace_id, record.epoch, secrets.token_hex(8)))
        writes: list[Write] = [Append(trace_id, attrs.evolve(delta, epoch=acquired.epoch))]
        if label is not None:
            writes.append(Label(record.trace, trace_id, delta.rev, label))
        await _ask(storage, object, *writes, Release(record.trace, acquired.epoch))


async def _prune(storage: CheckpointStorage, trace: int, keep: int) -> None:
    # The store keeps the first beside those that it is told to keep.
    while (await _ask(storage, Pruned, Prune(trace, max(keep - 1, 1), _PRUNE))).checkpoints == _PRUNE:
        pass


async def _saved(storage: CheckpointStorage, context: ExecutionContext, rev: int) -> CheckpointRecord:
    saved = await storage.get(f"{context.trace_id}@{rev}")
    if saved is None:  # somebody else saved, and pruned, more than is kept
        raise CheckpointNotFound(context.trace_id, f"at rev {rev}")
    context.rev = rev
    return saved


# -- taking away -----------------------------------------------------------------------------------------------


async def drop(storage: CheckpointStorage, record: CheckpointRecord) -> bool:
    """Drop one checkpoint, and, if it is the only one, the trace with it; returns whether it was there.

    :raises CheckpointInUse: it is the newest of several or the first of them, or a fork starts from it.
    :raises TraceOwned: it is the only one of a trace that a live process executes.
    """
    trace = await storage.trace(record.trace_id)
    if trace is None:
        return False
    if len(await storage.checkpoints(record.trace_id, limit=2)) == 1:
        await forget(storage, trace)
        return True
    return (await _ask(storage, Pruned, Drop(trace.trace, trace.trace_id, record.rev))).checkpoints > 0


async def forget(storage: CheckpointStorage, record: TraceRecord) -> None:
    """Delete a trace that nobody executes.

    :raises TraceOwned: a live process does.
    """
    refuse_owned(record)
    acquire = Acquire(record.trace, record.trace_id, record.epoch, secrets.token_hex(8))
    with anyio.CancelScope(shield=True):  # bounded: by two commits
        await _ask(storage, Acquired, acquire)
        await _ask(storage, object, Delete(record.trace))


# -- what is different -----------------------------------------------------------------------------------------


def _admission(
    context: ExecutionContext, variables: dict[str, bytes], node: str | None, redaction: Redaction | None
) -> Admit:
    blank = Delta(trace=0, epoch=0, number=0, step=0, status="paused", node=node, marks=Marks(), counts=Counts())
    definition = {"topology": {}, "details": {}, "start_time": context.start_time.isoformat()}
    return Admit(
        trace_id=context.trace_id,
        graph_id=context.graph_id,
        graph_version="",
        fingerprint=BY_HAND,
        definition=msgspec.json.encode(definition),
        graph_path=None,
        task_digest="",
        owner=None,
        first=_grown(blank, context, context.messages, context.visited_nodes, variables, {}, redaction, by_hand=True),
    )


def _difference(
    storage: CheckpointStorage,
    snapshot: Snapshot,
    context: ExecutionContext,
    variables: dict[str, bytes],
    redaction: Redaction | None,
) -> Delta:
    """What `context` has and `snapshot` has not, as the delta that follows.

    :raises TraceMismatch: the context does not begin with what the snapshot has.
    """
    record = snapshot.record
    by_hand = record.fingerprint == BY_HAND
    place = Place(storage, record.trace_id, snapshot.rev)
    said = StoredMessages(place, record, snapshot.marks, snapshot.counts)
    messages = _new(said, context.messages, partial(_content, redaction), record.trace_id, "messages")
    nodes = _new(StoredNodes(place, visited(snapshot)), context.visited_nodes, str, record.trace_id, "visited nodes")
    base = snapshot.following()
    return _grown(base, context, messages, nodes, variables, snapshot.variables, redaction, by_hand=by_hand)


def _grown(
    base: Delta,
    context: ExecutionContext,
    messages: Sequence[Message],
    nodes: Sequence[str],
    variables: dict[str, bytes],
    there: Mapping[str, Sequence[VariableRow]],
    redaction: Redaction | None,
    *,
    by_hand: bool,
) -> Delta:
    """`base` with new messages, newly visited nodes, and what the variables are where that is not `there` yet."""
    marks, counts, now = base.marks, base.counts, time.time()
    total, visits = len(context.messages), len(context.visited_nodes)
    said = tuple(
        MessageRow(seq, message.source_node, 0, encode_message(message, f"context.messages[{at}]", redaction))
        for seq, (at, message) in enumerate(enumerate(messages, total - len(messages)), marks.message + 1)
    )
    known = {key: Version.stored(rows).captured for key, rows in there.items()}
    changed = [(key, body) for key, body in variables.items() if known.get(key) != body]
    gone = sorted(known.keys() - variables.keys())
    rows = (
        *(VariableRow(seq, key, "full", seq, body) for seq, (key, body) in enumerate(changed, marks.variable + 1)),
        *(
            VariableRow(seq, key, "deleted", seq, b"")
            for seq, key in enumerate(gone, marks.variable + len(changed) + 1)
        ),
    )
    now_there = {**there, **{row.key: [row] for row in rows}}
    return attrs.evolve(
        base,
        step=max(context.step_count, visits) if by_hand else visits,
        marks=Marks(
            marks.message + len(said),
            visits if by_hand else marks.activation,
            marks.arrival,
            marks.variable + len(rows),
        ),
        counts=attrs.evolve(
            counts,
            messages=counts.messages + len(said),
            variables=len(variables),
            changes=sum_of_changes(rows for key, rows in now_there.items() if key in variables),
        ),
        messages=said,
        variables=rows,
        steps=tuple(StepRow(step, 0, node, now, 0.0) for step, node in enumerate(nodes, visits - len(nodes) + 1)),
        tokens_in=context.total_tokens_in,
        tokens_out=context.total_tokens_out,
        size=sum(len(row.body) for row in said) + sum(len(row.body) for row in rows),
    )


def _same(snapshot: Snapshot, delta: Delta) -> bool:
    """Whether `delta` would change nothing."""
    counters = (snapshot.step, snapshot.tokens_in, snapshot.tokens_out)
    return not (delta.messages or delta.variables or delta.steps) and counters == (
        delta.step,
        delta.tokens_in,
        delta.tokens_out,
    )


def _new(
    stored: Sequence[T], own: Sequence[T], content: Callable[[T], object], trace_id: str, what: str
) -> Sequence[T]:
    """The items of `own` that come after those that are `stored`, of which only the last is compared."""
    known = len(stored)
    if len(own) < known or (known and content(stored[-1]) != content(own[known - 1])):
        remedy = "load its newest checkpoint first, or save the context under another trace_id"
        raise TraceMismatch(trace_id, f"list of {what}", remedy)
    return own[known:]


def _content(redaction: Redaction | None, message: Message) -> object:
    return message.source_node, encode_payload(message, redaction=redaction)


async def _ask(storage: CheckpointStorage, kind: type[T], *writes: Write) -> T:
    """Commit `writes`; returns the outcome of the first of them, or raises the first that is an error."""
    outcomes: list[Outcome] = await storage.commit(writes)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    first = outcomes[0]
    assert isinstance(first, kind)
    return first
