"""A place for a worker."""

from __future__ import annotations

import time
from collections import Counter

import attrs

from tinyllm.supervisor.life import Life
from tinyllm.supervisor.restarts import Backoff
from tinyllm.supervisor.status import WorkerStatus


@attrs.define(eq=False)
class Slot:
    """Workers follow one another in it. `life`: the present one, or None while the next one waits for `restart_at`;
    `since` when that became so (both UTC seconds)."""

    number: int
    apart: bool
    backoff: Backoff = attrs.field(factory=Backoff)
    life: Life | None = None
    since: float = attrs.field(factory=time.time)
    restart_at: float | None = None
    restarts: int = 0
    last_death: str | None = None
    _past: Counter[str] = attrs.field(factory=Counter)

    def begin(self, life: Life) -> None:
        self.life, self.restart_at = life, None

    def end(self) -> None:
        """The worker is dead."""
        self._past, self.life, self.since = self.executed, None, time.time()

    def wait(self, seconds: float) -> None:
        """The next worker starts in so many seconds."""
        self.restart_at = time.time() + seconds

    @property
    def executed(self) -> Counter[str]:
        """What its workers executed, by how it ended."""
        total = Counter(self._past)
        if self.life is not None:
            beat = self.life.beat
            total.update(completed=beat.completed, failed=beat.failed, others=beat.others)
        return total

    def status(self) -> WorkerStatus:
        life = self.life
        return WorkerStatus(
            number=self.number,
            pid=None if life is None else life.pid,
            apart=self.apart,
            state="waiting" if life is None else life.state,
            since=self.since if life is None else life.since,
            restart_in=None if self.restart_at is None else max(0.0, self.restart_at - time.time()),
            running=0 if life is None else life.beat.running,
            ended=self.executed.total(),
            restarts=self.restarts,
            last_death=self.last_death,
        )
