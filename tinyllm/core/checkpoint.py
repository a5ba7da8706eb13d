"""`CheckpointManager`: for programs that save, list and restore checkpoints themselves."""

from __future__ import annotations

import os
from copy import deepcopy
from datetime import UTC, datetime
from time import monotonic

from tinyllm.actors.plan import Plan
from tinyllm.core.config import CheckpointConfig
from tinyllm.core.store import check_name, check_trace_id, open_storage
from tinyllm.errors import ConfigError, StorageNotOpen
from tinyllm.graph.context import ExecutionContext
from tinyllm.graph.pages import Editable
from tinyllm.graph.payload import decode_messages
from tinyllm.storage.by_hand import forget, save
from tinyllm.storage.contract import CheckpointStorage
from tinyllm.storage.records import CheckpointRecord

__all__ = ["CheckpointConfig", "CheckpointManager", "context_of"]


class CheckpointManager:
    """Saves and restores contexts in `storage`. Every call returns when what it did is durable.

    :param storage: a storage, which `close()` leaves open; or the path of a SQLite store, which `initialize()` opens
        and `close()` closes.
    :raises ConfigError: one of the two is something else.
    """

    def __init__(
        self, storage: CheckpointStorage | str | os.PathLike[str], config: CheckpointConfig | None = None
    ) -> None:
        if not isinstance(storage, CheckpointStorage | str | os.PathLike):
            raise ConfigError("storage", storage, "a storage, or the path of one")
        if not isinstance(config, CheckpointConfig | None):
            raise ConfigError("config", config, "a CheckpointConfig")
        self.config = config or CheckpointConfig()
        self._given = storage
        self._opened: CheckpointStorage | None = None
        self._last = monotonic()

    def __repr__(self) -> str:
        where = self._given.name if isinstance(self._given, CheckpointStorage) else self._given
        return f"<CheckpointManager of {where}>"

    async def initialize(self) -> None:
        """Open the store. A second call does nothing."""
        if isinstance(self._given, CheckpointStorage):
            await self._given.initialize()
            return
        if self._opened is None:
            self._opened = open_storage(self._given)
        await self._opened.initialize()

    async def close(self) -> None:
        """Close the store that `initialize()` opened. A second call does nothing."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()

    @property
    def storage(self) -> CheckpointStorage:
        """The store.

        :raises StorageNotOpen: it was given as a path, and `initialize()` was not called.
        """
        if isinstance(self._given, CheckpointStorage):
            return self._given
        if self._opened is None:
            raise StorageNotOpen(os.fspath(self._given), "it is not open; call initialize() first")
        return self._opened

    # -- saving ------------------------------------------------------------------------------------------------

    def should_checkpoint(self, force: bool = False) -> bool:
        """Whether a checkpoint is due: after each node if that is configured, else when the interval is over since this
        manager last saved one; forced, always."""
        config = self.config
        if force or config.checkpoint_after_each_node:
            return True
        return bool(config.checkpoint_interval_ms) and (
            monotonic() - self._last >= config.checkpoint_interval_ms / 1000
        )

    async def save_checkpoint(
        self, context: ExecutionContext, current_node_id: str, force: bool = False
    ) -> CheckpointRecord | None:
        """Save `context` as it is at `current_node_id`, which may be any 1 to 128 printable characters. None: none was
        due.

        The context of a trace that an executor executed, if nothing in it was changed, is in the store already: its
        checkpoint is labelled `current_node_id`, and with a label it is kept. What was changed in one is added to its
        trace, as a checkpoint with that label. A context of the program's own is stored by what is different from the
        newest checkpoint of its trace, of which then `max_checkpoints_per_trace` are kept, the first among them.

        :raises TraceMismatch: the trace is another graph's, or has messages or visited nodes that the context does not
            begin with.
        :raises TraceOwned: a live process executes the trace, and the context is not one of its checkpoints.
        :raises ValueNotStorable: naming the path to the fault: `context.variables['x'].when`.
        :raises ConfigError: the context's `trace_id` can be none, or its `graph_id` or `current_node_id` is none.
        """
        if not self.should_checkpoint(force):
            return None
        check_trace_id(context.trace_id)
        check_name("graph_id", context.graph_id)
        check_name("current_node_id", current_node_id)
        config = self.config
        saved = await save(
            self.storage,
            context,
            current_node_id,
            keep=config.max_checkpoints_per_trace,
            redaction=config.redaction,
        )
        self._last = monotonic()
        return saved

    # -- finding -----------------------------------------------------------------------------------------------

    async def load_checkpoint(self, graph_id: str, trace_id: str) -> CheckpointRecord | None:
        """The newest checkpoint of a trace; None where there is none."""
        return await self.storage.get_latest_checkpoint(graph_id, trace_id)

    async def get_checkpoint(self, checkpoint_id: str) -> CheckpointRecord | None:
        """The checkpoint of that id, or None."""
        return await self.storage.get(checkpoint_id)

    async def list_checkpoints(self, graph_id: str, trace_id: str | None = None) -> list[CheckpointRecord]:
        """All kept checkpoints of a trace, or of all traces of a graph, the newest first. Reads no message."""
        return await self.storage.list_checkpoints(graph_id, trace_id)

    async def restore_context(self, checkpoint: CheckpointRecord, context: ExecutionContext) -> None:
        """Make `context` what it was at `checkpoint`; its `trace_id` and `graph_id` stay.

        Messages and visited nodes are read when they are looked at, while the store is open; changing them makes lists
        of them first.
        """
        _restore(checkpoint, context)

    # -- taking away -------------------------------------------------------------------------------------------

    async def delete_checkpoint(self, checkpoint_id: str) -> bool:
        """Delete one checkpoint; returns whether it was there.

        :raises CheckpointInUse, TraceOwned: as `CheckpointStorage.delete()`.
        """
        return await self.storage.delete(checkpoint_id)

    async def clear_checkpoints(self, graph_id: str, trace_id: str) -> int:
        """Delete all checkpoints of a trace, and so the trace; returns how many there were.

        :raises TraceOwned: a live process executes it.
        """
        record = await self.storage.trace(trace_id)
        if record is None or record.graph_id != graph_id:
            return 0
        count = len(await self.storage.list_checkpoints(graph_id, trace_id))
        await forget(self.storage, record)
        return count


def context_of(record: CheckpointRecord) -> ExecutionContext:
    """The context of the trace at the checkpoint `record`. Variables are read at once (a short read that blocks),
    messages and visited nodes when they are looked at."""
    context = ExecutionContext(trace_id=record.trace_id, graph_id=record.graph_id)
    _restore(record, context)
    return context


def last_context(plan: Plan, storage: CheckpointStorage | None) -> ExecutionContext:
    """The context of the trace that `plan` belongs to, which `storage` has; without one, the plan itself tells."""
    trace_id, graph_id = plan.trace_id, plan.graph.id
    if storage is not None:
        return context_of(storage.read_now(lambda store: store.checkpoints(trace_id, 1, 0))[0])
    window, began = plan.graph.history, datetime.fromtimestamp(plan.began, UTC)
    said = (plan.history or [])[-window:] if window else plan.history or []
    return ExecutionContext(
        trace_id=trace_id,
        graph_id=graph_id,
        current_node=plan.visited[-1] if plan.visited else None,
        visited_nodes=list(plan.visited),
        variables={key: version.fresh().value for key, version in plan.versions.items()},
        messages=decode_messages(said, trace_id, began),
        start_time=began,
        total_tokens_in=plan.tokens[0],
        total_tokens_out=plan.tokens[1],
    )


def _restore(record: CheckpointRecord, context: ExecutionContext) -> None:
    state = record.state
    context.variables = deepcopy(state.get("variables", {}))
    context.current_node = record.node_id
    context.visited_nodes = Editable(state.get("visited_nodes", ()))
    context.messages = Editable(record.messages)
    context.step_count = state.get("step_count", record.step)
    context.total_tokens_in = state.get("total_tokens_in", 0)
    context.total_tokens_out = state.get("total_tokens_out", 0)
    if "start_time" in state:
        started = datetime.fromisoformat(state["start_time"])
        context.start_time = started if started.tzinfo else started.replace(tzinfo=UTC)
    context.rev = record.rev if context.trace_id == record.trace_id else None
