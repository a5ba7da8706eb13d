"""What a trace does next: the pure state of one trace. No event loop, no I/O, no clock.

A transition takes what happened and returns the delta that records it. It either does all of it or, by raising before
it has changed anything, none of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from tinyllm.actors.activation import Activation
from tinyllm.actors.amplified import WriteCounter
from tinyllm.actors.attempts import wait_before_retry
from tinyllm.actors.delivery import Delivery
from tinyllm.actors.draft import Draft
from tinyllm.actors.routes import Names, Router
from tinyllm.errors import ConditionError, ExitNotReached, LimitReached, NodeError, ValueMismatch, ValueNotStorable
from tinyllm.graph.definition import END, Graph, after
from tinyllm.graph.ids import activation_id
from tinyllm.graph.messages import ErrorInfo, MessagePayload
from tinyllm.graph.payload import Captured, encode_error, encode_payload
from tinyllm.graph.questions import Asked
from tinyllm.graph.variables import Version, reduced
from tinyllm.nodes.call import Failure, Output
from tinyllm.storage.contract import (
    UNOWNED,
    ActivationState,
    Command,
    Counts,
    Delta,
    Marks,
    MessageRow,
    Snapshot,
    Status,
    StepRow,
)

MANY = 500
"""Activations, or arrivals, that take longer to plan, or to join, than an event loop should stand still."""


class Plan(Delivery):
    """The frontier, the variables and the counters of one trace, at its newest step."""

    __slots__ = (
        "_arrivals",
        "_keeps_history",
        "_marks",
        "_messages",
        "_rev",
        "_seqs",
        "_writes",
        "amplified",
        "began",
        "closing",
        "elapsed",
        "epoch",
        "generation_step",
        "history",
        "key",
        "status",
        "step",
        "tokens",
        "versions",
        "visited",
    )

    def __init__(self, graph: Graph, trace_id: str) -> None:
        super().__init__(graph, trace_id)
        self.generation_step = 0
        self.key = 0
        """The trace's key and its epoch, once the store has given them."""
        self.epoch = 0
        self._rev = 0
        """Of the newest delta when this was restored."""
        self.step = 0
        self.status: Status = "running"
        self.elapsed = 0.0
        """Seconds of execution until now: whoever has a clock says so before each transition."""
        self.tokens = (0, 0)
        """In, out."""
        self.versions: dict[str, Version] = {}
        """Replaced, never changed: nodes that run hold the one they started with."""
        self.amplified: list[tuple[str, int, int]] = []
        """Variables of which too much is written: key, bytes written, bytes of its value. Whoever tells takes them."""
        self._writes = WriteCounter()
        self.history: list[MessageRow] | None = None
        """All messages, in a trace that nobody records."""
        self.visited: list[str] = []
        """The nodes of all steps, likewise."""
        self.began = 0.0
        self.closing = False
        """Whoever was told to end this trace closes it once nothing runs: it does not come to rest by itself."""
        self._keeps_history = graph.history != 0
        self._marks = Marks()
        self._messages = 0
        self._seqs = 0
        """The sum of the seqs of all rows that the variables consist of."""
        self._arrivals: Counter[int] = Counter()
        """How many there are of each round in the frontier, open or fired."""

    # -- what is asked -----------------------------------------------------------------------------------------

    def outcome(self) -> Any:
        """What has reached the end: the value of the one exit; where more than one result came, or one that is part of
        a fan-out, the list of all, in causal order."""
        arrivals = self.joins.arrived(END)
        values = [arrival.input.value for arrival in arrivals if arrival.message is not None]
        return values[0] if len(arrivals) == len(values) == 1 and not arrivals[0].path else values

    def keep_history(self, began: float) -> None:
        """From now on, `history` and `visited` tell what a store would. `began`: when the trace does, UTC seconds."""
        self.history, self.began = [], began

    # -- beginning ---------------------------------------------------------------------------------------------

    def begin(self, task: Captured, variables: Mapping[str, bytes], status: Status = "running") -> Delta:
        """Admission: the task arrives at every entry. `status`: `queued` where it is for others to go on."""
        self.status = status
        delta = self._draft()
        for key, body in variables.items():
            delta.set(self.versions, key, body)
        return self._enter(delta, task)

    def begin_again(self, task: Captured, digest: str) -> Delta:
        """A completed trace runs from its entries once more, with all that it has gathered."""
        delta = self._draft()
        delta.task = digest
        if (ended := self.joins.rounds.pop(END, None)) is not None:
            delta.ended.append(ended.seq)
        self.generation += 1
        self.generation_step = self.step
        self.status, self.error = "running", None
        self._router = Router(self.graph, self.generation)
        return self._enter(delta, task)

    def _enter(self, delta: Draft, task: Captured) -> Delta:
        # No chain of causes is longer than the steps so far: what a later generation adds comes behind all before it.
        self._deliver(delta, "", self._router.entries(), [task], path=(), depth=self.step)
        self._settle(delta)
        return self._done(delta)

    def hear(self, task: Captured, digest: str) -> Delta:
        """A trace that goes on is told another task: it becomes part of the history, and starts nothing."""
        delta = self._draft()
        delta.task = digest
        delta.message("", 0, task)
        return self._done(delta)

    def restore(self, snapshot: Snapshot, *, retry: bool = True) -> None:
        """Take over what a store kept. What was cancelled, or with `retry` had failed, is planned again."""
        record = snapshot.record
        self.key, self.epoch, self._rev, self.number = record.trace, record.epoch, record.rev, 0
        self.step, self._marks, self._messages = snapshot.step, snapshot.marks, snapshot.counts.messages
        self.generation, self.generation_step = snapshot.generation, snapshot.generation_step
        self.elapsed, self.tokens = snapshot.elapsed, (snapshot.tokens_in, snapshot.tokens_out)
        self._keeps_history = record.history != 0
        self._router = Router(self.graph, self.generation)
        self.versions = {key: Version.stored(rows) for key, rows in snapshot.variables.items()}
        self._seqs = sum(version.seqs for version in self.versions.values())
        self._restore_frontier(snapshot, retry=retry)
        self._arrivals.update(row.activation for row in snapshot.arrivals)

    def wake(self) -> Delta | None:
        """What a restored trace does before anything runs: decide what could not be decided, and, where nothing it kept
        can run, see what follows. The graph, its limits or a condition may have changed."""
        if self.activations and not self.undecided and not self._limit_reached():
            return None
        delta = self._draft()
        node = None
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
            self._lives_no_more(node)
            delta.ended.append(seq)
            self._plan(delta, node, routes, [(message, result.input)], path=result.path, depth=result.depth + 1)
            self._await(delta, node, awaited, result)
        self._settle(delta)
        self._conclude(node)
        return self._done(delta)

    def is_wide(self, seq: int, output: Output) -> bool:
        """Whether to record that result may take long: it plans very many activations, or fires a join of as many."""
        if output.sends is not None and len(output.sends) > MANY:
            return True
        node = self.activations[seq].node
        if len(output.body) > 2 * MANY and any(edge.for_each for edge in self.graph.outgoing[node]):
            return True  # by its bytes: to count the items would be the half of the work
        return len(self.activations) == 1 and any(len(each.arrivals) > MANY for each in self.joins.rounds.values())

    # -- transitions -------------------------------------------------------------------------------------------

    def finish(self, seq: int, output: Output, ended_at: float, duration_ms: float) -> Delta:
        """Activation `seq` is done, at `ended_at` (UTC seconds): record its result, plan what it causes.

        Where a condition cannot be decided the trace fails, but the result is recorded all the same.

        :raises NodeError: it named an undeclared target, or its value does not fit its edges.
        """
        activation = self.activations[seq]
        captured = Captured(output.body)
        delta = self._draft()
        versions = self._set(delta, activation, output.sets)
        names = Names(captured, versions, self.step + 1)
        undecided: ConditionError | None = None
        try:
            routes, awaited = self._router.routes(activation.node, activation.id, output, captured, names)
        except ConditionError as error:
            routes, awaited, undecided = [], frozenset(), error

        self.versions = versions  # from here on nothing can fail any more
        for row in delta.variables:
            if row.kind == "full" and (written := self._writes.wrote(row.key, len(row.body))) is not None:
                self.amplified.append((row.key, written, len(row.body)))
        if any(output.tokens):
            self.tokens = (self.tokens[0] + output.tokens[0], self.tokens[1] + output.tokens[1])
        attempt = activation.attempts + 1
        self._end(delta, activation, ended_at, duration_ms, attempt=attempt, status=output.status)
        bodies = [captured]
        if output.sends:
            bodies += (Captured(body) for _, body in output.sends)
        if undecided is not None:
            self._leave_undecided(delta, activation, captured)
            self._blame(activation.node, undecided)
        else:
            self._deliver(delta, activation.node, routes, bodies, path=activation.path, depth=activation.depth + 1)
            self._await(delta, activation.node, awaited, activation)
        return self._ended(delta, activation)

    def fail(self, seq: int, failure: Failure, *, at: float, duration_ms: float) -> Delta:
        """An attempt at activation `seq` failed, at `at` (UTC seconds): it is tried again, or its failure goes to the
        node that handles it, or the trace fails."""
        activation = self.activations[seq].failed_once_more()
        node = self.graph.nodes[activation.node]
        error = encode_error(failure.error)
        own = activation_id(self.trace_id, activation.id)
        wait = wait_before_retry(node.retry, activation.tries, failure.kinds, own)
        if wait is not None:
            return self._change(attrs.evolve(activation, due=at + wait), "planned", error)
        if node.on_error is None:
            self.error = self.error or failure.error
            return self._change(activation, "failed", error)
        told = _told(activation.input, failure.error)
        delta = self._draft()
        self._end(delta, activation, at, duration_ms, attempt=activation.attempts, status="failed")
        route = self._router.on_error(node.on_error, activation.id)
        self._deliver(delta, activation.node, [route], [told], path=activation.path, depth=activation.depth + 1)
        return self._ended(delta, activation)

    def cut_off(self, seq: int) -> Delta:
        """Activation `seq` was cancelled while it ran."""
        return self._change(self.activations[seq], "cancelled")

    def park(self, seq: int, asked: Asked) -> Delta:
        """Activation `seq` has asked something: it starts again when that is answered."""
        return self._change(self.activations[seq].asking(asked), "paused")

    def heed(self, commands: Sequence[Command]) -> Delta:
        """Others answered. (What nobody waits for any more, or is a pause that a resume has lifted, is consumed and
        that is all.)

        One delta, however many they are: none of this waits for credit.
        """
        delta = self._draft()
        delta.consumed += (command.id for command in commands)
        answers = {(command.activation, command.name): command.body for command in commands if command.kind == "answer"}
        for activation in list(self.parked.values()):
            question = activation.question(self.trace_id)
            if question and (activation.id, question.name) in answers:
                answered = activation.answered(answers[activation.id, question.name] or b"null")
                self._turn(delta, answered, "planned")
        if delta.changed:
            self._conclude(delta.node)
        return self._done(delta)

    def save_progress(self, seq: int, body: bytes) -> Delta:
        """Activation `seq`, which goes on running, recorded how far it is."""
        delta = self._draft()
        saved = self.activations[seq] = attrs.evolve(self.activations[seq], progress=body)
        delta.changed.append(saved.changed("planned"))
        return self._done(delta)

    def close(self, status: Status, consumed: Iterable[int] = ()) -> Delta:
        """Nothing runs any more, and nothing more is to start: the trace has failed, or was paused or cancelled by the
        commands `consumed`."""
        self.status = status
        delta = self._draft()
        delta.consumed += consumed
        return self._done(delta)

    def run_out(self, error: Exception) -> None:
        """The trace came to a limit: it fails when what runs has ended."""
        self._blame(None, error)

    # -- how transitions are made ------------------------------------------------------------------------------

    def _draft(self) -> Draft:
        return Draft(self._marks, keeps_history=self._keeps_history)

    def _change(self, activation: Activation, state: ActivationState, error: bytes | None = None) -> Delta:
        delta = self._draft()
        self._turn(delta, activation, state, error)
        self._conclude(activation.node)
        return self._done(delta)

    def _turn(self, delta: Draft, activation: Activation, state: ActivationState, error: bytes | None = None) -> None:
        """A live activation becomes `activation`, in `state`. It counts as active in every state: no join that waits
        for it fires without it."""
        seq = activation.seq
        delta.node = activation.node
        for group in (self.activations, self.parked):
            group.pop(seq, None)
        match state:
            case "planned":
                self._ready(activation)
            case "paused":
                self.parked[seq] = activation
            case _:
                self.stuck[seq] = activation
        delta.changed.append(activation.changed(state, error))

    def _end(
        self,
        delta: Draft,
        activation: Activation,
        ended_at: float,
        duration_ms: float,
        *,
        attempt: int,
        status: str | None,
    ) -> None:
        """A step: `activation` leaves the frontier."""
        seq = activation.seq
        del self.activations[seq]
        self._lives_no_more(activation.node)
        self.step += 1
        delta.node = activation.node
        delta.ended.append(seq)
        delta.steps.append(StepRow(self.step, seq, activation.node, ended_at, duration_ms, attempt, status))

    def _ended(self, delta: Draft, activation: Activation) -> Delta:
        if activation.node not in self.active:
            self._settle(delta)
        self._conclude(activation.node)
        return self._done(delta)

    def _conclude(self, last: str | None) -> None:
        """See whether this is the end, or a rest until somebody answers; `last` is the node that ended last."""
        if self.error is not None or self.status in UNOWNED:
            return
        if self.at_rest:
            if not self.closing:
                self.status = "paused"
        elif self.activations or not self.quiescent:
            if self._limit_reached():
                self.run_out(LimitReached("max_steps", self.graph.limits.max_steps or 0))
        elif self.joins.arrived(END):
            self.status = "completed"
        else:
            self.status = "failed"
            self._blame(last, ExitNotReached(last))

    def _limit_reached(self) -> bool:
        most = self.graph.limits.max_steps
        return most is not None and self.step - self.generation_step >= most

    def _done(self, draft: Draft) -> Delta:
        """The delta that `draft` has become: from here on it cannot change."""
        self._marks = draft.marks
        for message in draft.messages:
            self._messages += message.history
        if self.history is not None:
            self.history += [row for row in draft.messages if row.history]
            self.visited += [row.node for row in draft.steps]
        if draft.arrivals:
            self._arrivals.update(row.activation for row in draft.arrivals)
        if self._arrivals:
            for seq in draft.ended:
                del self._arrivals[seq]  # a Counter does not mind where there is none
        self._seqs += draft.seqs
        self.number += 1
        return Delta(
            trace=self.key,
            epoch=self.epoch,
            number=self.number,
            rev=self._rev + self.number,
            step=self.step,
            status=self.status,
            node=draft.node,
            marks=self._marks,
            counts=Counts(
                messages=self._messages,
                frontier=self.size,
                arrivals=self._arrivals.total() if self._arrivals else 0,
                variables=len(self.versions),
                changes=self._seqs,
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
            generation=self.generation,
            generation_step=self.generation_step,
            elapsed=self.elapsed,
            tokens_in=self.tokens[0],
            tokens_out=self.tokens[1],
            task=draft.task,
            consumed=tuple(draft.consumed),
            size=draft.size,
        )

    def _blame(self, node: str | None, error: Exception) -> None:
        self.error = self.error or ErrorInfo(type=type(error).__name__, message=str(error), node_id=node)

    # -- variables ---------------------------------------------------------------------------------------------

    def _set(self, delta: Draft, activation: Activation, sets: Sequence[tuple[str, bytes]]) -> dict[str, Version]:
        """The variables as `sets` leave them."""
        if not sets:
            return self.versions
        versions = dict(self.versions)
        for ordinal, (key, body) in enumerate(sets):
            try:
                full, item = reduced(key, self.graph.variables.get(key, "last"), versions.get(key), body)
            except ValueMismatch as error:
                raise NodeError(activation.node, str(error)) from error
            if full is not None:
                delta.set(versions, key, full)
            if item is not None:
                place = self.graph.place[activation.node]
                delta.append(
                    versions, key, item, (activation.depth, activation.path, place, activation.id.hex(), ordinal)
                )
        return versions


def _told(given: Captured, error: ErrorInfo) -> Captured:
    """What the node that handles a failure gets: what the failed one was given, and the error."""
    try:
        return Captured(encode_payload(attrs.evolve(given.payload, error=error)))
    except ValueNotStorable:  # together they are too large
        return Captured(encode_payload(MessagePayload(error=error)))
