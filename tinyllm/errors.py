"""Every error a user meets, under one base class.

Each class holds its facts as fields and composes its own message: what happened, where, and what to do next.
Nothing of ours is imported here, so any room of the house can raise any of them.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import attrs


class TinyLLMError(Exception):
    """Base of every error that tinyllm raises on purpose."""


# -- settings and graphs ---------------------------------------------------------------------------------------


@attrs.define(eq=False)
class ConfigError(TinyLLMError):
    """A setting is unknown or out of its range."""

    setting: str
    value: Any
    allowed: str

    def __str__(self) -> str:
        return f"setting {self.setting!r} is {self.value!r}; it must be {self.allowed}"


@attrs.define(eq=False)
class UnknownSetting(ConfigError, TypeError):
    """There is no setting of that name: `near` is the one that was probably meant, `allowed` what that may be; where
    none is near, `allowed` lists all. (It is a TypeError too, which is what Python itself raises for an argument that a
    function does not have.)"""

    near: str | None = None

    def __str__(self) -> str:
        if self.near is None:
            return f"there is no setting {self.setting!r}; known are {self.allowed}"
        allowed = f" ({self.allowed})" if self.allowed else ""
        return f"there is no setting {self.setting!r}; did you mean {self.near!r}{allowed}?"


class GraphError(TinyLLMError):
    """Something is wrong with a graph, or with a graph and a trace of it."""


@attrs.frozen
class Fault:
    """One thing wrong in a graph: `where` is its path (`nodes[2].join`), line and column count from 1."""

    message: str
    where: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = [str(part) for part in (self.file, self.line, self.column) if part is not None]
        path = f"{self.where}: " if self.where else ""
        return (":".join(place) + ": " if place else "") + path + self.message


@attrs.define(eq=False)
class InvalidGraph(GraphError):
    """A graph definition or file has faults; every one found is listed."""

    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        return f"{len(self.faults)} faults in the graph:\n" + "\n".join(f"  {fault}" for fault in self.faults)


@attrs.define(eq=False)
class ConditionError(GraphError):
    """A condition does not parse, leaves its sandbox, or fails on the message it was given."""

    source: str
    reason: str
    column: int | None = None

    def __str__(self) -> str:
        at = f" (column {self.column})" if self.column is not None else ""
        return f"condition {self.source!r}{at}: {self.reason}"


@attrs.define(eq=False)
class GraphChanged(GraphError):
    """The graph's topology, reducers or node versions differ from what the trace was recorded with."""

    trace_id: str
    changes: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"the graph changed since trace {self.trace_id!r} was recorded:\n"
            + "\n".join(f"  {change}" for change in self.changes)
            + "\nrun the trace with the graph it was recorded with, or accept the change with "
            "--accept-graph-change (accept_graph_change=True)"
        )


@attrs.define(eq=False)
class NodeMissing(GraphError):
    """A node that the trace must run next is no longer in the graph."""

    trace_id: str
    node_ids: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(repr(node) for node in self.node_ids)
        return (
            f"trace {self.trace_id!r} must run {names} next, which the graph no longer has; "
            "put the node back, or fork from a step before it"
        )


# -- values ----------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class ValueNotStorable(TinyLLMError):
    """A value cannot be recorded. `path` leads to the fault: `value[3].when`."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@attrs.define(eq=False)
class ValueNotReadable(TinyLLMError):
    """Bytes of a captured value do not decode to one: an unknown tag, a malformed one, not JSON at all."""

    reason: str

    def __str__(self) -> str:
        return f"a captured value cannot be read: {self.reason}"


@attrs.define(eq=False)
class ValueMismatch(TinyLLMError):
    """A stored value does not fit the annotation of the parameter that receives it."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@attrs.define(eq=False)
class ValueMutated(TinyLLMError):
    """A node changed, in place, a value it was only lent (found by `debug_mutation=True`)."""

    node_id: str
    path: str

    def __str__(self) -> str:
        return (
            f"{self.node_id}: {self.path} was changed in place; such a change is never recorded: "
            "copy the value, and return or set the copy"
        )


# -- execution -------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class NodeError(TinyLLMError):
    """A node broke its contract: it named an undeclared target, returned what its edges cannot carry, ..."""

    node_id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.node_id}: {self.reason}"


@attrs.define(eq=False)
class NodeTimeout(TinyLLMError, TimeoutError):
    """One attempt at a node took longer than the node's `timeout`."""

    node_id: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.node_id}: not done after {self.seconds:g} s, its timeout"


@attrs.define(eq=False)
class LimitReached(TinyLLMError):
    """A trace came to one of its graph's `limits` before its end."""

    limit: str
    value: float

    def __str__(self) -> str:
        unit = " s" if self.limit == "timeout" else ""
        return (
            f"limits.{self.limit} of {self.value:g}{unit} is reached; "
            "raise it in the graph and resume, if the trace is meant to go on"
        )


@attrs.define(eq=False)
class ExitNotReached(TinyLLMError):
    """Nothing is left to run, and no exit was reached."""

    node_id: str | None

    def __str__(self) -> str:
        last = f"{self.node_id} finished last, none of its edges was taken, and it is no exit: " if self.node_id else ""
        return f"{last}the graph ended without reaching an exit; give that node an edge whose condition always holds"


@attrs.define(eq=False)
class UnguardedMain(TinyLLMError):
    """A script executes a graph with `process: true` nodes whenever it is loaded, so also in each worker process."""

    script: str

    def __str__(self) -> str:
        return (
            f"{self.script} executes a graph when it is loaded, and worker processes load it too; "
            'put that part under `if __name__ == "__main__":`'
        )


@attrs.define(eq=False)
class ExecutionError(TinyLLMError):
    """A trace failed: a node failed for good, or the graph ended without reaching an exit.

    `response` is what `execute()` would have returned; the node's own exception, where this process saw it,
    is `__cause__`. The trace is kept as `failed` and can be resumed. `stored`: it failed earlier, and nothing was
    run now.
    """

    trace_id: str
    node_id: str | None
    step: int
    reason: str
    response: Any = None
    resumable: bool = True
    stored: bool = False

    def __str__(self) -> str:
        where = f" in node {self.node_id!r}" if self.node_id else ""
        where += " before (nothing was run now)" if self.stored else ""
        remedy = f"; resume {self.trace_id!r} once the cause is mended" if self.resumable else ""
        return f"trace {self.trace_id!r} failed{where} after step {self.step}: {self.reason}{remedy}"


# -- traces ----------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class TraceNotFound(TinyLLMError):
    """No trace (so no checkpoint) of that id is in the store that was searched."""

    trace_id: str
    store: str
    near: Sequence[str] = ()

    def __str__(self) -> str:
        hint = f"; did you mean {' or '.join(self.near)}?" if self.near else ""
        return f"no checkpoint found: trace {self.trace_id!r} is not in {self.store}{hint}"


@attrs.define(eq=False)
class AmbiguousTrace(TinyLLMError):
    """A prefix fits more than one trace."""

    prefix: str
    matches: Sequence[str]

    def __str__(self) -> str:
        return f"{self.prefix!r} fits several traces: {', '.join(self.matches)}; type more of the id"


@attrs.define(eq=False)
class CheckpointNotFound(TinyLLMError):
    """The trace exists, but the checkpoint asked for was never made or has been pruned."""

    trace_id: str
    wanted: str
    kept: str = ""

    def __str__(self) -> str:
        kept = f"; kept are {self.kept} (the others were pruned, or never made)" if self.kept else ""
        return f"trace {self.trace_id!r} has no checkpoint {self.wanted}{kept}"


@attrs.define(eq=False)
class CheckpointInUse(TinyLLMError):
    """A checkpoint cannot be dropped."""

    trace_id: str
    rev: int
    reason: str

    def __str__(self) -> str:
        return f"checkpoint {self.trace_id}@{self.rev} stays: {self.reason}"


@attrs.define(eq=False)
class TraceExists(TinyLLMError):
    """A trace of that id is already in the store (which of the two wins is the caller's to decide)."""

    trace_id: str

    def __str__(self) -> str:
        return f"trace {self.trace_id!r} already exists; choose another id, or resume it"


@attrs.define(eq=False)
class TraceMismatch(TinyLLMError):
    """`execute(task, trace_id=)` named a trace of another task or another graph; or a context that is saved does not
    begin with what its trace has already."""

    trace_id: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"trace {self.trace_id!r} exists with another {self.what}; nothing was changed: {self.remedy}"


@attrs.define(eq=False)
class TraceEnded(TinyLLMError):
    """The trace has ended: there is nothing to pause, cancel or answer."""

    trace_id: str
    status: str

    def __str__(self) -> str:
        return f"trace {self.trace_id!r} is {self.status}; nothing of it waits or runs any more"


@attrs.define(eq=False)
class Quarantined(TraceEnded):
    """The trace was set aside: `releasable`, because the processes that executed it died of it; else because it was
    damaged. `reason` says more."""

    reason: str = ""
    releasable: bool = False

    def __str__(self) -> str:
        if self.releasable:
            remedy = "once the cause is mended, release it: resume it with force (--force)"
        else:
            remedy = "it is kept to be looked at, and nothing releases it; a fork can start from its checkpoints"
        return f"trace {self.trace_id!r} is quarantined: {self.reason}; {remedy}"


@attrs.define(eq=False)
class NothingToRun(TinyLLMError):
    """A trace that was saved by hand has no frontier: there is nothing that a graph could go on with."""

    trace_id: str

    def __str__(self) -> str:
        return (
            f"trace {self.trace_id!r} was saved by hand and has nothing to run; "
            "restore its context with CheckpointManager.restore_context(), or execute a task under another id"
        )


# -- questions -------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class QuestionNotOpen(TinyLLMError):
    """No question of that name waits for an answer, or several do. `open` names those that wait; `name` is None where
    the only one was meant."""

    trace_id: str
    name: str | None
    open: Sequence[str] = ()
    several: bool = False

    def __str__(self) -> str:
        if not self.open:
            return f"trace {self.trace_id!r} asks nothing; no question of it is open"
        if self.name is None:
            return f"trace {self.trace_id!r} asks several questions; name the one that is answered: {self._names}"
        what = "names several questions" if self.several else "is no open question"
        return f"{self.name!r} {what} of trace {self.trace_id!r}; open are: {self._names}"

    @property
    def _names(self) -> str:
        return ", ".join([*self.open[:5], *(["..."] if len(self.open) > 5 else [])])


@attrs.define(eq=False)
class AlreadyAnswered(TinyLLMError):
    """Somebody else answered the question first; that answer stands."""

    trace_id: str
    name: str

    def __str__(self) -> str:
        return (
            f"question {self.name!r} of trace {self.trace_id!r} was answered before, and that answer stands; "
            "resume the trace without this one"
        )


@attrs.define(eq=False)
class AnswerRefused(TinyLLMError):
    """An answer does not fit the schema that its question came with. Nothing was recorded."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"the answer to {self.name!r} does not fit: {self.reason}"


# -- ownership -------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class TraceOwned(TinyLLMError):
    """Another live process, or another call in this one, is executing the trace."""

    trace_id: str
    host: str
    pid: int
    since: str

    def __str__(self) -> str:
        if (self.host, self.pid) == (socket.gethostname(), os.getpid()):
            return f"trace {self.trace_id!r} is being executed by another call in this process; wait for that one"
        return (
            f"trace {self.trace_id!r} is being executed by process {self.pid} on {self.host} since {self.since}; "
            "wait for it, or stop that process and try again"
        )


@attrs.define(eq=False)
class OwnershipLost(TinyLLMError):
    """Another process took the trace over; what this one did since its last commit was not recorded."""

    trace_id: str

    def __str__(self) -> str:
        return (
            f"trace {self.trace_id!r} was taken over by another process; this one has stopped and recorded nothing more"
        )


# -- supervisors -----------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class NotSupervised(TinyLLMError):
    """No supervisor serves the store: what is submitted there waits. `graphs`: the files of graphs whose traces do, as
    far as that was looked for."""

    store: str
    graphs: tuple[str, ...] = ()

    def __str__(self) -> str:
        command = shlex.join(["tinyllm", "supervise", *(self.graphs or ["GRAPH"])])
        return f"no supervisor serves the store at {self.store}; start one: {command}"


@attrs.define(eq=False)
class SupervisorSilent(TinyLLMError):
    """A supervisor that lives did not say what it was asked. `socket` is where it listens."""

    socket: str
    reason: str

    def __str__(self) -> str:
        return f"the supervisor at {self.socket} did not answer: {self.reason}"


@attrs.define(eq=False)
class SupervisorGaveUp(TinyLLMError):
    """Workers cannot be kept alive. `usage`: because a graph file or a setting is wrong."""

    reason: str
    usage: bool = False

    def __str__(self) -> str:
        return f"the supervisor gave up: {self.reason}. No trace is lost; mend that, and start it again"


# -- storage ---------------------------------------------------------------------------------------------------


class StorageError(TinyLLMError):
    """The store could not do what was asked."""


@attrs.define(eq=False)
class StoragePathError(StorageError):
    """The storage path cannot be used."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"storage path {self.path} is not accessible: {self.reason}"


class StorageUnavailable(StoragePathError):
    """The store cannot be used just now, which may pass: its disk is full or fails, it is read-only, or no more
    files can be opened. While a trace is executed that is waited for, two minutes at most."""


class StoreMissing(StoragePathError):
    """Nothing was ever stored at the path that was to be read."""

    def __str__(self) -> str:
        return f"there is no store at {self.path}: {self.reason}"


@attrs.define(eq=False)
class StorageNotOpen(StorageError):
    """The store was not opened, was closed, or was opened by the process that this one was forked from."""

    store: str
    reason: str

    def __str__(self) -> str:
        return f"{self.store} cannot be used: {self.reason}"


@attrs.define(eq=False)
class DatabaseTooNew(StorageError):
    """The database was written by a newer tinyllm; it was not touched."""

    path: str
    found: str
    supported: str

    def __str__(self) -> str:
        return (
            f"{self.path} has schema {self.found}, newer than this tinyllm knows ({self.supported}); "
            "it was not touched: upgrade tinyllm-runtime"
        )


@attrs.define(eq=False)
class DatabaseLocked(StorageError):
    """Another process holds the database's write lock for longer than the time-out."""

    path: str
    seconds: float
    pid: int | None = None

    def __str__(self) -> str:
        by = f" by process {self.pid}" if self.pid is not None else ""
        return f"{self.path} has been locked{by} for {self.seconds:g} s; end that process's transaction and try again"


@attrs.define(eq=False)
class DatabaseCorrupt(StorageError):
    """SQLite found the structure of the database damaged."""

    path: str
    detail: str

    def __str__(self) -> str:
        return (
            f"{self.path} is corrupt ({self.detail}); copy what can be read to a new store with "
            "`tinyllm doctor --salvage DIR`, or restore a backup"
        )


@attrs.define(eq=False)
class CommitsMissing(StorageError):
    """The database is older than what was told to be durable: its write-ahead log was cut off, or a backup put back."""

    path: str
    count: int
    note: str

    def __str__(self) -> str:
        return (
            f"the newest {self.count} commits of {self.path}, which were acknowledged, are missing: its -wal file was "
            "cut off or removed, or an older copy was put back. Put back the files that belong together; or copy what "
            "is there to a new store with `tinyllm doctor --salvage DIR`; or, to go on with that, remove "
            f"{self.note}"
        )


@attrs.define(eq=False)
class StorageFailed(StorageError):
    """The store failed for good while a trace was executing."""

    trace_id: str
    step: int
    reason: str

    def __str__(self) -> str:
        return (
            f"the store failed while executing trace {self.trace_id!r}: {self.reason}. Everything up to step "
            f"{self.step} is durable; mend the store and resume the trace"
        )


@attrs.define(eq=False)
class ExecutorBroken(TinyLLMError):
    """Something that an executor cannot do without ended before its time."""

    actor: str
    reason: str

    def __str__(self) -> str:
        return (
            f"the {self.actor} of the executor ended before its time ({self.reason}), and with it all that was "
            "executed. What was acknowledged is durable; resume the traces with another executor"
        )


@attrs.define(eq=False)
class CheckpointDamaged(StorageError):
    """A stored row does not have the bytes it was written with, or is missing."""

    trace_id: str
    step: int | None
    what: str

    remedy = "resume it, which goes back to its newest checkpoint that is whole, or fork from an older one"

    def __str__(self) -> str:
        at = f" at step {self.step}" if self.step is not None else ""
        return f"trace {self.trace_id!r} is damaged{at}: {self.what}; {self.remedy}"


class TraceUnreadable(CheckpointDamaged):
    """A trace is damaged so that no state of it is known."""

    remedy = "it cannot go on; `tinyllm doctor --salvage` copies the other traces, or restore a backup"


@attrs.define(eq=False)
class RerunRefused(CheckpointDamaged):
    """A damaged trace could go on from an older checkpoint, but nodes with effects would run again.

    `effects`: how many, by node; None if what was done since cannot be read.
    """

    good_step: int
    effects: Mapping[str, int] | None

    @property
    def remedy(self) -> str:  # type: ignore[override]
        if self.effects is None:
            since = "and what was done since cannot be read"
        else:
            nodes = ", ".join(
                f"{node!r} ({count})" if count > 1 else repr(node) for node, count in self.effects.items()
            )
            since = f"and since then nodes with effects have run, which would run again: {nodes}"
        return (
            f"its newest checkpoint that is whole is of step {self.good_step}, {since}. If that may be, resume it with "
            "rerun_effects (--rerun-effects)"
        )
