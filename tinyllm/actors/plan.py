"""What a trace does next: the pure state of one trace. No event loop, no I/O, no clock.

A transition takes what happened and returns the delta that records it. It either does all of it or, by raising before
it has changed anything, none of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import attrs

from tinyllm.actors.draft import Draft, decode_order
from tinyllm.actors.joins import NOTHING, Arrival, Joins, joined
from tinyllm.actors.routes import Names, Route, Router
from tinyllm.errors import ConditionError, ExitNotReached, NodeError
from tinyllm.graph.definition import AFTER, END, Graph, after, is_undecided
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.payload import Captured, encode_error
from tinyllm.graph.variables import Version
from tinyllm.nodes.call import Output
from tinyllm.storage.contract import (
    ActivationRow,
    ArrivalRow,
    Counts,
    Delta,
    Fired,
    Marks,
    Snapshot,
    StateChange,
    Status,
    StepRow,
)

NEVER_COUNTED = 2**31 - 1
"""Readers of a message that is read by what is planned later: it does not go when those of now have gone."""


@attrs.frozen(eq=False)
class Activation:
    """A live activation that may run, with what it reads."""

    seq: int
    id: bytes
    node: str
    sources: tuple[tuple[int, str], ...]
    """(message seq, source node) of what it reads; several for a join."""
    input: Captured
    path: tuple[int, ...]
    depth: int
    attempts: int
    born: int
    """The number of the delta that planned it; 0 when that is long durable."""


class Plan:
    """The frontier, the variables and the counters of one trace, at its newest step."""

    def __init__(self, graph: Graph, trace_id: str, *, generation: int = 1) -> None:
        self.graph = graph
        self.trace_id = trace_id
        self.generation = generation
        self.key = 0
        """The trace's key and its epoch, once the store has given them."""
        self.epoch = 0
        self.number = -1
        """Of the newest delta; admission is 0."""
        self.step = 0
        self.status: Status = "running"
        self.error: ErrorInfo | None = None
        self.activations: dict[int, Activation] = {}
        """Planned or running, by seq."""
        self.stuck: dict[int, Activation] = {}
        """Failed or cancelled: kept in the frontier for a resume."""
        self.undecided: dict[int, Activation] = {}
        """Results whose edges could not be decided, as what would follow: they are not made again, only decided."""
        self.planned: list[Activation] = []
        """Fresh since `take_planned()` was last called."""
        self.joins = Joins(graph)
        self.active: Counter[str] = Counter()
        self.versions: dict[str, Version] = {}
        """Replaced, never changed: nodes that run hold the one they started with."""
        self._marks = Marks()
        self._messages = 0
        self._arrivals: Counter[int] = Counter()
        """How many there are of each round in the frontier, open or fired."""
        self._router = Router(graph, trace_id, generation, self.joins)

    # -- what is asked -----------------------------------------------------------------------------------------

    @property
    def quiescent(self) -> bool:
        """Nothing is left that could run."""
        return not (self.activations or self.stuck or self.undecided or self.joins.waiting)

    def outcome(self) -> Any:
        """What has reached the end: the value of the one exit; where more than one result came, or one that is part of
        a fan-out, the list of all, in causal order."""
        arrivals = self.joins.arrived(END)
        values = [arrival.input.value for arrival in arrivals if arrival.message is not None]
        return values[0] if len(arrivals) == len(values) == 1 and not arrivals[0].path else values

    def waiting(self) -> Counter[str]:
        """How many activations of each node the frontier holds."""
        return Counter(a.node for a in (*self.activations.values(), *self.stuck.values(), *self.undecided.values()))

    def take_planned(self) -> list[Activation]:
        fresh, self.planned = self.planned, []
        return fresh

    # -- beginning ---------------------------------------------------------------------------------------------

    def begin(self, task: Captured, variables: Mapping[str, bytes]) -> Delta:
        """Admission: the task arrives at every entry."""
        delta = Draft(self._marks)
        for key, body in variables.items():
            delta.set(self.versions, key, body)
        self._deliver(delta, "", self._router.entries(), [task], path=(), depth=0)
        self._settle(delta)
        return self._done(delta)

    def wake(self) -> Delta | None:
        """What a restored trace does before anything runs: decide what could not be decided, and, where nothing it kept
        can run, see what follows. The graph, or a condition, may have changed."""
        if self.activations and not self.undecided:
            return None
        delta = Draft(self._marks)
        for seq, result in list(self.undecided.items()):
            node = after(result.node)
            ((message, _),) = result.sources
            try:
                routes, awaited = self._router.routes(
                    node,
                    result.id,
                    Output(result.input.body),
                    result.input,
                    Names(result.input, self.versions, self.step),
                )
            except (ConditionError, NodeError) as error:
                self._blame(node, error)
                continue
            del self.undecided[seq]
            self.active[node] -= 1
            delta.ended.append(seq)
            self._plan(delta, node, routes, [(message, result.input)], path=result.path, depth=result.depth + 1)
            self._await(delta, node, awaited, result)
        self._settle(delta)
        if self.quiescent:
            self._end(None)
        return self._done(delta)

    def restore(self, snapshot: Snapshot) -> None:
        """Take over what a store kept. What had failed or was cancelled is planned again."""
        self.key, self.epoch, self.number = snapshot.record.trace, snapshot.record.epoch, 0
        self.step, self._marks, self._messages = snapshot.step, snapshot.marks, snapshot.counts.messages
        inputs = {seq: Captured(message.body) for seq, message in snapshot.messages.items()}
        for key, (full, *appended) in snapshot.variables.items():
            version = Version(full.seq, full.body)
            for item in appended:
                assert item.order is not None
                version = version.appended(decode_order(item.order), item.body)
            self.versions[key] = version
        self.joins.restore(snapshot, inputs)
        self._arrivals.update(row.activation for row in snapshot.arrivals)
        for row in snapshot.frontier:
            if row.state == "buffered":
                continue
            if row.message is None:
                sources, reads = joined(self.joins.restored(row.seq))
            else:
                reads = inputs[row.message] if row.item is None else inputs[row.message].item(row.item)
                sources = ((row.message, snapshot.messages[row.message].node),)
            activation = Activation(row.seq, row.id, row.node, sources, reads, row.path, row.depth, row.attempts, 0)
            if is_undecided(row.node):
                self.undecided[row.seq] = activation
                self.active[after(row.node)] += 1
            else:
                self._add(activation)

    # -- transitions -------------------------------------------------------------------------------------------

    def finish(self, seq: int, output: Output, *, ended_at: float, duration_ms: float) -> Delta:
        """Activation `seq` is done: record its result, plan what it causes.

        Where a condition cannot be decided the trace fails, but the result is recorded all the same.

        :raises NodeError: it named an undeclared target, or its value does not fit its edges.
        """
        activation = self.activations[seq]
        captured = Captured(output.body)
        delta = Draft(self._marks)
        versions = self._set(delta, activation, output.sets)
        names = Names(captured, versions, self.step + 1)
        undecided: ConditionError | None = None
        try:
            routes, awaited = self._router.routes(activation.node, activation.id, output, captured, names)
        except ConditionError as error:
            routes, awaited, undecided = [], frozenset(), error

        self.versions = versions  # from here on nothing can fail any more
        del self.activations[seq]
        self.active[activation.node] -= 1
        self.step += 1
        delta.node = activation.node
        delta.ended.append(seq)
        delta.steps.append(StepRow(self.step, seq, activation.node, ended_at, duration_ms, activation.attempts + 1))
        bodies = [captured, *(Captured(body) for _, body in output.sends or ())]
        if undecided is not None:
            self._leave_undecided(delta, activation, captured, undecided)
        else:
            self._deliver(delta, activation.node, routes, bodies, path=activation.path, depth=activation.depth + 1)
            self._await(delta, activation.node, awaited, activation)
        if not self.active[activation.node]:
            self._settle(delta)
        if self.quiescent:
            self._end(activation.node)
        return self._done(delta)

    def fail(self, seq: int, error: ErrorInfo) -> Delta:
        """Activation `seq` failed for good."""
        self.error = self.error or error
        return self._stop(seq, "failed", 1, encode_error(error))

    def cut_off(self, seq: int) -> Delta:
        """Activation `seq` was cancelled while it ran."""
        return self._stop(seq, "cancelled", 0, None)

    def _stop(self, seq: int, state: Literal["failed", "cancelled"], tries: int, error: bytes | None) -> Delta:
        """It stays in the frontier for a resume, and counts as active: no join that waits for it fires without it."""
        activation = self.activations.pop(seq)
        self.stuck[seq] = attrs.evolve(activation, attempts=activation.attempts + tries)
        delta = Draft(self._marks)
        delta.node = activation.node
        delta.changed.append(StateChange(seq, state, activation.attempts + tries, error))
        return self._done(delta)

    def give_up(self) -> Delta:
        """Nothing runs any more after a failure: the trace is failed."""
        self.status = "failed"
        return self._done(Draft(self._marks))

    def _end(self, last: str | None) -> None:
        if self.joins.arrived(END):
            self.status = "completed"
        else:
            self.status = "failed"
            self.error = ErrorInfo(type=ExitNotReached.__name__, message=str(ExitNotReached(last)), node_id=last)

    def _done(self, draft: Draft) -> Delta:
        """The delta that `draft` has become: from here on it cannot change."""
        self._marks = draft.marks
        self._messages += len(draft.messages)
        self._arrivals.update(row.activation for row in draft.arrivals)
        for seq in draft.ended:
            del self._arrivals[seq]  # a Counter does not mind where there is none
        self.number += 1
        return Delta(
            trace=self.key,
            epoch=self.epoch,
            number=self.number,
            step=self.step,
            status=self.status,
            node=draft.node,
            marks=self._marks,
            counts=Counts(
                messages=self._messages,
                frontier=len(self.activations) + len(self.stuck) + len(self.undecided) + len(self.joins.rounds),
                arrivals=self._arrivals.total(),
                variables=len(self.versions),
            ),
            messages=tuple(draft.messages),
            activations=tuple(draft.activations),
            arrivals=tuple(draft.arrivals),
            fired=tuple(draft.fired),
            changed=tuple(draft.changed),
            ended=tuple(draft.ended),
            variables=tuple(draft.variables),
            steps=tuple(draft.steps),
            error=None if self.error is None or self.status != "failed" else encode_error(self.error),
            size=draft.size,
        )

    # -- planning ----------------------------------------------------------------------------------------------

    def _deliver(
        self,
        delta: Draft,
        source: str,
        routes: Sequence[Route],
        bodies: Sequence[Captured],
        *,
        path: tuple[int, ...],
        depth: int,
    ) -> None:
        """Record what `source` sends, and plan what that causes."""
        consumers = Counter(route.body for route in routes)
        sent = [(delta.message(source, consumers[index], body), body) for index, body in enumerate(bodies)]
        self._plan(delta, source, routes, sent, path=path, depth=depth)

    def _plan(
        self,
        delta: Draft,
        source: str,
        routes: Sequence[Route],
        sent: Sequence[tuple[int, Captured]],
        *,
        path: tuple[int, ...],
        depth: int,
    ) -> None:
        for route in routes:
            inner = path if route.index is None else (*path, route.index)
            seq, carried = sent[route.body]
            if route.node == END or self.graph.nodes[route.node].join == "all":
                self._arrive(delta, route.node, route.id, seq, source, carried, inner, depth)
                continue
            reads = carried if route.item is None else carried.item(route.item)
            row = ActivationRow(delta.next_activation(), route.id, route.node, seq, route.item, inner, depth)
            delta.activations.append(row)
            self._add(Activation(row.seq, row.id, row.node, ((seq, source),), reads, inner, depth, 0, self.number + 1))

    def _await(self, delta: Draft, source: str, joins: Iterable[str], cause: Activation) -> None:
        """An empty fan-out arrives, with nothing, at the joins behind it."""
        for join in joins:
            self._arrive(delta, join, cause.id, None, source, NOTHING, cause.path, cause.depth + 1)

    def _leave_undecided(self, delta: Draft, activation: Activation, captured: Captured, error: ConditionError) -> None:
        """Keep a result in the frontier, under the id of what made it, until its edges can be decided."""
        seq = delta.message(activation.node, NEVER_COUNTED, captured)
        waiting = Activation(
            seq=delta.next_activation(),
            id=activation.id,
            node=activation.node + AFTER,
            sources=((seq, activation.node),),
            input=captured,
            path=activation.path,
            depth=activation.depth,
            attempts=0,
            born=self.number + 1,
        )
        row = ActivationRow(waiting.seq, waiting.id, waiting.node, seq, None, waiting.path, waiting.depth)
        delta.activations.append(row)
        self.undecided[waiting.seq] = waiting
        self.active[activation.node] += 1
        self._blame(activation.node, error)

    def _blame(self, node: str, error: Exception) -> None:
        self.error = self.error or ErrorInfo(type=type(error).__name__, message=str(error), node_id=node)

    def _add(self, activation: Activation) -> None:
        self.activations[activation.seq] = activation
        self.active[activation.node] += 1
        self.planned.append(activation)

    def _arrive(
        self,
        delta: Draft,
        node: str,
        identity: bytes,
        message: int | None,
        source: str,
        captured: Captured,
        path: tuple[int, ...],
        depth: int,
    ) -> None:
        """A message reaches a join: it is kept until the round fires."""
        round_ = self.joins.rounds.get(node)
        if round_ is None:
            round_ = self.joins.open(node, delta.next_activation())
            delta.activations.append(ActivationRow(round_.seq, b"", node, None, state="buffered"))
        row = ArrivalRow(delta.next_arrival(), round_.seq, message, identity, path, depth)
        delta.arrivals.append(row)
        round_.arrivals.append(Arrival(row.seq, message, source, captured, identity, path, depth))

    def _settle(self, delta: Draft) -> None:
        """Fire every join that nothing live can still reach."""
        for node in self.joins.ready(self.active, anything_runs=bool(self.activations or self.stuck or self.undecided)):
            round_ = self.joins.rounds.pop(node)
            arrivals = self.joins.ordered(round_)
            fired = Fired(
                round_.seq,
                self.joins.round_id(self.trace_id, self.generation, round_),
                1 + max(a.depth for a in arrivals),
            )
            delta.fired.append(fired)
            sources, reads = joined(arrivals)
            self._add(Activation(round_.seq, fired.id, node, sources, reads, (), fired.depth, 0, self.number + 1))

    # -- variables ---------------------------------------------------------------------------------------------

    def _set(self, delta: Draft, activation: Activation, sets: Sequence[tuple[str, bytes]]) -> dict[str, Version]:
        """The variables as `sets` leave them."""
        if not sets:
            return self.versions
        versions = dict(self.versions)
        for ordinal, (key, body) in enumerate(sets):
            if self.graph.variables.get(key) != "append":
                delta.set(versions, key, body)
                continue
            if key not in versions:
                delta.set(versions, key, b"[]")
            if not versions[key].body.startswith(b"["):
                raise NodeError(
                    activation.node, f"variable {key!r} has the reducer append, but its value is not a list"
                )
            delta.append(
                versions,
                key,
                body,
                (activation.depth, activation.path, self.graph.place[activation.node], activation.id.hex(), ordinal),
            )
        return versions
