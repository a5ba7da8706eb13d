"""The promises that a simulation holds tinyllm to: each a function, which raises where it is broken. And, to compare
with, what is committed of a trace, kept in the simplest way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from typing import Any

import attrs

from tests.actors.graphs import now
from tests.actors.worlds import End
from tests.storage.naive import NaiveTrace, State
from tests.torture.trial import Violation
from tinyllm.errors import AlreadyAnswered, CheckpointInUse, OwnershipLost
from tinyllm.graph.definition import END, Graph, after
from tinyllm.graph.ids import activation_id
from tinyllm.nodes.call import Call
from tinyllm.storage.contract import Delta, Outcome, Pruned, Snapshot
from tinyllm.storage.memory import InMemoryCheckpointStorage


@attrs.define(eq=False)
class Known:
    """All that is committed of one trace."""

    naive: NaiveTrace
    recorded: dict[bytes, int] = attrs.field(factory=dict)
    """Causal ids of the activations whose end is committed, each with the rev at which it was."""
    epoch: int = 1
    acknowledged: int = 0
    """The newest step that an owner was told is durable."""
    answered: set[tuple[bytes, str]] = attrs.field(factory=set)
    """The questions, by causal id and name."""
    mended: bool = False
    """Whether it goes on with the graph in which nothing is amiss."""
    left_alone: bool = False
    """Whether it has gone on since nothing disturbs it."""

    def __str__(self) -> str:
        return self.trace_id

    @property
    def trace_id(self) -> str:
        return self.naive.trace_id

    def fork(self, child: NaiveTrace) -> Known:
        shared = {causal: rev for causal, rev in self.recorded.items() if rev <= (child.parent_rev or 0)}
        return Known(child, shared)


def alike(naive: NaiveTrace) -> NaiveTrace:
    """The trace as it is now, without a past, to go another way."""
    return attrs.evolve(
        naive,
        live=dict(naive.live),
        ids=dict(naive.ids),
        arrivals=dict(naive.arrivals),
        messages=dict(naive.messages),
        variables=dict(naive.variables),
        steps=list(naive.steps),
        kept={},
        children=[],
        commands={},
    )


# -- what is handed over ---------------------------------------------------------------------------------------


def numbers_have_no_gap(number: int, delta: Delta) -> None:
    if delta.number != number + 1:
        raise Violation(f"after delta {number} comes {delta.number}")


def steps_rise_by_one_for_each_that_finished(before: NaiveTrace, step: int, delta: Delta) -> None:
    numbers = [row.step for row in delta.steps]
    if len(numbers) > 1 or numbers != list(range(step + 1, delta.step + 1)):
        raise Violation(f"after step {step} comes {delta.step}, with the steps {numbers}")
    if any(row.activation not in before.live for row in delta.steps):
        raise Violation(f"step {delta.step} is of an activation that is not in the frontier")


def joins_fire_only_when_nothing_live_can_reach_them(graph: Graph, before: NaiveTrace, delta: Delta) -> None:
    if not delta.fired:
        return
    rows = [row for row in (*before.live.values(), *delta.activations) if row.seq not in delta.ended]
    fired = {row.seq: row.node for row in rows if row.seq in {fired.activation for fired in delta.fired}}
    rounds = {row.node for row in rows if row.state == "buffered" and row.node != END}
    live = [row for row in rows if row.state != "buffered"]
    for node in fired.values():
        waits_for = [row.node for row in live if node in paths(graph)[after(row.node)]]
        waits_for += [other for other in rounds if other != node and node in paths(graph)[other]]
        if waits_for and (live or len(fired) > 1):  # of joins that block each other one fires, if only they are left
            raise Violation(f"join {node} fires, and {', '.join(waits_for)} can still reach it")


@lru_cache(maxsize=4)
def paths(graph: Graph) -> Mapping[str, set[str]]:
    """For each node, those that a path of one or more steps leads to."""
    steps: dict[str, set[str]] = {}
    for node in graph.nodes.values():
        steps[node.id] = {edge.to_node for edge in graph.edges if edge.from_node == node.id} | set(node.targets)
        steps[node.id] |= {node.on_error} if node.on_error else set()
    found = {node: set(following) for node, following in steps.items()}
    for _ in graph.nodes:
        for following in found.values():
            following.update(*(steps[node] for node in set(following)))
    return found


def counts_match_rows(naive: NaiveTrace, delta: Delta) -> None:
    arrivals = sum(row.activation in naive.live for row in naive.arrivals.values())
    history = sum(row.history for row in naive.messages.values())
    told = (delta.counts.frontier, delta.counts.arrivals, delta.counts.variables, delta.counts.messages)
    found = (len(naive.live), arrivals, len(naive.variables), history)
    if told != found:
        raise Violation(f"the counts are {told}, and there are {found} (frontier, arrivals, variables, messages)")


def at_risk_is_no_more_than_the_credit(unwritten: int, credit: int) -> None:
    if unwritten > credit:
        raise Violation(f"a crash would cost {unwritten} steps, more than the credit of {credit}")


# -- what is started -------------------------------------------------------------------------------------------


def recorded_work_never_starts_again(known: Known, call: Call) -> None:
    if (rev := known.recorded.get(call.causal)) is not None:
        raise Violation(f"{call.node_id} is started, and its result was recorded at rev {rev}")


def an_id_means_one_work(works: dict[bytes, tuple[str, bytes]], undisturbed: Set[bytes], call: Call) -> None:
    """In all traces and lives, and the same as where nothing was disturbed: node and input say which work it is."""
    work = (call.node_id, call.input.body)
    if works.setdefault(call.causal, work) != work:
        raise Violation(f"one id is of two works: {works[call.causal]} and {work}")
    if activation_id("t", call.causal) not in undisturbed:
        raise Violation(f"{work} has another id than it has where nothing is disturbed")


def effects_rest_on_what_is_committed(known: Known, seq: int, call: Call) -> None:
    row = known.naive.live.get(seq)
    if row is None or row.id != call.causal:
        raise Violation(f"{call.node_id} has effects and is started, and what caused it is not committed")
    present = {key: (rows[0].seq, len(rows) - 1) for key, rows in known.naive.variables.items()}
    for key, version in call.versions.items():
        base, items = present.get(key, (0, 0))
        if version.base > base or (version.base == base and version.count > items):
            raise Violation(f"{call.node_id} has effects and sees {key!r} as nobody has committed it")


def in_sync_nothing_starts_before_all_is_committed(unwritten: int, call: Call) -> None:
    if unwritten:
        raise Violation(f"{call.node_id} is started, and {unwritten} deltas before it are not committed")


def nothing_starts_after_a_failure(failed: str | None, call: Call) -> None:
    if failed is not None:
        raise Violation(f"{call.node_id} is started, and {failed} has failed for good")


def saved_progress_is_committed(known: Known, seq: int, body: bytes) -> None:
    row = known.naive.live.get(seq)
    if row is None or row.progress != body:
        raise Violation(f"progress {body!r} was saved, the node was told so, and it is not committed")


# -- what is written -------------------------------------------------------------------------------------------


def revs_have_no_gap(known: Known, rev: int) -> None:
    if rev != known.naive.rev + 1:
        raise Violation(f"rev {rev} is written after rev {known.naive.rev}")


def only_the_owner_writes(known: Known, epoch: int, outcome: Outcome) -> None:
    refused = isinstance(outcome, Exception)
    if refused != (epoch != known.epoch):
        whose = "its owner" if epoch == known.epoch else f"one whom epoch {known.epoch} has succeeded"
        raise Violation(f"what {whose} (epoch {epoch}) writes is told: {outcome!r}")


def what_is_merged_is_what_its_parts_made(merged: State, made: State) -> None:
    names = [field.name for field in attrs.fields(State) if field.name != "rev"]
    found, wanted = ([getattr(state, name) for name in names] for state in (merged, made))
    if found != wanted:
        raise Violation(f"rev {merged.rev} {differences(names, found, wanted)}")


def nothing_counts_as_durable_before_it_is_committed(durable: int, written: int) -> None:
    if durable > written:
        raise Violation(f"delta {durable} counts as durable, and {written} is the newest that is committed")


def work_is_recorded_once(known: Known, causal: bytes, rev: int) -> None:
    if known.recorded.setdefault(causal, rev) != rev:
        raise Violation(f"what rev {rev} records was recorded at rev {known.recorded[causal]}")


def only_who_was_succeeded_loses_a_trace(known: Known, epoch: int, error: Exception | None) -> None:
    if error is not None and (not isinstance(error, OwnershipLost) or epoch == known.epoch):
        raise Violation(f"its owner (epoch {epoch} of {known.epoch}) left because of {error!r}")


def pruning_drops_what_nobody_needs(outcome: Outcome, wanted: int) -> None:
    if outcome != Pruned(wanted):
        raise Violation(f"pruning tells {outcome!r}, and {wanted} checkpoints were to go")


# -- what is kept ----------------------------------------------------------------------------------------------


def nothing_acknowledged_is_missing(store: InMemoryCheckpointStorage, known: Known) -> None:
    record = now(store.trace(known.trace_id))
    if record is None or record.step < known.acknowledged:
        found = None if record is None else record.step
        raise Violation(f"step {known.acknowledged} was acknowledged, and {found} is the newest that is there")
    steps = [row.step for row in now(store.steps(known.trace_id))]
    if steps != list(range(1, record.step + 1)):
        raise Violation(f"of {record.step} steps there are {steps}")


def the_newest_checkpoint_is_what_was_committed(store: InMemoryCheckpointStorage, known: Known) -> None:
    naive = known.naive
    snapshot = a_checkpoint_loads_as_it_was_made(store, known, naive.rev)
    steps, commands = now(store.steps(naive.trace_id)), now(store.commands(trace=naive.key))
    # Beside what every checkpoint shows, the newest one shows how each activation is, and the trace as a whole.
    frontier = [naive.live[seq] for seq in sorted(naive.live)]
    wanted = (frontier, naive.error, known.epoch, naive.steps, list(naive.commands))
    record = snapshot.record
    found = (list(snapshot.frontier), record.error, record.epoch, steps, [command.id for command in commands])
    if found != wanted:
        raise Violation(f"{naive.trace_id}, at its newest checkpoint, {differences(_OF_THE_NEWEST, found, wanted)}")


_OF_THE_NEWEST = ("frontier", "error", "epoch", "steps", "commands")


def a_checkpoint_loads_as_it_was_made(store: InMemoryCheckpointStorage, known: Known, rev: int) -> Snapshot:
    naive = known.naive
    state = naive.kept[rev]
    snapshot = now(store.load(naive.trace_id, rev))
    history = tuple((row.seq, row.node, row.body) for row in now(store.messages(naive.trace_id, rev=rev, limit=10_000)))
    messages = {seq: (row.node, row.body) for seq, row in snapshot.messages.items()}
    found: list[Any] = [snapshot.rev, snapshot.step, snapshot.status, snapshot.marks, snapshot.counts]
    found += [snapshot.arrivals, messages, history, snapshot.variables, _counters(snapshot)]
    wanted: list[Any] = [state.rev, state.step, state.status, state.marks, state.counts]
    wanted += [state.arrivals, state.messages, state.history, state.variables, state.counters]
    if rev != naive.rev:  # else it shows more of its frontier than it will
        found.append(snapshot.frontier)
        wanted.append(state.frontier)
    if found != wanted:
        raise Violation(f"checkpoint {naive.trace_id}@{rev} {differences(_OF_ANY, found, wanted)}")
    return snapshot


_OF_ANY = (
    *("rev", "step", "status", "marks", "counts", "arrivals", "messages", "history", "variables", "counters"),
    "frontier",
)


def _counters(snapshot: Snapshot) -> tuple[int, int, float, int, int]:
    elapsed, tokens = snapshot.elapsed, (snapshot.tokens_in, snapshot.tokens_out)
    return snapshot.generation, snapshot.generation_step, elapsed, *tokens


def the_checkpoints_are_those_that_are_kept(store: InMemoryCheckpointStorage, known: Known) -> None:
    found = [record.rev for record in now(store.checkpoints(known.trace_id, limit=10_000))]
    if found != sorted(known.naive.kept, reverse=True):
        raise Violation(f"of {known.trace_id} the checkpoints {found} are kept, not {sorted(known.naive.kept)}")


def what_is_answered_is_not_asked_again(known: Known, question: tuple[bytes, str]) -> None:
    if question in known.answered:
        raise Violation(f"{question} is answered, and asked again")


def an_answer_is_given_once(outcome: Outcome) -> None:
    if not isinstance(outcome, AlreadyAnswered):
        raise Violation(f"a second answer is told {outcome!r}")


def what_is_carried_out_is_consumed(store: InMemoryCheckpointStorage, known: Known) -> None:
    """By the end, all that was left has been."""
    if left := [command.kind for command in now(store.commands(trace=known.naive.key))]:
        raise Violation(f"{known} has ended, and {', '.join(left)} was not consumed")


def what_is_in_use_is_not_dropped(outcome: Outcome, in_use: bool) -> None:
    if isinstance(outcome, CheckpointInUse) != in_use:
        raise Violation(f"to drop what is {'' if in_use else 'not '}in use is told {outcome!r}")


def a_fork_begins_where_its_parent_was(parent: State, child: State) -> None:
    names = ("step", "history", "variables", "steps", "task", "messages")
    found = (*(getattr(child, name) for name in names), _frontier(child))
    wanted = (*(getattr(parent, name) for name in names), _frontier(parent))
    if found != wanted:
        raise Violation(f"a fork {differences((*names, 'frontier'), found, wanted)}")


def _frontier(state: State) -> list[Any]:
    """Without the numbers of its rows, which are each trace's own."""
    arrived: dict[int, list[Any]] = {}
    for arrival in state.arrivals:
        arrived.setdefault(arrival.activation, []).append((arrival.id, arrival.message or 0, arrival.path))
    return sorted(
        (row.node, row.id, row.message or 0, row.item or 0, row.path, row.depth, sorted(arrived.get(row.seq, [])))
        for row in state.frontier
    )


def the_end_is_that_of_the_undisturbed_run(found: End, wanted: End) -> None:
    if found != wanted:
        names = [field.name for field in attrs.fields(End)]
        different = differences(names, *([getattr(end, name) for name in names] for end in (found, wanted)))
        raise Violation(f"it ends otherwise than undisturbed: it {different}")


def differences(names: Sequence[str], found: Sequence[Any], wanted: Sequence[Any]) -> str:
    """What differs."""
    told = zip(names, found, wanted, strict=False)
    return "; ".join(f"has {name} {is_!r:.500}, not {was!r:.500}" for name, is_, was in told if is_ != was)
