"""From a damaged trace to one that goes on: how far back its newest good checkpoint is, and what it costs."""

from __future__ import annotations

from collections import Counter

import attrs

from tinyllm.actors.events import FellBack
from tinyllm.core.fork import fork_delta
from tinyllm.errors import CheckpointDamaged, RerunRefused
from tinyllm.graph.definition import END, Graph, after
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.payload import encode_error
from tinyllm.storage.contract import CheckpointStorage, FallBack, Intact, Snapshot

_PAGE = 1000


@attrs.frozen
class WayBack:
    """`good` is where the trace goes on. `again`: what had ended since, by node; None if that cannot be read either.
    `begun`: what was planned since, and may have begun."""

    good: Snapshot
    damage: CheckpointDamaged
    again: Counter[str] | None
    begun: Counter[str]
    cancelled: bool
    paused: bool
    """Somebody had told it to be."""

    @classmethod
    async def of(cls, storage: CheckpointStorage, intact: Intact, damage: CheckpointDamaged) -> WayBack:
        good = intact.snapshot
        left = await storage.commands(trace=good.record.trace)
        again: Counter[str] | None = Counter()
        step = good.step
        try:
            while again is not None and (rows := await storage.steps(good.record.trace_id, after=step, limit=_PAGE)):
                again.update(row.node for row in rows)
                step = rows[-1].step
        except CheckpointDamaged:
            again = None
        if step != good.record.step:
            again = None
        told = {command.kind for command in left}
        return cls(good, damage, again, Counter(map(after, intact.planned)), "cancel" in told, "pause" in told)

    def refuse_effects(self, graph: Graph) -> None:
        """:raises RerunRefused: something with effects may have happened since, and would happen again."""
        if self.again is None and any(map(graph.has_effects, graph.nodes.values())):
            raise RerunRefused(self.damage.trace_id, self.damage.step, self.damage.what, self.good.step, None)
        # One that is no more in the graph is not known to have had none.
        effects = {
            node: count
            for node, count in ((self.again or Counter()) + self.begun).items()
            if node != END and (node not in graph.nodes or graph.has_effects(graph.nodes[node]))
        }
        if effects:
            raise RerunRefused(self.damage.trace_id, self.damage.step, self.damage.what, self.good.step, effects)

    @property
    def kept_as(self) -> str:
        """What the damaged trace is called from now on."""
        record = self.good.record
        return f"{record.trace_id[:100]}.damaged-{record.trace}"

    def write(self, owner: str | None) -> FallBack:
        record = self.good.record
        first = fork_delta(self.good, {})
        return FallBack(
            trace=record.trace,
            trace_id=record.trace_id,
            epoch=record.epoch,
            reached=record.rev,
            rev=self.good.rev,
            kept_as=self.kept_as,
            error=encode_error(ErrorInfo(type="CheckpointDamaged", message=self.damage.what)),
            owner=owner,
            first=attrs.evolve(first, status="cancelled") if self.cancelled else first,
        )

    @property
    def told(self) -> FellBack:
        return FellBack(
            self.good.record.trace_id,
            self.damage.what,
            self.good.step,
            self.good.record.step,
            None if self.again is None else dict(self.again),
            self.kept_as,
        )
