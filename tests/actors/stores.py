"""Memory stores that note what they are asked, wait when they are told to, and fail when they are told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio

from tinyllm.storage.contract import Append, CheckpointStorage, Outcome, Owner, Prune, Write
from tinyllm.storage.memory import InMemoryCheckpointStorage


class Noting(InMemoryCheckpointStorage):
    """Notes each batch before it is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[Write]] = []
        self.gate: anyio.Event | None = None
        """Commits wait for it; cancelling does not stop them, as the contract says."""
        self.failure: Callable[[Sequence[Write]], Exception | None] = lambda writes: None
        self.retired: list[Owner] = []
        self.closed = False

    async def commit(self, writes: Sequence[Write]) -> list[Outcome]:
        self.batches.append(list(writes))
        error = self.failure(writes)
        with anyio.CancelScope(shield=True):
            if self.gate is not None:
                await self.gate.wait()
            else:
                await anyio.sleep(0)
        if error is not None:
            raise error
        return await super().commit(writes)

    @property
    def appended(self) -> list[Append]:
        return [write for batch in self.batches for write in batch if isinstance(write, Append)]

    @property
    def prunes(self) -> list[Prune]:
        return [write for batch in self.batches for write in batch if isinstance(write, Prune)]

    def retire(self, owner: Owner) -> None:
        self.retired.append(owner)
        super().retire(owner)

    async def close(self) -> None:
        self.closed = True
        await super().close()


async def finished(storage: CheckpointStorage, trace_id: str) -> list[str]:
    """The nodes of the durable steps, in order."""
    return [row.node for row in await storage.steps(trace_id, limit=100_000)]
