"""What a store promises, and the frozen records that cross into it and out of it.

A trace is stored as deltas. Every row of a trace has a sequence number that its owner assigns, rising and never
reused within a trace; a checkpoint records how far each had risen (`Marks`). A row is visible at a checkpoint when its
number is not above the checkpoint's mark and, for an activation, when it had not ended by the checkpoint's rev.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol, TypeVar

import attrs

from tinyllm.graph.records import record
from tinyllm.storage.direct import DirectUse
from tinyllm.storage.records import CheckpointRecord as CheckpointRecord

T = TypeVar("T")

Status = Literal["queued", "running", "paused", "completed", "failed", "cancelled", "interrupted", "quarantined"]
"""`interrupted` is never stored: it is a `running` trace without a live owner."""

TERMINAL: frozenset[Status] = frozenset({"completed", "failed", "cancelled", "quarantined"})

UNOWNED: frozenset[Status] = TERMINAL | {"paused"}
"""A delta with one of these gives the trace up: nothing can run until somebody acquires it again."""

ActivationState = Literal["planned", "buffered", "paused", "failed", "cancelled"]
"""`buffered`: a join's round that still collects arrivals. Running is not a state: after a crash it means nothing."""


# -- rows ------------------------------------------------------------------------------------------------------


@record
class Marks:
    """The highest sequence number handed out, of each kind of row."""

    message: int = 0
    activation: int = 0
    arrival: int = 0
    variable: int = 0


@record
class MessageRow:
    """A value that flowed. `consumers` is the number of activation and arrival rows, written with it, that read it:
    when the last of them is pruned, a message that is not `history` goes too."""

    seq: int
    node: str
    consumers: int
    body: bytes
    history: bool = True


@record
class ActivationRow:
    """A member of the frontier, from the delta that plans it to the delta that ends it.

    It reads message `message` (its item number `item`, for a `for_each` edge); a join's round reads its arrivals
    instead (`message` is None). `id` is the causal id, 16 bytes, empty while a round is `buffered`. `depth` is the
    length of the longest chain of causes, `path` the fan-out indexes on the way: together with `id` they order what is
    concurrent.

    From `state` on, what a `StateChange` replaces as a whole.
    """

    seq: int
    id: bytes
    node: str
    message: int | None
    item: int | None = None
    path: tuple[int, ...] = ()
    depth: int = 0
    state: ActivationState = "planned"
    attempts: int = 0
    error: bytes | None = None
    tries: int = 0
    """Of `attempts`, those that count against the present budget: an explicit resume grants a new one."""
    due: float | None = None
    """When the next attempt may start, UTC seconds: a back-off outlives its process."""
    progress: bytes | None = None
    """What the node saved of its own progress: a captured value."""
    asked: bytes | None = None
    """What the node asked, in order, as captured JSON: see `tinyllm.graph.questions`."""


@record
class ArrivalRow:
    """One message that reached the join round `activation`. None: an empty fan-out arrived, which brings nothing."""

    seq: int
    activation: int
    message: int | None
    id: bytes
    path: tuple[int, ...] = ()
    depth: int = 0


@record
class Fired:
    """A buffered round has become a planned activation. Its path is empty: it waited for all of every fan-out."""

    activation: int
    id: bytes
    depth: int


@record
class StateChange:
    """A live activation's new state, without an end: a failed attempt, a pause, an answer, saved progress. It replaces
    all fields of the row from `state` on."""

    activation: int
    state: ActivationState
    attempts: int
    error: bytes | None = None
    tries: int = 0
    due: float | None = None
    progress: bytes | None = None
    asked: bytes | None = None

    def applied_to(self, row: ActivationRow) -> ActivationRow:
        return attrs.evolve(
            row,
            state=self.state,
            attempts=self.attempts,
            error=self.error,
            tries=self.tries,
            due=self.due,
            progress=self.progress,
            asked=self.asked,
        )


VariableKind = Literal["full", "append", "deleted"]


@record
class VariableRow:
    """One change of one variable. `base` is the seq of the full row that its chain starts with (its own, if full or
    deleted). An `append` row's body is one item (of a list) or the keys to update (of a dict); `order` (JSON) is the
    key by which they are presented."""

    seq: int
    key: str
    kind: VariableKind
    base: int
    body: bytes
    order: bytes | None = None


def sum_of_changes(variables: Iterable[Sequence[VariableRow]]) -> int:
    """What `Counts.changes` is of variables that consist of these rows."""
    return sum(row.seq for rows in variables for row in rows)


@record
class StepRow:
    """A finished activation. `ended_at` is UTC seconds since 1970."""

    step: int
    activation: int
    node: str
    ended_at: float
    duration_ms: float
    attempts: int = 1
    status: str | None = None
    """The word that the node itself gave its result, as `Result(status=...)`."""


@record
class Counts:
    """How many rows a checkpoint sees; fewer found means rows are missing, which row checksums cannot show."""

    messages: int = 0
    """Of the history, since its beginning; of a history with a window only the last ones are kept and shown."""
    frontier: int = 0
    arrivals: int = 0
    """Of the rounds in the frontier."""
    variables: int = 0
    changes: int | None = 0
    """The sum of the seqs of all rows that the variables consist of: which is another one where an older change stands
    in for the newest. None: an older version did not say."""

    def shown(self, window: int | None) -> int:
        """How many messages of a history with that window are shown; None: all are kept."""
        return self.messages if window is None else min(self.messages, window)


@record(kw_only=True)
class Delta:
    """What one checkpoint adds to the one before it (at admission: to nothing).

    The owner of a trace hands its deltas over in order, numbered by `number`; the scheduler may merge neighbours and
    stamps `rev`, one above the last, on what it sends to be written.
    """

    trace: int
    """The trace's key; 0 at admission, when it has none yet."""
    epoch: int
    number: int
    rev: int = 0
    step: int
    status: Status
    node: str | None = None
    marks: Marks
    counts: Counts
    messages: tuple[MessageRow, ...] = ()
    activations: tuple[ActivationRow, ...] = ()
    arrivals: tuple[ArrivalRow, ...] = ()
    fired: tuple[Fired, ...] = ()
    changed: tuple[StateChange, ...] = ()
    ended: tuple[int, ...] = ()
    variables: tuple[VariableRow, ...] = ()
    steps: tuple[StepRow, ...] = ()
    error: bytes | None = None
    """The trace's error (an `ErrorInfo`), with the status `failed`."""
    generation: int = 1
    generation_step: int = 0
    """The step after which the generation began."""
    elapsed: float = 0.0
    """Seconds for which the trace was being executed, over all resumes, without the pauses between them."""
    tokens_in: int = 0
    tokens_out: int = 0
    """Tokens that nodes reported, since the beginning of the trace."""
    task: str | None = None
    """The digest of a task that this delta adds to the history (admission has its own, in `Admit`)."""
    consumed: tuple[int, ...] = ()
    """Ids of the commands that this delta carries out: they are consumed with it, or not at all."""
    size: int = 0
    """Bytes of all bodies."""


# -- ownership -------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Owner:
    """A process that may execute traces. (`boot_id`, `pid_namespace`, `pid`, `started`) is never given twice."""

    id: str
    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started: str
    since: float
    """UTC seconds; for people. Leases never compare clocks of two processes."""


# -- writes ----------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Admit:
    """Create a trace with its first delta, at rev 0: owned, or, if that delta is `queued`, waiting to be claimed.
    -> `Admitted`, or `TraceExists`."""

    trace_id: str
    graph_id: str
    graph_version: str
    fingerprint: str
    definition: bytes
    """The graph's topology and details as JSON; stored once per distinct content."""
    graph_path: str | None
    task_digest: str
    owner: str | None
    history: int | None = None
    """How many of the newest messages of the history are kept: None all, 0 none. Fixed for the life of the trace."""
    priority: int = 0
    """Of the traces that wait to be claimed, those with the highest go first."""
    not_before: float | None = None
    """UTC seconds: it is not claimed earlier. (Whoever acquires it need not wait.)"""
    first: Delta


@attrs.frozen(kw_only=True)
class Fork:
    """Create a trace that shares all that `parent` had at its checkpoint `rev`, which is pinned.

    `first` holds what the child has of its own: the parent's frontier copied under new ids, and changed variables. Its
    rows and its rev continue the parent's numbers: whatever is below the parent's marks there is the parent's.
    -> `Admitted`, `TraceExists`, or `CheckpointNotFound`.
    """

    parent: int
    rev: int
    trace_id: str
    owner: str | None
    first: Delta


@attrs.frozen(kw_only=True)
class FallBack:
    """Have the damaged trace `trace` go on from its checkpoint `rev`: what it was is `quarantined` from now on, under
    the id `kept_as` and with `error`, and a fork of it at `rev` has its id.

    `first` is as in `Fork`. -> `Admitted`; `OwnershipLost` if its epoch and its newest rev are not `epoch` and
    `reached` any more, `TraceExists` if there is one called `kept_as`, or `CheckpointNotFound`.
    """

    trace: int
    trace_id: str
    epoch: int
    reached: int
    rev: int
    kept_as: str
    error: bytes
    owner: str | None
    first: Delta

    @property
    def fork(self) -> Fork:
        return Fork(parent=self.trace, rev=self.rev, trace_id=self.trace_id, owner=self.owner, first=self.first)


@record
class Append:
    """Add a delta. Written only if the trace's epoch is the delta's and its rev is one below: -> `Appended`, or
    `OwnershipLost`, and then nothing of it is written. A delta that is already there, whole, counts as appended."""

    trace_id: str
    delta: Delta


@attrs.frozen
class Acquire:
    """Make `owner` the owner of a trace, if its epoch is still `epoch`. -> `Acquired` (the epoch is one higher), or
    `OwnershipLost`. `definition`, `fingerprint` and `graph_path` replace the graph that the trace is recorded with, and
    its status becomes `running`. Where `definition` is None, both stay: for whoever will not execute the trace, but
    write one delta; should that one die before it has, the trace is what it was."""

    trace: int
    trace_id: str
    epoch: int
    owner: str
    fingerprint: str = ""
    definition: bytes | None = None
    graph_path: str | None = None


@attrs.frozen
class Release:
    """Give up a trace without ending it; it is `interrupted` from now on. -> `Done`, also where it is not ours.
    `not_before`: UTC seconds before which nobody is to claim it."""

    trace: int
    epoch: int
    not_before: float | None = None


@attrs.frozen
class Wanted:
    """What a process would execute: traces of the graph `graph_id`, each then owned by `owner`, as long as no more than
    `at_most` traces of that graph have an owner, whoever that is (None: any number)."""

    graph_id: str
    owner: str
    at_most: int | None = None

    def room(self, limit: int, owned: int, reserved: bool) -> int:
        """How many a claim of `limit` may take, at most (not above 0: none), where `owned` have an owner; `reserved`:
        one place is for another claim."""
        return limit if self.at_most is None else min(limit, self.at_most - owned - reserved)


@attrs.frozen
class Claim:
    """Give `limit` of the traces that wait to be executed, or fewer, their owners, as `wanted` says. -> `Claimed`.

    A trace waits that is `queued`, or `running` without an owner, and may be claimed by now. Those of the highest
    priority go first, and of those the oldest. `apart`: only those that are to be executed apart; or only the others.
    While one that is to be executed apart waits, the others of its graph leave one place of `at_most` to it: whoever
    executes many claims again at once, and would always be quicker.
    What it costs does not grow with the number of those that wait.
    """

    wanted: tuple[Wanted, ...]
    limit: int
    apart: bool = False


@attrs.frozen
class Disown:
    """Take a trace away from `owner`, which died: it waits to be claimed from now on. -> `Done`, or `OwnershipLost` if
    its epoch and its owner are others.

    `deaths` (JSON, None for none) is kept with it as what is known of the deaths at which it ran; `apart`: it is to be
    executed apart. With an `error` (an `ErrorInfo`), it is `quarantined` instead.
    """

    trace: int
    trace_id: str
    epoch: int
    owner: str
    deaths: bytes | None = None
    apart: bool = False
    error: bytes | None = None


@attrs.frozen
class Acquit:
    """Forget the deaths at which a trace ran: it need not be executed apart any more. -> `Done`, or `OwnershipLost` if
    its epoch is another."""

    trace: int
    trace_id: str
    epoch: int


CommandKind = Literal["pause", "cancel", "answer"]


@attrs.frozen
class Leave:
    """Leave a command for whoever owns the trace, now or next. -> `Left`.

    A `pause` or `cancel` that is there already is the same one. An `answer` is to the question `name` of the activation
    `activation` (its causal id) and is given once, also when it was consumed long ago: a second one is
    `AlreadyAnswered`, until the activation is pruned. A trace whose status is in `TERMINAL` takes none: `TraceEnded`;
    where there is no trace: `TraceNotFound`. A delta by which the trace comes to such a status drops the pauses and
    cancels that are there: they were for what has ended, and not for what may be tried again.
    """

    trace: int
    trace_id: str
    kind: CommandKind
    activation: bytes | None = None
    name: str | None = None
    body: bytes | None = None


@attrs.frozen
class Label:
    """Name a kept checkpoint, or take its name away (None): a labelled one is not pruned. Nobody has to own the trace.
    -> `Done`, or `CheckpointNotFound`."""

    trace: int
    trace_id: str
    rev: int
    label: str | None


@attrs.frozen
class Drop:
    """Drop one checkpoint, labelled or not, and all that no other one needs. -> `Pruned` (0: it was not there), or
    `CheckpointInUse`: it is the newest, which is the trace's present state, the first, or a fork starts from it."""

    trace: int
    trace_id: str
    rev: int


@attrs.frozen
class Prune:
    """Drop at most `limit` of the checkpoints older than the newest `keep`, and all that no kept one needs.
    The first checkpoint, labelled and pinned ones stay. Of a history with a window goes what lies before the windows of
    all that are kept. -> `Pruned`."""

    trace: int
    keep: int
    limit: int = 64


@attrs.frozen
class Delete:
    """Forget a trace. While forks of it live, what they share stays as a tombstone that no listing shows. -> `Done`.
    Nothing in the engine sends it: a trace that ended stays. It is for those who tidy up."""

    trace: int


Write = (
    Admit
    | Fork
    | FallBack
    | Append
    | Acquire
    | Release
    | Claim
    | Disown
    | Acquit
    | Leave
    | Label
    | Drop
    | Prune
    | Delete
)


@attrs.frozen
class Admitted:
    trace: int
    epoch: int
    rev: int


@record
class Appended:
    rev: int


@attrs.frozen
class Acquired:
    """`rev`: of the newest delta, which only the new owner can follow any more. `told`: whether commands had been left
    for the trace by then. None where a store does not say."""

    epoch: int
    rev: int | None = attrs.field(default=None, eq=False)
    told: bool | None = attrs.field(default=None, eq=False)


@attrs.frozen
class Held:
    """A trace that was claimed."""

    trace: int
    trace_id: str
    graph_id: str
    epoch: int


@attrs.frozen
class Owned(Held):
    """A trace that has an owner: what is to be known of it to take it away. Of a damaged one, what makes no sense is
    something that does: nothing of it keeps its owner from losing it."""

    status: Status
    """As it is stored: never `interrupted`."""
    step: int
    deaths: bytes | None
    """As in `Disown`; None, too, where that is damaged."""


@attrs.frozen
class Claimed:
    """In the order in which they are to be executed."""

    traces: tuple[Held, ...]


@attrs.frozen
class Left:
    command: int
    """Its id: they rise in the order in which they were left."""


@attrs.frozen
class Pruned:
    checkpoints: int


@record
class Done:
    pass


Outcome = Admitted | Appended | Acquired | Claimed | Left | Pruned | Done | Exception
"""What became of one write. An exception here is that write's alone: the others of its batch are durable."""


# -- what is read ----------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class TraceRecord:
    """A trace as the store knows it. Times are UTC seconds since 1970."""

    trace: int
    trace_id: str
    graph_id: str
    graph_version: str
    graph_path: str | None
    fingerprint: str
    definition_digest: str | None = None
    """Of the graph's definition, by `graph.values.digest`: what has the same is the same graph. None where a store does
    not say."""
    task_digest: str
    last_task: str
    """The digest of the task that was last added to the history."""
    history: int | None
    """As in `Admit`."""
    status: Status
    step: int
    rev: int
    epoch: int
    owner: Owner | None
    """Who executes it; or, after `Disown`, who did when it died."""
    owner_beat: int
    """Rises while the owner renews its lease."""
    owner_alive: bool | None
    """None: it cannot be judged from here (another host or container); then only `owner_beat` tells."""
    high_water: tuple[int, int] | None
    """(step handed over, activations running) when the last owner stopped, as far as known; read before taking over."""
    parent: str | None
    parent_rev: int | None
    parent_step: int | None
    created_at: float
    updated_at: float
    error: bytes | None
    priority: int = 0
    not_before: float | None = None
    """UTC seconds before which it is not claimed; None where that has passed."""
    apart: bool = False
    """It is to be executed apart."""
    deaths: bytes | None = None
    """As in `Disown`; None, too, where that is damaged."""

    def __repr__(self) -> str:
        return f"<TraceRecord {self.trace_id!r} of {self.graph_id!r}, {self.status} at step {self.step}>"


@attrs.frozen(kw_only=True)
class Snapshot:
    """All that a resume needs of a trace at one checkpoint: in proportion to the frontier and the variables."""

    record: TraceRecord
    rev: int
    step: int
    status: Status
    marks: Marks
    counts: Counts
    frontier: tuple[ActivationRow, ...]
    arrivals: tuple[ArrivalRow, ...]
    """Of the rounds in the frontier."""
    messages: Mapping[int, MessageRow]
    """By seq: all that the frontier and its arrivals read."""
    variables: Mapping[str, tuple[VariableRow, ...]]
    """By key: the full row, then its appended rows by seq. Deleted keys are absent."""
    generation: int = 1
    generation_step: int = 0
    elapsed: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0

    def following(self) -> Delta:
        """The delta that follows and changes nothing: for whoever writes to a trace of which nothing runs."""
        return Delta(
            trace=self.record.trace,
            epoch=self.record.epoch,
            number=0,
            rev=self.rev + 1,
            step=self.step,
            status=self.status,
            marks=self.marks,
            counts=self.counts,
            error=self.record.error if self.status == "failed" else None,
            generation=self.generation,
            generation_step=self.generation_step,
            elapsed=self.elapsed,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
        )


@attrs.frozen
class Intact:
    """The newest state of a damaged trace that is whole. `planned`: the nodes of what was planned since, as far as that
    can be read, and has not ended; it may have begun."""

    snapshot: Snapshot
    planned: tuple[str, ...] = ()


@attrs.frozen
class Lease:
    """An owner that traces name, as the store knows it. `owner` is None, and `beat` 0, where it has no lease.
    `alive` as `TraceRecord.owner_alive`."""

    id: str
    owner: Owner | None
    beat: int
    alive: bool | None


@attrs.frozen
class Backlog:
    """What there is to do, for some graphs. Times are UTC seconds."""

    waiting: int
    """Traces that could be claimed now, without those that are to be executed `apart`."""
    apart: int
    later: int
    """Those that are not to be claimed yet."""
    running: int
    """Those that have an owner."""
    quarantined: int
    oldest: float | None
    """Since when the one of `waiting` waits that has waited longest: when it was last written, given up or taken from
    its owner, or when it was due, if that is later."""


@attrs.frozen
class Demand:
    """What there is to do for one graph."""

    graph_id: str
    graph_path: str | None
    """Of the newest of its traces that are not at rest: those that wait, have an owner, or are quarantined."""
    waiting: int
    """Traces that are `queued`, or `running` without an owner; those, too, that may not be claimed yet."""


@attrs.frozen
class Command:
    """A command that was left and not yet consumed. `created_at` is UTC seconds."""

    id: int
    trace: int
    kind: CommandKind
    activation: bytes | None
    name: str | None
    body: bytes | None
    created_at: float


# -- the store -------------------------------------------------------------------------------------------------


class HighWater(Protocol):
    """Where an owner notes, after every hand-over, how far it is. It survives the process, not the machine, and costs
    well under a microsecond: what a resume needs to say how much was lost."""

    def note(self, step: int, running: int) -> None: ...

    def close(self) -> None:
        """The trace ended or was given up: nothing is lost."""


class Reads(Protocol):
    """What code that is not async may read; each as the method of `CheckpointStorage` that is called so."""

    def load(self, trace_id: str, rev: int | None) -> Snapshot: ...

    def definition(self, trace_id: str) -> bytes: ...

    def checkpoints(self, trace_id: str, limit: int, offset: int) -> list[CheckpointRecord]: ...

    def steps(self, trace_id: str, after: int, limit: int) -> list[StepRow]: ...

    def messages(self, trace_id: str, rev: int | None, after: int, limit: int) -> list[MessageRow]: ...


class CheckpointStorage(DirectUse, ABC):
    """Where traces are kept.

    All methods may be called from any task of the event loop that called `initialize()`, and at the same time. A store
    captures bytes: nothing it returns or took is shared with a caller in a way that a caller could change.

    Every method raises a `StorageError` when the store itself fails; where that may pass, a `StorageUnavailable` or
    `DatabaseLocked`: the same call may succeed later.
    """

    name: str
    """What messages call this store: its path, or `memory`."""

    @abstractmethod
    async def initialize(self) -> None:
        """Open, create or migrate. A second call does nothing.

        :raises StoragePathError: the path is a file, is missing and cannot be made, or is not writable.
        :raises DatabaseTooNew: it was written by a newer version; nothing was touched.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release everything. A second call does nothing. Every commit that was begun is over when it returns."""

    @abstractmethod
    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        """Carry out `writes`, in order, in one transaction; return one outcome for each.

        When it returns, all of them are durable but those whose outcome is an exception, of which nothing is written.
        When it raises, none of them is; unless the disk failed in the middle of making them durable, and still fails
        at looking for them or at making sure of them. Then, too, it raises, and they may be there or not. That is
        decided by committing them again, which does nothing twice: an `Append` that is there is `Appended` once more,
        an `Admit` or `Fork` is `TraceExists`, an `Acquire` is `OwnershipLost`. Cancelling the caller does not stop it:
        it returns, or raises, all the same.
        """

    @abstractmethod
    async def reclaim(self, limit: int) -> int:
        """Give up to `limit` free pages back to the file system; returns how many are left to give (0: done)."""

    @abstractmethod
    async def trace(self, trace_id: str) -> TraceRecord | None:
        """The trace, or None. A tombstone is None."""

    @abstractmethod
    async def traces(
        self,
        *,
        prefix: str = "",
        graph_id: str | None = None,
        status: Status | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[TraceRecord]:
        """Traces, the most recently updated first; `prefix` is matched literally."""

    @abstractmethod
    async def definition(self, trace_id: str) -> bytes:
        """The graph, as given in `Admit` or the last `Acquire`."""

    @abstractmethod
    async def load(self, trace_id: str, rev: int | None = None) -> Snapshot:
        """The state at the newest checkpoint, or at the one of `rev`, exactly as it was then. (Of an older frontier,
        all that is not `buffered` is `planned`, without attempts, errors, progress or questions.)

        :raises TraceNotFound: no such trace.
        :raises CheckpointNotFound: `rev` has no checkpoint.
        :raises CheckpointDamaged: a row has other bytes than were written, or is missing.
        """

    @abstractmethod
    async def load_intact(self, trace_id: str) -> Intact:
        """The state at the newest kept checkpoint that can be read. (Older states are as `load` returns them.)

        :raises TraceNotFound: no such trace.
        :raises CheckpointDamaged: its own record is damaged, or none of its checkpoints can be read.
        """

    @abstractmethod
    async def checkpoints(self, trace_id: str, *, limit: int = 100, offset: int = 0) -> list[CheckpointRecord]:
        """Kept checkpoints, the newest first. Reads no message."""

    @abstractmethod
    async def steps(self, trace_id: str, *, after: int = 0, limit: int = 1000) -> list[StepRow]:
        """Finished activations by step, from the one after `after`; a fork's begin with its parents'."""

    @abstractmethod
    async def messages(
        self, trace_id: str, *, rev: int | None = None, after: int = 0, limit: int = 1000
    ) -> list[MessageRow]:
        """The history at a checkpoint, by seq, from the one after `after`; a fork's begins with its parents'."""

    @abstractmethod
    async def find_checkpoint(
        self, trace_id: str, *, node: str | None = None, step: int | None = None
    ) -> CheckpointRecord:
        """The newest kept checkpoint of that step; or the newest at which an activation of `node` was waiting to run.

        :raises CheckpointNotFound: naming what is kept.
        """

    @abstractmethod
    def read_now(self, question: Callable[[Reads], T]) -> T:
        """What `question` returns, with one consistent view of the store: for records, which are read when they are
        looked at. It blocks the calling thread, which is that of the event loop, until it has been answered; so it must
        ask for little. Being cancelled does not matter to it.

        :raises StorageNotOpen: the store is closed.
        """

    @abstractmethod
    async def commands(self, *, owner: str | None = None, trace: int | None = None) -> list[Command]:
        """What was left and not yet consumed, by id: for the traces of `owner`, or for one trace. Cheap where there is
        nothing: it is asked about once a second."""

    @abstractmethod
    async def next_due(self, graph_ids: Sequence[str], *, apart: bool = False) -> float | None:
        """When the next trace of those graphs can be claimed, as a `Claim` with that `apart`: UTC seconds, 0 for at
        once, None if none waits. Cheap, however many do."""

    @abstractmethod
    async def backlog(self, graph_ids: Sequence[str]) -> Backlog:
        """What there is to do for those graphs; takes time in proportion to it."""

    @abstractmethod
    async def demand(self) -> list[Demand]:
        """The graphs of all traces that wait, have an owner, or are quarantined, by id; takes time in proportion to
        the number of those."""

    @abstractmethod
    async def owners(self) -> list[Lease]:
        """The owners that traces name: who executes them, or has died without being disowned."""

    @abstractmethod
    async def held(self, owner: str) -> list[Owned]:
        """The traces that the owner of that id has, by key; those that are damaged, too."""

    @abstractmethod
    async def answered(self, trace: int) -> list[tuple[bytes, str]]:
        """The questions of a trace that have an answer, consumed or not, by activation and name, as far as their
        activations are kept."""

    # -- ownership: called by the lease keeper from a thread of its own ----------------------------------------

    @abstractmethod
    def renew(self, owner: Owner) -> None:
        """Write or renew `owner`'s lease (raise its beat by one). Any thread; blocks until it is durable enough to be
        seen by other processes. `commit` renews by itself the owners of the traces it writes, at most once a second."""

    @abstractmethod
    def retire(self, owner: Owner) -> None:
        """Remove `owner`'s lease at a clean end. Any thread. Even if that fails, and when the store closes, the owner
        counts as dead in this process from then on."""

    @abstractmethod
    def high_water(self, owner: Owner, trace: int, epoch: int) -> HighWater:
        """A place for the high-water mark of a trace just acquired or admitted by `owner`."""


@attrs.frozen
class StorageConfig:
    """`sqlite_path`: the directory of the SQLite store (`~` is expanded; it is made if it is missing)."""

    sqlite_path: str = "~/.tinyllm/data"
