"""What is told of a soak."""

from __future__ import annotations

import os
from collections.abc import Iterator

from tests.soak.checks import AGAIN_SECONDS, BOUNDS, ENOUGH, Log
from tests.soak.figures import Seen, Spread, grouped, ran_again, starts


def report(seen: Seen, log: Log) -> Iterator[str]:
    supervisors = [life for life in seen.lives if life.parent is None]
    workers = [life for life in seen.lives if life.parent is not None]
    yield f"{sum(stop.writing for stop in seen.stops)} of {len(seen.stops)} were stopped in the middle of writing"
    yield f"{len(supervisors)} supervisors had {len(workers)} workers; of these {log.hangs} hung"
    for cause, count in log.deaths.most_common():
        yield f"  {count} died: {cause}"
    if log.told:
        yield f"  {log.told} ended because somebody told them to, which is nobody here"
    if log.apart:
        yield f"  {log.apart} times a trace was suspected"
    began = [(line.trace_id, line.node) for line in seen.lines if line.what == "began"]
    again = len(began) - len(set(began))
    yield f"{len(seen.submitted):,} traces; {len(began):,} nodes began, {again:,} of them not for the first time"
    yield "from a worker's death to its traces running again:"
    groups = grouped(seen, ran_again(seen))
    for name, samples in (
        ("all deaths together", [each for group in groups.values() for each in group]),
        *groups.items(),
    ):
        spread = Spread.of(each.seconds for each in samples)
        deaths = len({each.life for each in samples})
        late = sum(each.seconds > AGAIN_SECONDS for each in samples)
        bound = f"at most {BOUNDS[name]:.0f} s" if name in BOUNDS else "whatever it is: the groups are judged"
        judged = bound if spread.count >= ENOUGH else f"NOT JUDGED, {ENOUGH} are needed"
        yield f"  {name}: {deaths} deaths, {spread.count} traces: {spread}; {late} in more than {AGAIN_SECONDS:.0f} s"
        yield f"    p99 is to be: {judged}"
    able, others = starts(seen)
    yield "from submit() returning to the first node:"
    yield f"  where a worker had room: {len(able)} traces: {Spread.of(able).milliseconds()}"
    yield f"  where none had: {len(others)} traces: {Spread.of(others)}"
    spread = Spread.of(each.returned - each.called for each in seen.submitted.values())
    yield f"submit() itself: {spread.milliseconds()}"
    cpu = [sum(life.cpu for life in lives) for lives in (supervisors, workers)]
    yield f"CPU: supervisors {cpu[0]:.0f} s, workers {cpu[1]:.0f} s, the soak itself {sum(os.times()[:2]):.0f} s"
