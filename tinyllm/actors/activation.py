"""A live activation, as a plan holds it: what it reads, and what has become of it so far."""

from __future__ import annotations

import attrs

from tinyllm.graph.payload import Captured
from tinyllm.graph.questions import Asked, Question, answered, encode_asked, waiting
from tinyllm.graph.records import record
from tinyllm.storage.contract import ActivationState, StateChange


@record(eq=False)
class Activation:
    seq: int
    id: bytes
    """The causal id."""
    node: str
    sources: tuple[tuple[int, str], ...]
    """(message seq, source node) of what it reads; several for a join."""
    input: Captured
    path: tuple[int, ...]
    depth: int
    born: int = 0
    """The number of the delta that planned it; 0 when that is long durable."""
    attempts: int = 0
    tries: int = 0
    """Attempts that count against the present budget."""
    due: float | None = None
    """When its next attempt may start, UTC seconds."""
    progress: bytes | None = None
    asked: tuple[Asked, ...] = ()

    def changed(self, state: ActivationState, error: bytes | None = None) -> StateChange:
        """The row that records what it has become."""
        asked = encode_asked(self.asked) if self.asked else None
        return StateChange(self.seq, state, self.attempts, error, self.tries, self.due, self.progress, asked)

    def failed_once_more(self) -> Activation:
        return attrs.evolve(self, attempts=self.attempts + 1, tries=self.tries + 1, due=None)

    def asking(self, asked: Asked) -> Activation:
        return attrs.evolve(self, asked=(*self.asked, asked))

    def answered(self, answer: bytes) -> Activation:
        return attrs.evolve(self, asked=answered(self.asked, answer))

    def question(self, trace_id: str) -> Question | None:
        return waiting(trace_id, self.node, self.id, self.asked)
