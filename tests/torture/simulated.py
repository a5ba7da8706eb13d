"""A store, the processes that use it, and the traces in it: who has a turn, what is looked at while it goes on, and how
a trace begins and goes on. What disturbs that is in `disturbances.py`."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import attrs

from tests.actors.graphs import now
from tests.actors.worlds import TASK
from tests.storage.naive import NaiveTrace
from tests.torture import promises
from tests.torture.loopless import CLOCK, Attempt, Execution, LooplessRun
from tests.torture.processes import Process, Tenure
from tests.torture.promises import Known
from tests.torture.random_worlds import Drawn
from tinyllm.actors import dispatch
from tinyllm.actors.plan import Plan
from tinyllm.actors.protocol import RunNode
from tinyllm.actors.schedule import Policy
from tinyllm.core.opening import opening_of
from tinyllm.core.trace import TraceCall
from tinyllm.graph.payload import Captured
from tinyllm.graph.values import capture
from tinyllm.storage.contract import (
    UNOWNED,
    Acquire,
    Acquired,
    Admit,
    Admitted,
    Append,
    Delta,
    Outcome,
    Prune,
    Write,
)
from tinyllm.storage.memory import InMemoryCheckpointStorage

MOST_PROCESSES = 3

MODES = (
    Policy(each_node=True, interval=5.0, durability="async", keep=100),
    Policy(each_node=True, interval=5.0, durability="sync", keep=100),
    Policy(each_node=False, interval=5.0, durability="async", keep=100),
    Policy(each_node=False, interval=0.0, durability="exit", keep=100),
)


class Simulation:
    def __init__(self, drawn: Drawn, rng: random.Random) -> None:
        self.rng = rng
        self.drawn = drawn
        self.world = drawn.world
        self.policy = attrs.evolve(rng.choice(MODES), keep=rng.choice([1, 3, 100]))
        self.store = InMemoryCheckpointStorage()
        self._calls = TraceCall(
            self.world.graph, cast("Any", SimpleNamespace(engine=SimpleNamespace(storage=self.store)))
        )
        self.processes: list[Process] = []
        self.traces: dict[str, Known] = {}
        self.events = 0
        self.log: list[tuple[Any, ...]] = []
        self._begun = 0
        self._works: dict[bytes, tuple[str, bytes]] = {}
        self.changed: dict[str, None] = {}
        self.calm = False

    def look(self) -> None:
        """Something has happened: see what has changed."""
        self.events += 1
        for trace_id in self.changed:
            promises.the_newest_checkpoint_is_what_was_committed(self.store, self.traces[trace_id])
        self.changed.clear()

    def say(self, *what: Any) -> None:
        self.log.append(what)

    # -- what goes on by itself --------------------------------------------------------------------------------

    def progress(self) -> bool:
        """Somebody has a turn; False where nobody has anything to do."""
        turns: list[Callable[[], None]] = []
        for process in self.processes:
            if process.journal:
                turns.append(partial(self._schedule, process))
            if process.queue or process.prune_due:
                turns.append(partial(self._commit, process))
            for tenure in process.running:
                if tenure.execution.wait.over:
                    turns.append(partial(self._turn, process, tenure))
                turns += [
                    partial(self._work, tenure, attempt) for attempt in tenure.execution.nodes.values() if attempt.ready
                ]
        if turns:
            self.rng.choice(turns)()
        return bool(turns)

    def _schedule(self, process: Process) -> None:
        count = self.rng.randint(1, len(process.journal))
        self.say(process, "schedules", count, "messages")
        process.schedule(count)

    def _commit(self, process: Process) -> None:
        self.say(process, "commits")
        process.commit(self.store, self._committed)

    def _turn(self, process: Process, tenure: Tenure) -> None:
        self.say(process, "goes on with", tenure.known)
        tenure.execution.go_on()
        self._after_a_turn(process, tenure)

    def _work(self, tenure: Tenure, attempt: Attempt) -> None:
        node = attempt.call.node_id
        self.say(tenure.known, node, attempt.go_on(blocked=self.rng.random() < 0.05))

    def pass_time(self) -> bool:
        """To the next moment at which something is due."""
        due = min((due for process in self.processes if (due := process.due) is not None), default=None)
        if due is None or due <= CLOCK.now:
            return False
        self.say("the clock moves on by", round(due - CLOCK.now, 1), "s")
        CLOCK.now = due
        for process in self.processes:
            process.schedule(0)
        return True

    def _after_a_turn(self, process: Process, tenure: Tenure) -> None:
        run, trace = tenure.execution.run, tenure.known
        promises.nothing_counts_as_durable_before_it_is_committed(run.durable, tenure.written)
        if not self.policy.merges:
            promises.at_risk_is_no_more_than_the_credit(len(tenure.unwritten), dispatch.CREDIT)
        if tenure.is_owner:
            trace.acknowledged = max(trace.acknowledged, run.durable_step)
        if tenure.execution.over:
            process.running.remove(tenure)
            error = tenure.execution.error
            self.say(process, "has left", trace, "because of", error or tenure.plan.status)
            promises.only_who_was_succeeded_loses_a_trace(trace, tenure.epoch, error)

    # -- what is looked at while it goes on --------------------------------------------------------------------

    def _hands(self, tenure: Tenure, delta: Delta) -> None:
        handed = tenure.handed
        promises.numbers_have_no_gap(tenure.number, delta)
        promises.steps_rise_by_one_for_each_that_finished(handed, tenure.step, delta)
        promises.joins_fire_only_when_nothing_live_can_reach_them(tenure.plan.graph, handed, delta)
        handed.apply(delta)
        promises.counts_match_rows(handed, delta)
        tenure.number, tenure.step = delta.number, delta.step
        tenure.states[delta.number] = handed.kept.pop(delta.rev)
        tenure.unwritten += [(delta.number, handed.ids[row.activation]) for row in delta.steps]
        tenure.failed = tenure.failed or next((delta.node for row in delta.changed if row.state == "failed"), None)

    def _starts(self, tenure: Tenure, asked: RunNode) -> None:
        call, trace = asked.call, tenure.known
        self.say(trace, "starts", call.node_id, "attempt", call.attempt)
        promises.an_id_means_one_work(self._works, self.drawn.undisturbed, call)
        if not tenure.is_owner:
            return  # and cannot know what was recorded since
        promises.recorded_work_never_starts_again(trace, call)
        promises.nothing_starts_after_a_failure(tenure.failed, call)
        if self.policy.durability == "sync":
            promises.in_sync_nothing_starts_before_all_is_committed(tenure.number - tenure.written, call)
        if self.policy.durability != "exit" and self.world.graph.nodes[call.node_id].effects:
            promises.effects_rest_on_what_is_committed(trace, asked.seq, call)

    def _saved(self, tenure: Tenure, seq: int, body: bytes) -> None:
        if tenure.is_owner and self.policy.durability != "exit":
            promises.saved_progress_is_committed(tenure.known, seq, body)

    def _committed(self, process: Process, write: Write, outcome: Outcome) -> None:
        match write:
            case Append():
                self._appended(process.tenures[write.trace_id, write.delta.epoch], write.delta, outcome)
            case Prune():
                (trace,) = (trace for trace in self.traces.values() if trace.naive.key == write.trace)
                self.pruned(trace, outcome, trace.naive.prune(write.keep, write.limit))
            case _:
                pass

    def _appended(self, tenure: Tenure, delta: Delta, outcome: Outcome) -> None:
        trace = tenure.known
        self.changed[trace.trace_id] = None
        promises.only_the_owner_writes(trace, delta.epoch, outcome)
        if isinstance(outcome, Exception):
            self.say(trace, "refuses epoch", delta.epoch)
            return
        promises.revs_have_no_gap(trace, delta.rev)
        trace.naive.apply(delta)
        self.say(trace, "has rev", delta.rev, "step", delta.step, delta.status, f"(epoch {delta.epoch})")
        promises.what_is_merged_is_what_its_parts_made(trace.naive.kept[delta.rev], tenure.states[delta.number])
        tenure.written = delta.number
        while tenure.unwritten and tenure.unwritten[0][0] <= delta.number:
            promises.work_is_recorded_once(trace, tenure.unwritten.pop(0)[1], delta.rev)

    def pruned(self, trace: Known, outcome: Outcome, dropped: int) -> None:
        promises.pruning_drops_what_nobody_needs(outcome, dropped)
        promises.the_checkpoints_are_those_that_are_kept(self.store, trace)
        for each in self.traces.values() if dropped else ():  # a fork shares what its parent keeps
            self.look_back(each, 3)

    def look_back(self, trace: Known, most: int) -> None:
        """At some of the checkpoints that are kept: all of them, each time, would take longer than all else."""
        kept = sorted(trace.naive.kept)
        for rev in self.rng.sample(kept, min(most, len(kept))):
            promises.a_checkpoint_loads_as_it_was_made(self.store, trace, rev)

    # -- how traces begin and go on ----------------------------------------------------------------------------

    def admit(self) -> None:
        process = self.process()
        plan = Plan(self.drawn.first, "t")
        first = plan.begin(Captured(capture(TASK)), {})
        admit = Admit(
            trace_id="t",
            graph_id="g",
            graph_version="1",
            fingerprint="",
            definition=b"{}",
            graph_path=None,
            task_digest="digest",
            owner=process.name,
            history=plan.graph.history,
            first=first,
        )
        admitted = self.write(admit)
        assert isinstance(admitted, Admitted)
        plan.key, plan.epoch = admitted.trace, admitted.epoch
        naive = NaiveTrace("t", window=plan.graph.history, key=admitted.trace)
        naive.apply(first)
        self.traces["t"] = Known(naive)
        self.begin(process, self.traces["t"], plan, admitted.rev, [])

    def go_on(self, trace: Known, *, retry: bool = True) -> bool:
        """As a call of an executor that resumes it. It may be owned: then it is taken over."""
        record, snapshot = now(self.store.trace(trace.trace_id)), now(self.store.load(trace.trace_id))
        assert record is not None
        if record.status in UNOWNED and not now(self._calls._wakes(record, retry=retry, told=False)):
            return False
        if not self.calm and self.rng.random() < 0.2:
            self.progress()  # whoever owned it is not dead yet
        trace.mended = trace.mended or record.status == "failed"
        process = self.process(trace)
        acquired = self.acquire(trace, process.name, b"{}")
        if acquired.rev == snapshot.rev:
            snapshot = attrs.evolve(snapshot, record=attrs.evolve(snapshot.record, epoch=acquired.epoch))
        else:
            snapshot = now(self.store.load(trace.trace_id))
        self.say(process, "goes on with", trace, "at rev", snapshot.rev, "as epoch", acquired.epoch)
        plan = Plan(self.world.graph if trace.mended else self.drawn.first, trace.trace_id)
        plan.restore(snapshot, retry=retry)
        commands = now(self.store.commands(trace=record.trace)) if acquired.told else []
        self.begin(process, trace, plan, snapshot.record.rev, opening_of(plan, record, commands, None))
        return True

    def acquire(self, trace: Known, owner: str, definition: bytes | None) -> Acquired:
        acquired = self.write(Acquire(trace.naive.key, trace.trace_id, trace.epoch, owner, "", definition, None))
        assert isinstance(acquired, Acquired)
        trace.epoch = acquired.epoch
        if definition is not None:
            trace.naive.status, trace.naive.error = "running", None
        return acquired

    def begin(self, process: Process, trace: Known, plan: Plan, rev: int, opening: list[Delta]) -> None:
        tenure = Tenure(trace, plan.epoch, plan, promises.alike(trace.naive), trace.naive.kept[rev].step)
        tenure.execution = Execution(
            self.drawn.callers,
            hands=partial(self._hands, tenure),
            starts=partial(self._starts, tenure),
            saved=partial(self._saved, tenure),
            journal=process.journal,
        )
        process.tenures[trace.trace_id, plan.epoch] = tenure
        process.running.append(tenure)
        tenure.execution.begin(
            LooplessRun(
                plan,
                cast("Any", tenure.execution),
                self.drawn.bounds,
                journal=cast("Any", tenure.execution),
                rev=rev,
                opening=opening,
                durability=self.policy.durability,
                merges=self.policy.merges,
                fail_fast=self.rng.random() < 0.2,
                may_start=self._may_start,
                high_water=None,
                emit=None if self.rng.random() < 0.7 else lambda event: None,
            )
        )
        self._after_a_turn(process, tenure)

    def _may_start(self) -> bool:
        return self.calm or self.rng.random() < 0.97

    def write(self, write: Write) -> Outcome:
        (outcome,) = now(self.store.commit([write]))
        return outcome

    def process(self, trace: Known | None = None) -> Process:
        """Some process, or a new one; none that executes `trace`, if only in the belief that it owns it."""
        free = [p for p in self.processes if not any(tenure.known is trace for tenure in p.running)]
        if (len(self.processes) < MOST_PROCESSES and self.rng.random() < 0.5) or not free:
            self._begun += 1
            self.processes.append(Process(f"p{self._begun}", self.policy))
            return self.processes[-1]
        return self.rng.choice(free)

    def owner(self, trace: Known) -> Tenure | None:
        for process in self.processes:
            for tenure in process.running:
                if tenure.known is trace and tenure.is_owner:
                    return tenure
        return None
