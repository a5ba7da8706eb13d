"""How far a trace is, as the events of an executor tell it: a plain state, without a clock or a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import assert_never

import attrs

from tinyllm.actors.events import (
    Committed,
    Event,
    FellBack,
    NodeAnswered,
    NodeFailed,
    NodeFinished,
    NodePaused,
    NodeRetried,
    NodeStarted,
    Planned,
    StoreRecovered,
    StoreStalled,
    TraceEnded,
    TraceStarted,
)
from tinyllm.cli.text import duration, rate
from tinyllm.storage.contract import StepRow

WINDOW = 30.0
"""Seconds over which a rate is taken: long enough to be calm, short enough to follow a change."""


@attrs.define
class Pace:
    """How often something ended of late, since `begin`."""

    _since: float | None = None
    _ends: deque[float] = attrs.field(factory=deque)

    def reset(self) -> None:
        self._since = None
        self._ends.clear()

    def begin(self, now: float) -> None:
        if self._since is None:
            self._since = now

    def end(self, now: float) -> None:
        self._ends.append(now)
        while self._ends[0] < now - WINDOW:
            self._ends.popleft()

    def per_second(self, now: float) -> float | None:
        """None where there is nothing to tell it from."""
        if self._since is None:
            return None
        ends = sum(end >= now - WINDOW for end in list(self._ends))  # a copy: another thread draws than counts
        span = now - max(self._since, now - WINDOW)
        return ends / span if ends and span > 0 else None


@attrs.define
class NodeProgress:
    """Counts of one node's activations. `kept` ended before this process, `done` in it. `waiting` are also those that
    wait for another attempt, or, `asking`, for an answer.

    `pace` leaves out the first round, which has the start of workers and connections in it, and of which all that ran
    at once may end at once; nothing is told from it until a second round's worth has ended.
    """

    kept: int = 0
    done: int = 0
    running: int = 0
    waiting: int = 0
    asking: int = 0
    failed: int = 0
    pace: Pace = attrs.field(factory=Pace)
    _abreast: int = 0
    _ended: int = 0

    @property
    def outstanding(self) -> int:
        return self.running + self.waiting

    @property
    def seen(self) -> bool:
        return bool(self.kept or self.done or self.failed or self.outstanding)

    def plan(self, count: int) -> None:
        if not self.outstanding:  # time in which it had nothing to do says nothing about how fast it is
            self.pace.reset()
            self._abreast = self._ended = 0
        self.waiting += count

    def start(self) -> None:
        self.waiting = max(0, self.waiting - 1)
        self.running += 1
        self._abreast = max(self._abreast, self.running)

    def end(self, now: float) -> None:
        self._ended += 1
        if self._ended > self._abreast:
            self.pace.end(now)
        elif self._ended == self._abreast:
            self.pace.begin(now)
        self.running = max(0, self.running - 1)
        self.done += 1

    def fail(self) -> None:
        self.running = max(0, self.running - 1)
        self.failed += 1

    def retry(self) -> None:
        """It is planned again, which is told as such."""
        self.running = max(0, self.running - 1)

    def ask(self) -> None:
        self.running = max(0, self.running - 1)
        self.waiting += 1
        self.asking += 1

    def answer(self) -> None:
        """It is planned again, which is told as such."""
        self.waiting = max(0, self.waiting - 1)
        self.asking = max(0, self.asking - 1)

    def per_second(self, now: float) -> float | None:
        return self.pace.per_second(now) if self._ended >= 2 * self._abreast else None

    def left(self, now: float) -> float | None:
        """Seconds until what is planned of this node has ended, at its pace of late; None, too, where that is up to a
        person."""
        speed = self.per_second(now)
        return self.outstanding / speed if speed and not self.asking else None


class Progress:
    """One trace's progress. `earlier`: durable steps, of which those up to where it begins count as kept."""

    def __init__(self, nodes: Iterable[str], earlier: Sequence[StepRow] = ()) -> None:
        self.nodes = {node: NodeProgress() for node in nodes}
        self._earlier = earlier
        self.begun: TraceStarted | None = None
        self.ended: TraceEnded | None = None
        self.started_at: float | None = None
        self.step = 0
        self.durable_step = 0
        self.stalled = False
        """The store takes no writes at present."""
        self.pace = Pace()

    def apply(self, event: Event, now: float) -> None:
        match event:
            case FellBack():
                """It says nothing of what is to be done."""
            case TraceStarted():
                self.begun, self.started_at = event, now
                self.pace.begin(now)
                self.step = self.durable_step = event.kept
                for row in self._earlier:
                    if row.step <= event.kept:
                        self._node(row.node).kept += 1
                for node, count in event.waiting.items():
                    self._node(node).plan(count)
            case Planned():
                self._node(event.node_id).plan(event.count)
            case NodeStarted():
                self._node(event.node_id).start()
            case NodeFinished():
                self._node(event.node_id).end(now)
                self.pace.end(now)
                self.step = max(self.step, event.step)
            case NodeRetried():
                self._node(event.node_id).retry()
            case NodePaused():
                self._node(event.node_id).ask()
            case NodeAnswered():
                self._node(event.node_id).answer()
            case NodeFailed(handler=str()):  # a step like any other
                self._node(event.node_id).end(now)
                self.pace.end(now)
            case NodeFailed():
                self._node(event.node_id).fail()
            case Committed():
                self.step = max(self.step, event.step)
                self.durable_step = max(self.durable_step, event.step)
            case StoreStalled() | StoreRecovered():
                self.stalled = isinstance(event, StoreStalled)
            case TraceEnded():
                self.ended = event
            case _:
                assert_never(event)

    def _node(self, node_id: str) -> NodeProgress:
        # What no graph file names (the join behind the exits) is counted but not shown.
        return NodeProgress() if node_id.startswith("$") else self.nodes.setdefault(node_id, NodeProgress())

    @property
    def at_work(self) -> bool:
        """Something goes on without an answer."""
        return any(node.outstanding > node.asking for node in self.nodes.values())

    @property
    def failed(self) -> int:
        return sum(node.failed for node in self.nodes.values())

    def elapsed(self, now: float) -> float:
        return 0.0 if self.started_at is None else now - self.started_at

    def left(self, now: float) -> tuple[float, bool] | None:
        """Seconds until everything planned has ended, and whether that is all: no node is still to be reached, and of
        each one the pace is known."""
        nodes = list(self.nodes.values())
        shares = [node.left(now) for node in nodes if node.outstanding]
        known = [share for share in shares if share is not None]
        return (max(known), len(known) == len(shares) and all(node.seen for node in nodes)) if known else None

    def sentence(self, now: float, *, counts: bool = True) -> str:
        """Where the trace is, for one line: what is not known is not in it. `counts`: also what is planned."""
        parts = [f"{self.step:,} done"]
        if counts:
            # Not how many of them run: between an end and the start of the next that would be one too few.
            parts.append(f"{sum(node.outstanding for node in self.nodes.values()):,} to go")
        if self.step > self.durable_step:
            parts.append(f"{self.step - self.durable_step:,} not durable yet")
        if self.stalled:
            parts.append("waiting for the store")
        if speed := self.pace.per_second(now):
            parts.append(rate(speed))
        if (left := self.left(now)) is not None:
            seconds, all_of_it = left
            parts.append(f"{'about' if all_of_it else 'at least'} {duration(seconds)} left")
        return ", ".join(parts)
