"""What may come between: what happens to traces and processes from outside. Each returns whether it could happen."""

from __future__ import annotations

from collections.abc import Callable

from tests.actors.graphs import now
from tests.actors.worlds import Stumble
from tests.torture import promises
from tests.torture.loopless import CLOCK
from tests.torture.promises import Known
from tests.torture.simulated import Simulation
from tinyllm.actors.mailbox import reply
from tinyllm.actors.protocol import Stop, Told
from tinyllm.core.fork import fork_delta
from tinyllm.core.outside import carried_out, open_questions
from tinyllm.graph.ids import activation_id
from tinyllm.graph.values import capture
from tinyllm.storage.contract import (
    TERMINAL,
    Admitted,
    Append,
    CommandKind,
    Drop,
    Fork,
    Label,
    Leave,
    Left,
    Prune,
    Release,
)

MOST_TRACES = 3


def resume(simulation: Simulation, trace: Known) -> bool:
    return simulation.owner(trace) is None and simulation.go_on(trace, retry=simulation.rng.random() < 0.9)


def take_over(simulation: Simulation, trace: Known) -> bool:
    return simulation.owner(trace) is not None and simulation.go_on(trace)


def crash(simulation: Simulation, trace: Known) -> bool:
    """All that a process holds is gone."""
    if not simulation.processes:
        return False
    process = simulation.rng.choice(simulation.processes)
    simulation.say(process, "crashes")
    simulation.processes.remove(process)
    for tenure in process.running:
        tenure.execution.die()
    for each in simulation.traces.values():
        promises.nothing_acknowledged_is_missing(simulation.store, each)
    return True


def fail(simulation: Simulation, trace: Known) -> bool:
    """An attempt fails that would not have; where that leads to nothing else than to try again."""
    owner, nodes = simulation.owner(trace), simulation.world.graph.nodes
    attempts = [
        each
        for each in (owner.execution.nodes.values() if owner else ())
        if nodes[each.call.node_id].on_error is None and each.call.node_id not in simulation.world.saves
    ]
    if not attempts:
        return False
    attempt = simulation.rng.choice(attempts)
    simulation.say(trace, attempt.call.node_id, attempt.fail(Stumble("by chance")))
    return True


def stop(simulation: Simulation, trace: Known) -> bool:
    """Its executor closes, or whoever called for it is cancelled."""
    owner = simulation.owner(trace)
    if owner is None or owner.execution.run.leaving:
        return False
    if simulation.rng.random() < 0.5:
        simulation.say(trace, "is to stop")
        reply(owner.execution.run.address, Stop())
    else:
        simulation.say(trace, "is cancelled from outside")
        owner.execution.cancel()
    return True


def hear(simulation: Simulation, trace: Known) -> bool:
    """The owner is told what others left."""
    owner, commands = simulation.owner(trace), now(simulation.store.commands(trace=trace.naive.key))
    if owner is None or not commands:
        return False
    simulation.say(trace, "hears of", *(command.kind for command in commands))
    reply(owner.execution.run.address, Told(tuple(commands)))
    return True


def carry_out(simulation: Simulation, trace: Known) -> bool:
    """Who has left a command does it, where nobody owns the trace."""
    commands = now(simulation.store.commands(trace=trace.naive.key))
    if not commands or simulation.owner(trace) is not None or trace.naive.status in TERMINAL:
        return False
    acquired = simulation.acquire(trace, "somebody", None)
    delta = carried_out(now(simulation.store.load(trace.trace_id)), commands)
    simulation.say(trace, "is told by others, at rev", delta.rev, ":", *(command.kind for command in commands))
    promises.only_the_owner_writes(trace, delta.epoch, simulation.write(Append(trace.trace_id, delta)))
    simulation.write(Release(trace.naive.key, acquired.epoch))
    trace.naive.apply(delta)
    simulation.changed[trace.trace_id] = None
    return True


def ask_to_pause(simulation: Simulation, trace: Known) -> bool:
    return leave(simulation, trace, "pause" if simulation.rng.random() < 0.9 else "cancel")


def leave(
    simulation: Simulation,
    trace: Known,
    kind: CommandKind,
    activation: bytes | None = None,
    name: str | None = None,
    body: bytes | None = None,
) -> bool:
    if trace.naive.status in TERMINAL:
        return False
    left = simulation.write(Leave(trace.naive.key, trace.trace_id, kind, activation, name, body))
    assert isinstance(left, Left)
    simulation.say(trace, "is left", kind, name or "")
    trace.naive.commands |= {
        each.id: each for each in now(simulation.store.commands(trace=trace.naive.key)) if each.id == left.command
    }
    simulation.changed[trace.trace_id] = None
    return True


def answer(simulation: Simulation, trace: Known, *, all_of_them: bool = False) -> bool:
    """Somebody answers what is known to be asked, and somebody else comes too late."""
    if trace.naive.status in TERMINAL:
        return False
    snapshot = now(simulation.store.load(trace.trace_id))
    causal = {activation_id(trace.trace_id, row.id).hex(): row.id for row in snapshot.frontier}
    pending = {(command.activation, command.name) for command in trace.naive.commands.values()}
    fresh = []
    for question in open_questions(snapshot):
        key = (causal[question.activation_id], question.name)
        if key not in pending:
            promises.what_is_answered_is_not_asked_again(trace, key)
            fresh.append((key, question))
    for key, question in fresh if all_of_them else fresh[:1] and [simulation.rng.choice(fresh)]:
        body = capture(simulation.world.reply(question))
        trace.answered.add(key)
        leave(simulation, trace, "answer", *key, body)
        again = simulation.write(Leave(trace.naive.key, trace.trace_id, "answer", *key, body))
        promises.an_answer_is_given_once(again)
    return bool(fresh)


def prune(simulation: Simulation, trace: Known) -> bool:
    keep, limit = simulation.rng.randint(1, 5), simulation.rng.randint(1, 5)
    simulation.say(trace, "is pruned to", keep, "by", limit, "at most")
    outcome = simulation.write(Prune(trace.naive.key, keep, limit))
    simulation.pruned(trace, outcome, trace.naive.prune(keep, limit))
    return True


def drop(simulation: Simulation, trace: Known) -> bool:
    rev = simulation.rng.choice(sorted(trace.naive.kept))
    outcome = simulation.write(Drop(trace.naive.key, trace.trace_id, rev))
    simulation.say(trace, "drops rev", rev, ":", outcome)
    stays = trace.naive.stays(rev)
    promises.what_is_in_use_is_not_dropped(outcome, stays)
    if not stays:
        trace.naive.drop(rev)
        simulation.pruned(trace, outcome, 1)
    return True


def label(simulation: Simulation, trace: Known) -> bool:
    rev = simulation.rng.choice(sorted(trace.naive.kept))
    simulation.say(trace, "has a label at rev", rev)
    simulation.write(Label(trace.naive.key, trace.trace_id, rev, "label"))
    trace.naive.labels[rev] = "label"
    return True


def fork(simulation: Simulation, trace: Known) -> bool:
    if len(simulation.traces) >= MOST_TRACES:
        return False
    rev, name = simulation.rng.choice(sorted(trace.naive.kept)), f"{trace}.{len(simulation.traces)}"
    simulation.say(trace, "is forked at rev", rev, "as", name)
    first = fork_delta(now(simulation.store.load(trace.trace_id, rev)), {})
    forked = simulation.write(Fork(parent=trace.naive.key, rev=rev, trace_id=name, owner=None, first=first))
    assert isinstance(forked, Admitted)
    child = trace.naive.fork(rev, name, None, first)
    child.key = forked.trace
    promises.a_fork_begins_where_its_parent_was(trace.naive.kept[rev], child.kept[first.rev])
    simulation.traces[name] = trace.fork(child)
    simulation.changed[name] = None
    return True


def wait(simulation: Simulation, trace: Known) -> bool:
    CLOCK.now += simulation.rng.uniform(0, 3)
    return True


DISTURBANCES: dict[Callable[[Simulation, Known], bool], int] = {
    resume: 20,
    take_over: 8,
    crash: 4,
    fail: 4,
    stop: 2,
    hear: 12,
    carry_out: 4,
    ask_to_pause: 2,
    answer: 8,
    prune: 4,
    drop: 3,
    label: 1,
    fork: 3,
    wait: 8,
}
"""Each with how likely it is."""


def disturb(simulation: Simulation) -> bool:
    """Perhaps something comes between; returns whether it did."""
    if simulation.rng.random() < 0.6:
        return False
    (what,) = simulation.rng.choices(list(DISTURBANCES), list(DISTURBANCES.values()))
    return what(simulation, simulation.rng.choice(list(simulation.traces.values())))
