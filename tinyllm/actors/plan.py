"""What a trace does next: the pure state of one trace. No event loop, no I/O, no clock.

A transition takes what happened and returns the delta that records it. It either does all of it or, by raising before
it has changed anything, none of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import attrs
import msgspec

from tinyllm.actors.joins import NOTHING, Arrival, Joins, common_path
from tinyllm.actors.routes import Names, Route, Router
from tinyllm.errors import NodeError
from tinyllm.graph.definition import END, Graph
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.payload import Captured, encode_error
from tinyllm.graph.variables import Order, Version
from tinyllm.nodes.call import Output
from tinyllm.storage.contract import (
    ActivationRow,
    ArrivalRow,
    Counts,
    Delta,
    Fired,
    Marks,
    MessageRow,
    Snapshot,
    StateChange,
    Status,
    StepRow,
    VariableRow,
)

_encode_order = msgspec.json.Encoder().encode
_decode_order = msgspec.json.Decoder(Order).decode


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
        self.planned: list[Activation] = []
        """Fresh since `take_planned()` was last called."""
        self.joins = Joins(graph)
        self.active: Counter[str] = Counter()
        self.versions: dict[str, Version] = {}
        """Replaced, never changed: nodes that run hold the one they started with."""
        self._marks = Marks()
        self._messages = 0
        self._router = Router(graph, trace_id, generation, self.joins)

    # -- what is asked -----------------------------------------------------------------------------------------

    @property
    def quiescent(self) -> bool:
        """Nothing is left that could run."""
        return not self.activations and not self.stuck and not self.joins.waiting

    def exits(self) -> list[Captured]:
        """What has reached the end, in causal order."""
        return [arrival.input for arrival in self.joins.arrived(END)]

    def waiting(self) -> Counter[str]:
        """How many activations of each node the frontier holds."""
        return Counter(a.node for a in (*self.activations.values(), *self.stuck.values()))

    def take_planned(self) -> list[Activation]:
        fresh, self.planned = self.planned, []
        return fresh

    # -- beginning ---------------------------------------------------------------------------------------------

    def begin(self, task: Captured, variables: Mapping[str, bytes]) -> Delta:
        """Admission: the task arrives at every entry."""
        delta = _Draft(self)
        for key, body in variables.items():
            _set_full(delta, self.versions, key, body)
        self._plan(delta, "", self._router.entries(), [task], path=(), depth=0)
        self._settle(delta)
        return delta.done()

    def wake(self) -> Delta | None:
        """What a restored trace does where nothing it kept can run: the graph, or a condition, may have changed."""
        if self.activations:
            return None
        delta = _Draft(self)
        self._settle(delta)
        if self.quiescent:
            self._end()
        return delta.done()

    def restore(self, snapshot: Snapshot) -> None:
        """Take over what a store kept. What had failed or was cancelled is planned again."""
        self.key, self.epoch, self.number = snapshot.record.trace, snapshot.record.epoch, 0
        self.step, self._marks, self._messages = snapshot.step, snapshot.marks, snapshot.counts.messages
        inputs = {seq: Captured(message.body) for seq, message in snapshot.messages.items()}
        for key, (full, *appended) in snapshot.variables.items():
            version = Version(full.seq, full.body)
            for item in appended:
                assert item.order is not None
                version = version.appended(_decode_order(item.order), item.body)
            self.versions[key] = version
        self.joins.restore(snapshot, inputs)
        for row in snapshot.frontier:
            if row.state == "buffered":
                continue
            if row.message is None:
                sources, reads = _joined(self.joins.restored(row.seq))
            else:
                reads = inputs[row.message] if row.item is None else inputs[row.message].item(row.item)
                sources = ((row.message, snapshot.messages[row.message].node),)
            self._add(Activation(row.seq, row.id, row.node, sources, reads, row.path, row.depth, row.attempts, 0))

    # -- transitions -------------------------------------------------------------------------------------------

    def finish(self, seq: int, output: Output, *, ended_at: float, duration_ms: float) -> Delta:
        """Activation `seq` is done: record its result, plan what it causes.

        :raises NodeError: it named an undeclared target, or its value does not fit its edges.
        :raises ConditionError: a condition on one of its edges could not be decided.
        """
        activation = self.activations[seq]
        captured = Captured(output.body)
        delta = _Draft(self)
        versions = self._set(delta, activation, output.sets)
        names = Names(captured, versions, self.step + 1)
        routes, awaited = self._router.routes(activation.node, activation.id, output, captured, names)

        self.versions = versions  # from here on nothing can fail any more
        del self.activations[seq]
        self.active[activation.node] -= 1
        self.step += 1
        delta.node = activation.node
        delta.ended.append(seq)
        delta.steps.append(StepRow(self.step, seq, activation.node, ended_at, duration_ms, activation.attempts + 1))
        bodies = [captured, *(Captured(body) for _, body in output.sends or ())]
        self._plan(delta, activation.node, routes, bodies, path=activation.path, depth=activation.depth + 1)
        for join in awaited:
            self._arrive(
                delta, join, activation.id, None, activation.node, NOTHING, activation.path, activation.depth + 1
            )
        if not self.active[activation.node]:
            self._settle(delta)
        if self.quiescent:
            self._end()
        return delta.done()

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
        delta = _Draft(self)
        delta.node = activation.node
        delta.changed.append(StateChange(seq, state, activation.attempts + tries, error))
        return delta.done()

    def give_up(self) -> Delta:
        """Nothing runs any more after a failure: the trace is failed."""
        self.status = "failed"
        return _Draft(self).done()

    def _end(self) -> None:
        if self.joins.arrived(END):
            self.status = "completed"
            return
        self.status = "failed"
        self.error = ErrorInfo(
            type="NodeError",
            message="the graph ended without reaching an exit: no edge that was taken leads on; "
            "give a node an edge whose condition always holds, or fork from a step before it",
        )

    # -- planning ----------------------------------------------------------------------------------------------

    def _plan(
        self,
        delta: _Draft,
        source: str,
        routes: Sequence[Route],
        bodies: Sequence[Captured],
        *,
        path: tuple[int, ...],
        depth: int,
    ) -> None:
        consumers = Counter(route.body for route in routes)
        seqs = [delta.message(source, consumers[index], captured) for index, captured in enumerate(bodies)]
        for route in routes:
            inner = path if route.index is None else (*path, route.index)
            seq, carried = seqs[route.body], bodies[route.body]
            if route.node == END or self.graph.nodes[route.node].join == "all":
                self._arrive(delta, route.node, route.id, seq, source, carried, inner, depth)
                continue
            reads = carried if route.item is None else carried.item(route.item)
            row = ActivationRow(delta.next_activation(), route.id, route.node, seq, route.item, inner, depth)
            delta.activations.append(row)
            self._add(Activation(row.seq, row.id, row.node, ((seq, source),), reads, inner, depth, 0, self.number + 1))

    def _add(self, activation: Activation) -> None:
        self.activations[activation.seq] = activation
        self.active[activation.node] += 1
        self.planned.append(activation)

    def _arrive(
        self,
        delta: _Draft,
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

    def _settle(self, delta: _Draft) -> None:
        """Fire every join that nothing live can still reach."""
        for node in self.joins.ready(self.active, anything_runs=bool(self.activations or self.stuck)):
            round_ = self.joins.rounds.pop(node)
            arrivals = self.joins.ordered(round_)
            fired = Fired(
                round_.seq,
                self.joins.round_id(self.trace_id, self.generation, round_),
                common_path([a.path for a in arrivals]),
                1 + max(a.depth for a in arrivals),
            )
            delta.fired.append(fired)
            sources, reads = _joined(arrivals)
            self._add(
                Activation(round_.seq, fired.id, node, sources, reads, fired.path, fired.depth, 0, self.number + 1)
            )

    # -- variables ---------------------------------------------------------------------------------------------

    def _set(self, delta: _Draft, activation: Activation, sets: Sequence[tuple[str, bytes]]) -> dict[str, Version]:
        """The variables as `sets` leave them."""
        if not sets:
            return self.versions
        versions = dict(self.versions)
        for ordinal, (key, body) in enumerate(sets):
            if self.graph.variables.get(key) != "append":
                _set_full(delta, versions, key, body)
                continue
            if key not in versions:
                _set_full(delta, versions, key, b"[]")
            version = versions[key]
            if not version.body.startswith(b"["):
                raise NodeError(
                    activation.node, f"variable {key!r} has the reducer append, but its value is not a list"
                )
            order = (activation.depth, activation.path, activation.id.hex(), ordinal)
            row = VariableRow(delta.next_variable(), key, "append", version.base, body, _encode_order(order))
            delta.variables.append(row)
            versions[key] = version.appended(order, body)
        return versions


class _Draft:
    """A delta in the making: hands out the sequence numbers of its rows."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        marks = plan._marks
        self._message, self._activation = marks.message, marks.activation
        self._arrival, self._variable = marks.arrival, marks.variable
        self.node: str | None = None
        self.messages: list[MessageRow] = []
        self.activations: list[ActivationRow] = []
        self.arrivals: list[ArrivalRow] = []
        self.fired: list[Fired] = []
        self.changed: list[StateChange] = []
        self.ended: list[int] = []
        self.variables: list[VariableRow] = []
        self.steps: list[StepRow] = []

    def message(self, source: str, consumers: int, captured: Captured) -> int:
        self._message += 1
        self.messages.append(MessageRow(self._message, source, consumers, captured.body))
        return self._message

    def next_activation(self) -> int:
        self._activation += 1
        return self._activation

    def next_arrival(self) -> int:
        self._arrival += 1
        return self._arrival

    def next_variable(self) -> int:
        self._variable += 1
        return self._variable

    def done(self) -> Delta:
        plan = self._plan
        plan._marks = Marks(self._message, self._activation, self._arrival, self._variable)
        plan._messages += len(self.messages)
        plan.number += 1
        bodies = sum(len(row.body) for row in self.messages) + sum(len(row.body) for row in self.variables)
        return Delta(
            trace=plan.key,
            epoch=plan.epoch,
            number=plan.number,
            step=plan.step,
            status=plan.status,
            node=self.node,
            marks=plan._marks,
            counts=Counts(
                messages=plan._messages,
                frontier=len(plan.activations) + len(plan.stuck) + len(plan.joins.rounds),
                variables=len(plan.versions),
            ),
            messages=tuple(self.messages),
            activations=tuple(self.activations),
            arrivals=tuple(self.arrivals),
            fired=tuple(self.fired),
            changed=tuple(self.changed),
            ended=tuple(self.ended),
            variables=tuple(self.variables),
            steps=tuple(self.steps),
            error=None if plan.error is None or plan.status != "failed" else encode_error(plan.error),
            size=bodies,
        )


def _set_full(delta: _Draft, versions: dict[str, Version], key: str, body: bytes) -> None:
    seq = delta.next_variable()
    delta.variables.append(VariableRow(seq, key, "full", seq, body))
    versions[key] = Version(seq, body)


def _joined(arrivals: Iterable[Arrival]) -> tuple[tuple[tuple[int, str], ...], Captured]:
    """What a fired round reads: where it came from, and the list of it."""
    brought = [(arrival.message, arrival) for arrival in arrivals if arrival.message is not None]
    return tuple((seq, a.source) for seq, a in brought), Captured(parts=tuple(a.input for _, a in brought))
