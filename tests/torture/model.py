"""The store against the model of tests/storage/test_model.py, in as many random histories as one has time for."""

from __future__ import annotations

from functools import partial

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.storage.test_model import StoreMachine
from tests.torture.trial import Task, Trial, Violation

HISTORIES = 100
"""That hypothesis makes up together, of one seed: it learns from one what to try in the next."""

STEPS = 8
"""Of a history, at most. Long ones find more each (`make test` makes those), and fewer of them can be made."""


def run_trial(task: Task) -> str:
    task.plant_it()
    made = 0
    for number in task.numbers():
        if task.only is None and number % HISTORIES:
            continue  # a run is a history, and so many go together
        count = min(HISTORIES, task.runs - number) if task.only is None else HISTORIES
        wanted = settings(
            max_examples=count,
            stateful_step_count=STEPS,
            phases=[Phase.generate] if task.only is None else [Phase.generate, Phase.shrink],  # which takes minutes
            database=None,
            deadline=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        )
        machine = seed(f"{task.seed}/{number}")(partial(StoreMachine, "sqlite"))
        try:
            run_state_machine_as_test(machine, settings=wanted)  # type: ignore[arg-type] # any factory does
        except Exception as error:
            raise Violation("\n".join([repr(error), *getattr(error, "__notes__", ())])) from error
        made += count
    return f"{made:,} histories of up to {STEPS} steps: no difference between the store and the model"


TRIALS = (
    Trial("model", "random histories of many traces, in the store and in a model of it", 3_000, 50_000, run_trial),
)
