"""Which traces of a store in memory wait to be executed, in the order in which they go, and which have an owner."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence

from tinyllm.storage.contract import Backlog, Claim, Demand, Wanted
from tinyllm.storage.memory_trace import Trace

_Entries = list[tuple[float, int]]
_Kind = tuple[str, bool]
"""Traces of one graph that are to be executed apart, or not."""


class Waiting:
    """Told of every change of a trace, it knows without looking at the others what is next."""

    def __init__(self) -> None:
        self.owned: dict[int, Trace] = {}
        """By key."""
        self._ready: defaultdict[_Kind, _Entries] = defaultdict(list)
        """Keys, each behind the negative of its priority."""
        self._later: defaultdict[_Kind, _Entries] = defaultdict(list)
        """Keys, each behind the time before which it is not to be claimed."""
        self._places: dict[int, tuple[_Entries, tuple[float, int]]] = {}

    def clear(self) -> None:
        self.owned.clear()
        self._ready.clear()
        self._later.clear()
        self._places.clear()

    def forget(self, key: int) -> None:
        self.owned.pop(key, None)
        if (place := self._places.pop(key, None)) is not None:
            entries, entry = place
            del entries[bisect_left(entries, entry)]

    def note(self, trace: Trace) -> None:
        """It is new, or has another owner, status, priority or time, or is to be executed apart, or not any more."""
        self.forget(trace.key)
        if trace.owner is not None:
            self.owned[trace.key] = trace
        elif trace.status in ("queued", "running"):
            kind = (trace.graph_id, trace.apart)
            if trace.due is None:
                entries, entry = self._ready[kind], (float(-trace.priority), trace.key)
            else:
                entries, entry = self._later[kind], (trace.due, trace.key)
            insort(entries, entry)
            self._places[trace.key] = entries, entry

    def next(self, claim: Claim, traces: dict[int, Trace], now: float) -> list[tuple[Trace, Wanted]]:
        """What a claim takes, of all `traces`, by key."""
        wanted = {each.graph_id: each for each in claim.wanted}
        first: list[tuple[float, int, str]] = []
        for graph_id, each in wanted.items():
            room = claim.limit
            if each.at_most is not None:
                reserved = not claim.apart and self.next_due((graph_id,), True, now) == 0
                room = each.room(room, self._running(graph_id), reserved)
            if room > 0:
                kind = (graph_id, claim.apart)
                for key in list(self._ripe(kind, now)):
                    trace = traces[key]
                    trace.updated_at, trace.due = _waits_since(trace), None
                    self.note(trace)
                first += [(*entry, graph_id) for entry in self._ready[kind][:room]]
        return [(traces[key], wanted[graph_id]) for _, key, graph_id in sorted(first)[: claim.limit]]

    def next_due(self, graph_ids: Sequence[str], apart: bool, now: float) -> float | None:
        kinds = [(graph_id, apart) for graph_id in graph_ids]
        if any(self._ready[kind] for kind in kinds):
            return 0.0
        first = min((self._later[kind][0][0] for kind in kinds if self._later[kind]), default=None)
        return 0.0 if first is not None and first <= now else first

    def backlog(self, graph_ids: Sequence[str], traces: dict[int, Trace], now: float) -> Backlog:
        wanted = set(graph_ids)
        ripe, later = {False: list[int](), True: list[int]()}, 0
        for graph_id in wanted:
            for apart, keys in ripe.items():
                kind = (graph_id, apart)
                due = list(self._ripe(kind, now))
                keys += due
                keys += [key for _, key in self._ready[kind]]
                later += len(self._later[kind]) - len(due)
        return Backlog(
            waiting=len(ripe[False]),
            apart=len(ripe[True]),
            later=later,
            running=sum(map(self._running, wanted)),
            quarantined=sum(each.status == "quarantined" and each.graph_id in wanted for each in traces.values()),
            oldest=min((_waits_since(traces[key]) for key in ripe[False]), default=None),
        )

    def demand(self, traces: dict[int, Trace]) -> list[Demand]:
        counts: defaultdict[str, int] = defaultdict(int)
        newest: dict[str, Trace] = {}
        for _, trace in sorted(traces.items()):
            if trace.key in self._places or trace.key in self.owned or trace.status == "quarantined":
                counts[trace.graph_id] += trace.key in self._places
                newest[trace.graph_id] = trace
        return [Demand(graph_id, newest[graph_id].graph_path, counts[graph_id]) for graph_id in sorted(newest)]

    def _ripe(self, kind: _Kind, now: float) -> Iterator[int]:
        later = self._later[kind]
        return (key for _, key in later[: bisect_right(later, now, key=lambda entry: entry[0])])

    def _running(self, graph_id: str) -> int:
        return sum(trace.graph_id == graph_id for trace in self.owned.values())


def _waits_since(trace: Trace) -> float:
    return max(trace.updated_at, trace.due or 0.0)
