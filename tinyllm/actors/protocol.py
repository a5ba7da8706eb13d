"""What actors say to each other: one closed union for each mailbox. Nothing that is sent can change afterwards."""

from __future__ import annotations

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from tinyllm.graph.questions import Asked
from tinyllm.graph.records import record
from tinyllm.nodes.call import Call, Failure, Output
from tinyllm.storage.contract import Command, Delta, Outcome, Write


class Answer:
    """The reply to a request: settled once, with a value or an exception; what comes later makes no difference."""

    def __init__(self) -> None:
        self._settled = anyio.Event()
        self._outcome: Outcome | None = None

    def settle(self, outcome: Outcome) -> None:
        if not self._settled.is_set():
            self._outcome = outcome
            self._settled.set()

    async def wait(self) -> Outcome:
        """The outcome.

        :raises Exception: if that is the outcome.
        """
        if not self._settled.is_set():  # else `outlast` could be cancelled here for ever
            await self._settled.wait()
        assert self._outcome is not None
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


# -- to a Run --------------------------------------------------------------------------------------------------


@record
class Started:
    """A node that was to tell it has begun, and given the loop back."""

    seq: int


@record
class Finished:
    seq: int
    output: Output
    ended_at: float
    duration_ms: float
    blocked: bool = False
    """It ran in the event loop and did not once give it back, for so long that others must be let go first."""


@record
class Deferred:
    """The node was not started: another has blocked the event loop, and what has come of that must be durable first; or
    its run is to start nothing more."""

    seq: int


@record(eq=False)
class Failed:
    seq: int
    failure: Failure
    exception: BaseException | None
    duration_ms: float


@record
class Paused:
    """The node asked something that nobody has answered yet."""

    seq: int
    asked: Asked


@record(eq=False)
class Progressed:
    """A node that still runs saved how far it is, and waits until that is durable."""

    seq: int
    body: bytes
    answer: Answer


@record
class Cancelled:
    seq: int


@record
class Durable:
    """Every delta up to `number` is durable, as `rev`."""

    number: int
    step: int
    rev: int


@record(eq=False)
class Refused:
    """The store did not take a delta: the trace is no longer ours, or the store failed. Nothing later was written."""

    error: Exception


@record(eq=False)
class Stalled:
    """The store takes no writes at present, and is tried again: until something is `Durable`, or `Refused`."""

    error: Exception


@record
class Stop:
    """Start nothing more; end when what runs has ended."""


@record
class Told:
    """What others left for the trace, the oldest first. The same may be told again until it is consumed."""

    commands: tuple[Command, ...]


RunMessage = (
    Started | Finished | Deferred | Failed | Paused | Progressed | Cancelled | Durable | Refused | Stalled | Told | Stop
)
RunAddress = MemoryObjectSendStream[RunMessage]


ROOM = 8
"""A run with so much in its mailbox is told later what it did not ask for: the mailbox has room for all that nodes and
the store answer, and for little else."""


# -- to a NodeExecutor -----------------------------------------------------------------------------------------


@record(eq=False)
class RunNode:
    """`tells`: say when it has `Started`."""

    seq: int
    call: Call
    reply: RunAddress
    tells: bool = False


@record(eq=False)
class CancelNode:
    seq: int
    reply: RunAddress


@record(eq=False)
class HoldNodes:
    """Of what this run has sent, start nothing more: what waits for a place at its node is `Deferred`."""

    reply: RunAddress


NodeMessage = RunNode | CancelNode | HoldNodes


# -- to the CheckpointScheduler --------------------------------------------------------------------------------


@record(eq=False)
class Open:
    """A trace begins to be executed here; its newest delta is `rev`."""

    trace_id: str
    trace: int
    rev: int
    reply: RunAddress


@record(eq=False)
class Stepped:
    """`forced`: somebody waits for it (an end, a failure, an `effects` node), whatever the interval. `hurry`: the
    scheduler is not to wait for more to hand over with it. `tell`: say when it is durable; a run that needs not know
    is not woken for it."""

    trace_id: str
    delta: Delta
    forced: bool
    hurry: bool = True
    tell: bool = True


@record(eq=False)
class Close:
    """Nothing more of this trace comes. Then `release`, if one is given, is carried out."""

    trace_id: str
    release: Write | None = None
    answer: Answer | None = None

    @property
    def hurry(self) -> bool:
        return self.release is not None


ScheduleMessage = Open | Stepped | Close


@record
class Hurry:
    """Somebody waits for what is in the mailbox."""


# -- to the StorageWriter --------------------------------------------------------------------------------------


@record(eq=False)
class Put:
    trace_id: str
    delta: Delta
    reply: RunAddress
    tell: bool = True


@record(eq=False)
class Ask:
    """A write that somebody waits for. It keeps its place among the writes of its trace."""

    trace_id: str
    write: Write
    answer: Answer


@record
class PruneDue:
    """The trace has more checkpoints than are kept."""

    trace_id: str
    trace: int


@record(eq=False)
class Handed:
    """What one turn of the scheduler has for the writer, in order."""

    messages: tuple[Put | Ask | PruneDue, ...]


WriteMessage = Put | Ask | PruneDue | Handed


# -- to the CommandReader --------------------------------------------------------------------------------------


@record(eq=False)
class Watch:
    """Tell the run at `reply` of commands that are left for `trace`."""

    trace: int
    reply: RunAddress


@record
class Unwatch:
    trace: int


@record
class Look:
    """Something was left just now: look at once."""


ReadMessage = Watch | Unwatch | Look
