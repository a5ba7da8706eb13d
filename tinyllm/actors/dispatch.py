"""Which activation may start now: concurrency, durability and credit. Pure; beside `run.py`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Literal

from tinyllm.actors.activation import Activation
from tinyllm.graph.definition import Graph, Node

Durability = Literal["async", "sync", "exit"]

CREDIT = 64
"""Deltas that a trace may have handed over without an acknowledgement: what a crash can cost it."""

IN_LOOP, IN_THREAD = 64, 16
"""Activations of one node that one trace runs at once, where the node does not say: threads are dearer than waiting."""


class Bounds:
    """What of a graph's nodes decides when they may start: the same for all traces."""

    def __init__(self, graph: Graph) -> None:
        self.in_loop = frozenset(node.id for node in graph.nodes.values() if is_in_loop(graph, node))
        self.effects = frozenset(node.id for node in graph.nodes.values() if graph.has_effects(node))
        self.at_once = {node.id: concurrency(graph, node) for node in graph.nodes.values()}
        """Activations of each node that one trace runs at once."""
        self.longest_wait = {node.id: node.retry.max for node in graph.nodes.values() if node.retry is not None}
        """Seconds before another attempt, at most."""
        self.all_at_once = graph.limits.max_concurrency
        self.most = sum(self.at_once.values())
        """Activations that can run at once at all."""


class Dispatch:
    """What is ready, what runs, and the three gates between them.

    - `sync`: nothing starts while anything handed over is not durable.
    - Output commit: a node with effects starts only after the delta that planned it is durable (not in `exit` mode).
    - Credit: nothing starts, and no result is taken, while `CREDIT` deltas are not acknowledged; where deltas are
      merged before they are written, only those count that somebody waits for.

    Before them stand the time at which a failed activation may be tried again, and how many may run at once, of one
    node and of all.

    And two rules for nodes that run in the event loop, once one has blocked it. The next is sent when all is durable: a
    commit begins and ends in the loop, so that what waits for the end of one commit is not in the next while the next
    node blocks. And from then on one is sent only after the one before it has given the loop back: a node that blocks
    would otherwise be followed by its siblings before anybody could record that it has finished.
    """

    def __init__(self, bounds: Bounds, durability: Durability, *, recorded: bool, merges: bool) -> None:
        self._bounds = bounds
        self._sync = recorded and durability == "sync"
        self._commits_output = recorded and durability != "exit"
        self._merges = merges
        self._unacknowledged: list[int] = []  # an empty deque takes ten times the memory, and a trace has several
        self._ready: dict[str, deque[Activation]] = {}
        self.running: dict[int, Activation] = {}
        self.running_of: dict[str, int] = {}
        """How many run of each node of which some do."""
        self.careful = False
        """Whether the loop was blocked: nodes that run in it tell when they have started."""
        self._starting: int | None = None
        self._awaited = 0
        self._awaits_next = False
        self.handed = 0
        self.durable = 0
        self.stopped = False
        self.stalled = False
        """Whether the store is known to take no writes."""
        self.held_back = False
        """Whether something might start, and is not to because the lease is nearly over."""
        self._later: list[tuple[float, int, Activation]] = []
        """A heap of what is not due yet."""

    @property
    def settled(self) -> bool:
        """Nothing runs and all that was handed over is durable."""
        return not self.running and self.durable >= self.handed

    @property
    def has_credit(self) -> bool:
        # Of what is merged nobody counts what waits for the store, so that nothing is added to it.
        return len(self._unacknowledged) < CREDIT and not (self.stalled and self._merges)

    @property
    def needs_telling(self) -> bool:
        """Whether an acknowledgement is worth a turn of the loop: it would be missed soon."""
        return self._sync or self.durable < self._awaited or len(self._unacknowledged) >= CREDIT // 2

    @property
    def reads_durable(self) -> bool:
        """Whether some node reads variables only as they are durable."""
        return self._commits_output and bool(self._bounds.effects)

    @property
    def hurries(self) -> bool:
        """What was handed over is not to wait for more: nothing starts before it is durable."""
        return self._sync or not self.has_credit

    def hand(self, number: int, *, forced: bool) -> None:
        """Delta `number` is handed over."""
        self.handed = number
        if self._awaits_next:
            self._awaited, self._awaits_next = number, False
        if forced or not self._merges:
            self._unacknowledged.append(number)

    def acknowledge(self, number: int) -> None:
        """Every delta up to `number` is durable."""
        self.durable = number
        while self._unacknowledged and self._unacknowledged[0] <= number:
            del self._unacknowledged[0]

    def add(self, planned: Iterable[Activation], *, utc: float, now: float) -> None:
        """`utc` is the time as what is due later has it recorded, `now` the same moment on the event loop's clock.

        Where the wall clock was set back since that was recorded, nothing waits longer than it ever would.
        """
        for activation in planned:
            if activation.due is not None and activation.due > utc:
                wait = min(activation.due - utc, self._bounds.longest_wait.get(activation.node, 0.0))
                heappush(self._later, (now + wait, activation.seq, activation))
            else:
                self._ready.setdefault(activation.node, deque()).append(activation)

    @property
    def next_due(self) -> float | None:
        """When something that waits for its time may start, on the event loop's clock."""
        return self._later[0][0] if self._later and not self.stopped else None

    def release_next_due(self) -> None:
        """Its time has come."""
        _, _, activation = heappop(self._later)
        self._ready.setdefault(activation.node, deque()).append(activation)

    def next(self, may_start: Callable[[], bool]) -> Activation | None:
        """The next activation to start, now counted as running; None if none may."""
        self.held_back = False
        if self.stopped or not self._ready or not self.has_credit or (self._sync and self.durable < self.handed):
            return None
        bounds = self._bounds
        if bounds.all_at_once is not None and len(self.running) >= bounds.all_at_once:
            return None
        for node, queue in self._ready.items():
            if (running := self.running_of.get(node, 0)) >= bounds.at_once[node]:
                continue
            if node in bounds.in_loop and (self._starting is not None or self.durable < self._awaited):
                continue
            if self._commits_output and node in bounds.effects and queue[0].born > self.durable:
                continue
            if not may_start():
                self.held_back = True
                return None
            activation = queue.popleft()
            del self._ready[node]
            if queue:  # to the back: the nodes of a trace take turns
                self._ready[node] = queue
            self.running[activation.seq] = activation
            self.running_of[node] = running + 1
            if self.careful and node in bounds.in_loop:
                self._starting = activation.seq
            return activation
        return None

    def rests_on_durable(self, node: str) -> bool:
        """Whether what `node` does must rest on durable results alone."""
        return self._commits_output and node in self._bounds.effects

    def needs_durable(self, planned: Iterable[Activation]) -> bool:
        """Whether some of `planned` wait for their delta."""
        effects = self._bounds.effects
        return bool(effects) and self._commits_output and any(activation.node in effects for activation in planned)

    def loop_was_blocked(self) -> None:
        """A node blocked the loop until it ended; the next delta is what came of it."""
        self.careful = True
        self._awaits_next = not self._merges  # what is merged is not written so soon

    def started(self, seq: int) -> None:
        if self._starting == seq:
            self._starting = None

    def deferred(self, seq: int) -> None:
        """It was not started, because another has blocked the loop, and is to be sent again."""
        self.careful = True
        activation = self.ended(seq)
        self._ready.setdefault(activation.node, deque()).appendleft(activation)

    def ended(self, seq: int) -> Activation:
        self.started(seq)
        activation = self.running.pop(seq)
        left = self.running_of[activation.node] - 1
        if left:
            self.running_of[activation.node] = left
        else:
            del self.running_of[activation.node]
        return activation


def is_in_loop(graph: Graph, node: Node) -> bool:
    """Whether the node's code runs in the event loop, where it can block it."""
    function = graph.function(node)
    return function is not None and function.is_async


def concurrency(graph: Graph, node: Node) -> int:
    if node.max_concurrency is not None:
        return node.max_concurrency
    if node.process:
        return os.cpu_count() or 1
    return IN_LOOP if graph.function(node) is None or is_in_loop(graph, node) else IN_THREAD
