"""What a run tells of its trace: events to whoever observes, warnings to the log. It changes nothing of the trace."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from tinyllm.actors import events
from tinyllm.actors.activation import Activation
from tinyllm.actors.plan import Plan
from tinyllm.graph.messages import ErrorInfo
from tinyllm.storage.contract import Delta

logger = logging.getLogger(__name__)


class Telling:
    def __init__(self, plan: Plan, emit: Callable[[events.Event], None] | None) -> None:
        self._plan = plan
        self._trace_id = plan.trace_id
        self.observed = emit is not None
        self._emit = emit or _nobody
        self._asked: list[tuple[int, events.NodePaused]] = []
        """Questions that are not told yet, with their deltas: nobody can answer what the store does not know."""

    def planned(self, planned: Sequence[Activation]) -> None:
        if not self.observed:
            return
        for node, count in Counter(activation.node for activation in planned).items():
            self._emit(events.Planned(self._trace_id, node, count))

    def started(self, node: str) -> None:
        if self.observed:
            self._emit(events.NodeStarted(self._trace_id, node))

    def finished(self, node: str, duration_ms: float) -> None:
        """`node` finished, with the plan's newest step."""
        if self.observed:
            self._emit(events.NodeFinished(self._trace_id, node, self._plan.step, duration_ms))
        for key, written, size in self._plan.amplified:
            logger.warning(
                "trace %s: variable %r was written with %s bytes so far for a value of %s; give it a reducer (append, "
                "merge), split it, or keep it in a file and record the path",
                self._trace_id,
                key,
                f"{written:,}",
                f"{size:,}",
            )
        self._plan.amplified.clear()

    def failed(self, seq: int, node: str, error: ErrorInfo, now: float) -> None:
        """An attempt at activation `seq` failed, at `now` (UTC seconds), and the plan knows what follows."""
        if (again := self._plan.activations.get(seq)) is not None:
            wait = max(0.0, (again.due or now) - now)
            self._emit(events.NodeRetried(self._trace_id, node, error, again.attempts, wait))
        else:
            handler = None if seq in self._plan.stuck else self._plan.graph.nodes[node].on_error
            self._emit(events.NodeFailed(self._trace_id, node, error, handler))

    def asked(self, seq: int, node: str, number: int) -> None:
        """Activation `seq` asked something, in delta `number`."""
        if (question := self._plan.parked[seq].question(self._trace_id)) is not None:
            self._asked.append((number, events.NodePaused(self._trace_id, node, question)))

    def answered(self, delta: Delta) -> None:
        for change in delta.changed:
            activation = self._plan.activations[change.activation]
            self._emit(events.NodeAnswered(self._trace_id, activation.node, activation.asked[-1].name))

    def acknowledged(self, number: int) -> None:
        """All up to delta `number` is as durable as it will be."""
        while self._asked and self._asked[0][0] <= number:
            self._emit(self._asked.pop(0)[1])

    def committed(self, step: int, rev: int) -> None:
        if self.observed:
            self._emit(events.Committed(self._trace_id, step, rev))

    def stalled(self, error: Exception) -> None:
        self._emit(events.StoreStalled(self._trace_id, str(error)))

    def recovered(self) -> None:
        self._emit(events.StoreRecovered(self._trace_id))


def _nobody(_event: events.Event) -> None:
    """Nobody observes."""
