"""What the journal of the nodes and the lives of the processes tell together. Pure: nothing here looks or waits."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import attrs

from tests.soak.processes import POLL_SECONDS, Life
from tests.soak.torment import Stop
from tests.supervisor.work import Line

LATE_SECONDS = 1.0
"""How much later than it happened a death may be seen, where all cores are busy."""

START_SECONDS = 0.5
"""A worker that can execute what was submitted is one that is not disturbed for so long."""


@attrs.frozen
class Spread:
    """`worst`: the greatest."""

    count: int
    p50: float
    p99: float
    worst: float

    @classmethod
    def of(cls, numbers: Iterable[float]) -> Spread:
        ordered = sorted(numbers)
        count, ordered = len(ordered), ordered or [0.0]
        p50, p99 = (ordered[math.ceil(len(ordered) * share) - 1] for share in (0.5, 0.99))
        return cls(count, p50, p99, ordered[-1])

    def milliseconds(self) -> str:
        return f"p50 {self.p50 * 1e3:.0f} ms, p99 {self.p99 * 1e3:.0f} ms, at most {self.worst * 1e3:.0f} ms"

    def __str__(self) -> str:
        return f"p50 {self.p50:.2f} s, p99 {self.p99:.2f} s, at most {self.worst:.2f} s"


@attrs.frozen
class Submitted:
    """UTC seconds."""

    called: float
    returned: float


@attrs.frozen(kw_only=True)
class Seen:
    """What happened. `lines` are in the order of time."""

    lines: Sequence[Line]
    lives: Sequence[Life]
    stops: Sequence[Stop]
    submitted: Mapping[str, Submitted]
    concurrency: int
    last_node: str

    def by_trace(self) -> Mapping[str, list[Line]]:
        found: defaultdict[str, list[Line]] = defaultdict(list)
        for line in self.lines:
            found[line.trace_id].append(line)
        return found

    def life_of(self, line: Line) -> Life | None:
        """That of the worker in which it was written."""
        born = [life for life in self.lives if life.pid == line.pid and life.born <= line.at + LATE_SECONDS]
        return max(born, key=lambda life: life.born, default=None)


@attrs.frozen
class Again:
    """A trace ran when its worker died, and ran again at `at`."""

    trace_id: str
    life: Life
    died: float
    at: float

    @property
    def seconds(self) -> float:
        return self.at - self.died

    @property
    def with_supervisor(self) -> bool:
        """Whether the supervisor died, too, until then: the worker's death may be a consequence of that, and who comes
        next had to start first."""
        parent = self.life.parent
        return parent is not None and parent.died is not None and parent.died <= self.at


def ran_again(seen: Seen) -> list[Again]:
    """Each death at which a trace ran, if it ran again."""
    found = []
    for trace_id, lines in seen.by_trace().items():
        for before, after in pairwise(lines):
            life = seen.life_of(before) if before.pid != after.pid else None
            if life is not None and life.died is not None and life.died <= after.at + POLL_SECONDS:
                found.append(Again(trace_id, life, life.died, max(after.at, life.died)))
    return found


def at_once(seen: Seen) -> list[str]:
    """Traces that ran in two processes at the same time: in one a node had begun and not ended."""
    found = []
    for trace_id, lines in seen.by_trace().items():
        for before, after in pairwise(lines):
            if before.pid == after.pid or before.what != "began":
                continue
            life = seen.life_of(before)
            if life is None or life.died is None or life.died > after.at + LATE_SECONDS:
                found.append(
                    f"{trace_id}: {after.node} {after.what} in {after.pid} at {after.at:.3f}, when {before.node} was "
                    f"running in {before.pid}"
                )
    return found


def unwatched(seen: Seen) -> list[str]:
    """Processes that executed nodes, and whose death nobody would have noticed."""
    known = {life.pid for life in seen.lives}
    return [f"process {pid} executed nodes, and was not watched" for pid in {line.pid for line in seen.lines} - known]


ALIVE = "while the supervisor lived"
DIED = "when the supervisor died"
LOCKED = "when nobody could write"


def grouped(seen: Seen, samples: Iterable[Again]) -> Mapping[str, list[Again]]:
    """By what else there was between a death and when its traces ran again."""
    found: dict[str, list[Again]] = {ALIVE: [], DIED: [], LOCKED: []}
    for each in samples:
        # Somebody was stopped in the middle of writing to the store, and others wait until it goes on or is dead.
        locked = any(stop.writing and stop.meets(each.died, each.at) for stop in seen.stops)
        name = LOCKED if locked else DIED if each.with_supervisor else ALIVE
        found[name].append(each)
    return found


def starts(seen: Seen) -> tuple[list[float], list[float]]:
    """Seconds from `submit()` returning to the first node's beginning: where a worker could execute it, and where none
    could. One that can has executed something, has room for all that waits, and nobody disturbs it, nor its supervisor,
    nor the store."""
    first = {trace_id: lines[0].at for trace_id, lines in seen.by_trace().items()}
    lines = deque(seen.lines)
    where: dict[str, int | None] = {}
    """The process in which each trace that has not ended ran last."""
    executed: set[int] = set()
    able: list[float] = []
    others: list[float] = []
    for trace_id, submitted in sorted(seen.submitted.items(), key=lambda item: item[1].returned):
        where[trace_id] = None
        while lines and lines[0].at <= submitted.returned:
            line = lines.popleft()
            executed.add(line.pid)
            where[line.trace_id] = line.pid
            if line.what == "ended" and line.node == seen.last_node:
                del where[line.trace_id]
        if trace_id in first:
            alive = [life for life in seen.lives if life.pid in executed and life.lived(submitted.returned)]
            free = {life.pid for life in alive if _undisturbed(seen, life, submitted.returned)}
            busy = {life.pid for life in alive} - free
            wanted = sum(pid not in busy for pid in where.values())  # it runs in one that is free, or waits
            fits = 0 < wanted <= seen.concurrency * len(free)
            (able if fits else others).append(max(0.0, first[trace_id] - submitted.returned))
    return able, others


def _undisturbed(seen: Seen, life: Life, begin: float) -> bool:
    end = begin + START_SECONDS
    return (
        life.parent is not None
        and all(each.lived(begin) and each.lived(end) for each in (life, life.parent))
        and not any(stop.meets(begin, end) for stop in seen.stops if stop.life is life or stop.writing)
    )


def timeline(seen: Seen) -> str:
    """What happened to which process, a line for each."""
    again: defaultdict[Life, list[float]] = defaultdict(list)
    for each in ran_again(seen):
        again[each.life].append(each.seconds)
    executed: dict[int, float] = {}
    for line in seen.lines:
        executed.setdefault(line.pid, line.at)
    events = []
    for life in seen.lives:
        who = f"supervisor {life.pid}" if life.parent is None else f"worker {life.pid} of {life.parent.pid}"
        events.append((life.born, f"{who} is born"))
        if life.pid in executed:
            events.append((executed[life.pid], f"{who} executes its first node"))
        if life.died is not None:
            left = again[life]
            what = f"; {len(left)} traces ran again {min(left):.2f} to {max(left):.2f} s later" if left else ""
            events.append((life.died, f"{who} is dead{what}"))
    for stop in seen.stops:
        writing = ", in the middle of writing" if stop.writing else ""
        events.append((stop.since, f"worker {stop.life.pid} is stopped{writing}"))
        events.append((stop.until, f"worker {stop.life.pid} goes on, if it lives"))
    return "".join(f"{at:.3f} {what}\n" for at, what in sorted(events))
