"""What must hold after a soak. Each violation is a sentence that says what shows it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import attrs

from tests.soak.figures import ALIVE, DIED, LOCKED, Seen, Spread, grouped, ran_again
from tinyllm import CheckpointStorage

AGAIN_SECONDS = 2.0
"""So long after a worker's death 99 of 100 of its traces run again, at the latest."""

BOUNDS = {ALIVE: AGAIN_SECONDS, DIED: 6.0, LOCKED: 10.0}
"""By group. Where the supervisor dies, too, the next one and its first worker have to start, and a worker that was
stopped then has nobody who ends it; where a process is stopped in the middle of writing, all others wait until it is
ended: it hangs after 3 s, and is killed 5 s later."""

ENOUGH = 100
"""Of fewer, the 99th of a hundred is whichever was the slowest, and says nothing."""

SHOWN = 10
"""Violations of a kind that are told."""

_DIED = re.compile(r"worker \d+ \(pid \d+\) died.*?: (.*); another follows")
_FORBIDDEN = {
    "refused": re.compile(r"trace .* is left alone for"),
    "quarantined": re.compile(r"trace .* is quarantined"),
    "a traceback": re.compile(r"^Traceback "),
}


@attrs.frozen
class Log:
    """What supervisors and workers said."""

    deaths: Counter[str]
    """By cause."""
    hangs: int
    told: int
    """Workers that ended because somebody told them to, who is not their supervisor: nobody does that here."""
    apart: int
    """How often a trace was suspected."""
    forbidden: Sequence[str]
    """Lines that say what must not happen."""


def read_log(text: str) -> Log:
    lines = text.splitlines()
    return Log(
        deaths=Counter(found[1] for line in lines if (found := _DIED.search(line))),
        hangs=sum(" hangs: " in line for line in lines),
        told=sum("ended, as it was told to" in line for line in lines),
        apart=sum("it is executed apart" in line for line in lines),
        forbidden=[f"{what}: {line}" for line in lines for what, said in _FORBIDDEN.items() if said.search(line)],
    )


async def unfinished(graph_id: str, storage: CheckpointStorage, trace_ids: Iterable[str], nodes: int) -> list[str]:
    """Traces that have not completed, or not with what each of their nodes did once."""
    expected = [f"n{number}" for number in range(nodes)]
    found = []
    for trace_id in trace_ids:
        record = await storage.trace(trace_id)
        if record is None or record.status != "completed":
            told = "is not there" if record is None else f"is {record.status} at step {record.step}: {record}"
            found.append(f"{trace_id} {told}")
            continue
        recorded = [step.node for step in await storage.steps(trace_id)]
        if recorded != expected:
            found.append(f"{trace_id}: recorded were {', '.join(recorded)}")
        checkpoint = await storage.get_latest_checkpoint(graph_id, trace_id)
        count = None if checkpoint is None else checkpoint.state["variables"].get("count")
        if count != nodes:
            found.append(f"{trace_id}: count is {count}, not {nodes}")
    return found


def late(seen: Seen) -> list[str]:
    """Whether traces ran again too late after deaths."""
    found = []
    for name, samples in grouped(seen, ran_again(seen)).items():
        spread = Spread.of(each.seconds for each in samples)
        if spread.count < ENOUGH or spread.p99 <= BOUNDS[name]:
            continue
        slowest = sorted(samples, key=lambda each: each.seconds)[-SHOWN:]
        listed = "".join(
            f"\n    {each.trace_id}: {each.seconds:.2f} s after {each.life.pid} died at {each.died:.3f}"
            for each in slowest
        )
        found.append(f"{name}, traces ran again too late: {spread}{listed}")
    return found


def shortened(violations: Sequence[str]) -> list[str]:
    more = len(violations) - SHOWN
    return [*violations[:SHOWN], f"and {more} more like that"] if more > 0 else list(violations)
