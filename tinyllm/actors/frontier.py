"""What of a trace can still run: the state that a plan changes, and how a store's snapshot becomes it."""

from __future__ import annotations

from collections import Counter

import attrs

from tinyllm.actors.activation import Activation
from tinyllm.actors.joins import Joins, joined
from tinyllm.graph.definition import Graph, after, is_undecided
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.payload import Captured, decode_error
from tinyllm.graph.questions import Question, decode_asked
from tinyllm.storage.contract import Snapshot


class Frontier:
    # Python shares the names of up to thirty attributes among all objects of a class; a plan has more, and would have a
    # dict of its own of 1.5 KiB.
    __slots__ = (
        "activations",
        "active",
        "error",
        "graph",
        "joins",
        "parked",
        "planned",
        "stuck",
        "trace_id",
        "undecided",
    )

    def __init__(self, graph: Graph, trace_id: str) -> None:
        self.graph = graph
        self.trace_id = trace_id
        self.error: ErrorInfo | None = None
        """Why the trace fails, or will when what runs has ended."""
        self.activations: dict[int, Activation] = {}
        """Planned or running, by seq."""
        self.parked: dict[int, Activation] = {}
        """Paused: each waits for an answer."""
        self.stuck: dict[int, Activation] = {}
        """Failed or cancelled: kept for a resume."""
        self.undecided: dict[int, Activation] = {}
        """Results whose edges could not be decided, as what would follow: they are not made again, only decided."""
        self.planned: list[Activation] = []
        """What may start and was not taken by `take_planned()` yet."""
        self.joins = Joins(graph)
        self.active: dict[str, int] = {}  # a Counter is slow where it has nothing
        """Of each node, the live activations: joins behind it wait for them."""

    @property
    def quiescent(self) -> bool:
        """Nothing is left that could ever run."""
        return not (self.activations or self.parked or self.stuck or self.undecided or self.joins.waiting)

    @property
    def at_rest(self) -> bool:
        """Nothing can run before somebody answers."""
        return bool(self.parked) and not (self.activations or self.stuck or self.undecided)

    @property
    def size(self) -> int:
        waiting = len(self.activations) + len(self.parked) + len(self.stuck) + len(self.undecided)
        return waiting + len(self.joins.rounds)

    @property
    def questions(self) -> tuple[Question, ...]:
        """All that wait for an answer, in the order in which they were planned."""
        return tuple(q for seq in sorted(self.parked) if (q := self.parked[seq].question(self.trace_id)))

    def waiting(self) -> Counter[str]:
        """How many activations of each node there are."""
        groups = (self.activations, self.parked, self.stuck, self.undecided)
        return Counter(activation.node for group in groups for activation in group.values())

    def take_planned(self) -> list[Activation]:
        fresh, self.planned = self.planned, []
        return fresh

    def _lives(self, node: str) -> None:
        """One more activation of `node` is in the frontier."""
        self.active[node] = self.active.get(node, 0) + 1

    def _lives_no_more(self, node: str) -> None:
        """One activation of `node` has left the frontier."""
        left = self.active[node] - 1
        if left:
            self.active[node] = left
        else:  # or each trace would hold all the nodes that it has passed
            del self.active[node]

    def _add(self, activation: Activation) -> None:
        self._lives(activation.node)
        self._ready(activation)

    def _ready(self, activation: Activation) -> None:
        self.activations[activation.seq] = activation
        self.planned.append(activation)

    def _restore_frontier(self, snapshot: Snapshot, *, retry: bool) -> None:
        """`retry`: what had failed gets a new budget of attempts. Otherwise it has failed still."""
        inputs = {seq: Captured(message.body) for seq, message in snapshot.messages.items()}
        self.joins.restore(snapshot, inputs)
        for row in snapshot.frontier:
            if row.state == "buffered":
                continue
            if row.message is None:
                sources, reads = joined(self.joins.restored(row.seq))
            else:
                reads = inputs[row.message] if row.item is None else inputs[row.message].item(row.item)
                sources = ((row.message, snapshot.messages[row.message].node),)
            activation = Activation(
                seq=row.seq,
                id=row.id,
                node=row.node,
                sources=sources,
                input=reads,
                path=row.path,
                depth=row.depth,
                attempts=row.attempts,
                tries=row.tries,
                due=row.due,
                progress=row.progress,
                asked=tuple(decode_asked(row.asked)),
            )
            self._lives(after(row.node))
            if is_undecided(row.node):
                self.undecided[row.seq] = activation
            elif row.state == "paused":
                self.parked[row.seq] = activation
            elif row.state == "failed" and not retry:
                self.stuck[row.seq] = activation
                self.error = self.error or (decode_error(row.error) if row.error else None)
            else:
                self._ready(attrs.evolve(activation, tries=0, due=None) if row.state == "failed" else activation)
