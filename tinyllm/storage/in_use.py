"""What to say of a checkpoint that cannot be dropped."""

from __future__ import annotations

from tinyllm.errors import CheckpointInUse


def in_use(trace_id: str, rev: int, *, newest: bool, first: bool, forks: int) -> CheckpointInUse | None:
    """Why the checkpoint of `rev` stays, and what to do; None if it need not."""
    if newest:
        reason = "it is the newest, from which the trace goes on; drop it when there is a newer one"
    elif first:
        reason = "it is the first, which a trace keeps as long as it is there"
    elif forks:
        reason = "traces were forked from it; delete those before it"
    else:
        return None
    return CheckpointInUse(trace_id, rev, reason)
