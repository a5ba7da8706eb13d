"""Let all that can happen to traces happen in random order, without an event loop, and see after each event that every
promise holds.

What runs is the product: its runs, scheduler, queue and plans, and the store in memory. What is simulated is all around
them: which of them has its turn, how far the writer gets, what nodes do, who leaves a command, when a process dies.
"""

from __future__ import annotations

import random
import time
import traceback
from collections import Counter
from functools import lru_cache
from unittest.mock import patch

import attrs

from tests.actors.graphs import now
from tests.torture import promises
from tests.torture.disturbances import answer, disturb
from tests.torture.loopless import CLOCK, without_a_loop
from tests.torture.promises import Known
from tests.torture.random_worlds import Drawn, draw_world
from tests.torture.simulated import Simulation
from tests.torture.trial import Task, Trial, Violation
from tinyllm.actors import batch, dispatch, schedule
from tinyllm.actors.plan import Plan
from tinyllm.graph.variables import Variables

RUNS_OF_A_WORLD = 5
"""To draw one, and to see how it ends undisturbed, takes as long as a run."""

ROUNDS = 100
"""Of answers and resumes after which a trace must have ended: each of its steps may ask twice."""

SHOWN = 40
"""Events before a violation."""


@attrs.define
class Tally:
    runs: int = 0
    events: int = 0
    traces: int = 0


@lru_cache(maxsize=1)
def drawn(seed: str) -> Drawn:
    return draw_world(random.Random(seed))


def simulate(task: Task, number: int, tally: Tally) -> None:
    """One run.

    :raises Violation: with the last events; all are in the task's folder.
    """
    seed = task.seed
    rng = random.Random(f"{seed}/{number}")
    CLOCK.now = 0.0
    with (
        patch.multiple(schedule, PRUNE_SLACK=rng.choice([1, 4, 64])),
        patch.multiple(batch, MAX_WRITES=rng.choice([1, 3, 128])),
        patch.multiple(dispatch, CREDIT=rng.choice([2, 5, 64])),
    ):
        simulation = Simulation(drawn(f"{seed}/world {number // RUNS_OF_A_WORLD}"), rng)
        try:
            simulation.admit()
            for _ in range(rng.randint(20, 120)):
                if not disturb(simulation):
                    simulation.progress()
                simulation.look()
            come_to_the_end(simulation)
        except Exception as error:
            told = str(error) if isinstance(error, Violation) else traceback.format_exc()
            lines = [" ".join(map(str, what)) for what in simulation.log]
            (task.folder / "events").write_text("\n".join(lines))
            shown = [f"{simulation.world!r}, {simulation.policy}", "...", *lines[-SHOWN:]]
            raise Violation("\n  ".join((told, *shown))) from error
        finally:
            for process in simulation.processes:
                for tenure in process.running:
                    tenure.execution.die()
    tally.runs += 1
    tally.events += simulation.events
    tally.traces += len(simulation.traces)


def run_trial(task: Task) -> str:
    task.plant_it()
    tally = Tally()
    began = time.perf_counter()
    with without_a_loop():
        for number in task.numbers():
            simulate(task, number, tally)
    speed = tally.events / (time.perf_counter() - began)
    return (
        f"{tally.runs:,} simulations of {tally.traces:,} traces, {tally.events:,} events ({speed:,.0f} a second): "
        "0 violations"
    )


def come_to_the_end(simulation: Simulation) -> None:
    """Undisturbed from here on, until every trace has ended."""
    simulation.say("from here on nothing disturbs it")
    simulation.calm = True
    for trace in simulation.traces.values():
        trace.mended = True
    for _ in range(ROUNDS):
        while simulation.progress() or simulation.pass_time():
            simulation.look()
        waiting = [trace for trace in simulation.traces.values() if not has_ended(trace)]
        if not waiting:
            break
        for trace in waiting:
            if simulation.owner(trace) is not None:
                raise Violation(f"nothing happens any more, and {trace.trace_id} is still executed")
            answer(simulation, trace, all_of_them=True)
            trace.left_alone = True
            simulation.go_on(trace)
            simulation.look()
    else:
        raise Violation(f"{waiting[0].trace_id} does not come to its end")
    for trace in simulation.traces.values():
        check_end(simulation, trace)


def has_ended(trace: Known) -> bool:
    status = trace.naive.status
    return status in ("completed", "cancelled") or (status == "failed" and trace.left_alone)


def check_end(simulation: Simulation, trace: Known) -> None:
    promises.nothing_acknowledged_is_missing(simulation.store, trace)
    promises.the_checkpoints_are_those_that_are_kept(simulation.store, trace)
    simulation.look_back(trace, 8)
    if trace.naive.status == "cancelled":
        return
    promises.what_is_carried_out_is_consumed(simulation.store, trace)
    plan = Plan(simulation.world.graph, trace.trace_id)
    plan.restore(now(simulation.store.load(trace.trace_id)))
    steps = Counter(step.node for step in now(simulation.store.steps(trace.trace_id)))
    end = simulation.world.end(trace.naive.status, plan.outcome(), Variables(plan.versions), steps)
    promises.the_end_is_that_of_the_undisturbed_run(end, simulation.drawn.end.by_node)


TRIALS = (
    Trial(
        "simulate", "all that can happen to traces, in random order, without an event loop", 2_000, 100_000, run_trial
    ),
)
