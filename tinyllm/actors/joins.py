"""Joins: rounds that collect arrivals, and the rule that says when one fires."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from tinyllm.graph.definition import END, Graph
from tinyllm.graph.ids import round_id
from tinyllm.graph.payload import Captured
from tinyllm.graph.records import record
from tinyllm.storage.contract import Snapshot

NOTHING = Captured(b"null")


@record(eq=False)
class Arrival:
    """A message that waits at a join. `message` is None where an empty fan-out arrived: it brings nothing."""

    seq: int
    message: int | None
    source: str
    input: Captured
    id: bytes
    path: tuple[int, ...]
    depth: int


@record(eq=False)
class Round:
    seq: int
    node: str
    arrivals: list[Arrival] = attrs.field(factory=list)


class Joins:
    """The rounds that are open: at most one for each join; what arrives after it fired opens the next."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.rounds: dict[str, Round] = {}
        self._restored: dict[int, list[Arrival]] = {}

    @property
    def waiting(self) -> bool:
        """Some round is still to fire (the end's never does)."""
        return bool(self.rounds.keys() - {END})

    def open(self, node: str, seq: int) -> Round:
        self.rounds[node] = opened = Round(seq, node)
        return opened

    def restore(self, snapshot: Snapshot, inputs: Mapping[int, Captured]) -> None:
        for row in snapshot.arrivals:
            source = "" if row.message is None else snapshot.messages[row.message].node
            captured = NOTHING if row.message is None else inputs[row.message]
            arrival = Arrival(row.seq, row.message, source, captured, row.id, row.path, row.depth)
            self._restored.setdefault(row.activation, []).append(arrival)
        for activation in snapshot.frontier:
            if activation.state == "buffered":
                self.open(activation.node, activation.seq).arrivals.extend(self._restored.get(activation.seq, ()))

    def restored(self, activation: int) -> list[Arrival]:
        """What a round that had already fired reads, in order."""
        return sorted(self._restored.get(activation, ()), key=self._order)

    def arrived(self, node: str) -> list[Arrival]:
        return self.ordered(self.rounds[node]) if node in self.rounds else []

    def ordered(self, round_: Round) -> list[Arrival]:
        """By fan-out index, place of the source in the graph and causal id: never by time."""
        return sorted(round_.arrivals, key=self._order)

    def _order(self, arrival: Arrival) -> tuple[tuple[int, ...], int, int, bytes]:
        return arrival.path, self._graph.place.get(arrival.source, -1), arrival.depth, arrival.id

    @staticmethod
    def round_id(generation: int, round_: Round) -> bytes:
        return round_id(generation, round_.node, [a.id for a in round_.arrivals])

    def ready(self, active: Mapping[str, int], *, anything_runs: bool) -> list[str]:
        """The joins that fire now.

        One fires when no live activation, nor another buffered join, has a static path to it. If only joins that block
        each other are left, one of them does: that of the lowest component, then with the oldest arrival, then by id.
        The oldest has the fewest causes before it: what came first in time may come second after a crash.
        """
        rounds = {node: round_ for node, round_ in self.rounds.items() if node != END}
        if not rounds:
            return []
        live = {node for node, count in active.items() if count}
        reach = self._graph.reach
        free = [
            node
            for node in rounds
            if not any(node in reach[other] for other in live)
            and not any(node in reach[other] for other in rounds if other != node)
        ]
        if free or anything_runs:
            return free
        rank = self._graph.rank
        return [min(rounds, key=lambda node: (rank[node], min(a.depth for a in rounds[node].arrivals), node))]


def joined(arrivals: Iterable[Arrival]) -> tuple[tuple[tuple[int, str], ...], Captured]:
    """What a fired round reads: where it came from, and the list of it."""
    brought = [(arrival.message, arrival) for arrival in arrivals if arrival.message is not None]
    return tuple((seq, a.source) for seq, a in brought), Captured(parts=tuple(a.input for _, a in brought))
