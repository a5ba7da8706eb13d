"""What a dead owner leaves: its traces are taken from it, once, with what is known of its death."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Collection

from tinyllm.core.deaths import Death, decode_deaths, encode_deaths
from tinyllm.errors import OwnershipLost
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.payload import encode_error
from tinyllm.storage.contract import CheckpointStorage, Disown, Owned
from tinyllm.supervisor.deaths import Cause, blame, remember, verdict

logger = logging.getLogger(__name__)


async def disown(
    storage: CheckpointStorage, owners: Collection[str], graphs: Collection[str], cause: Cause | None, pid: int
) -> int:
    """Take the traces of `graphs` from owners that died together, in the process `pid`. `cause`: what they died of;
    None where that is no trace's fault. How many traces ran there.

    :raises StorageError: as `CheckpointStorage.commit`; then nothing was taken, and it can be tried again.
    """
    held = [(owner, each) for owner in owners for each in await storage.held(owner) if each.graph_id in graphs]
    ran = sum(record.status != "queued" for _, record in held)  # one that is still queued had been claimed just now
    writes = []
    for owner, record in held:
        deaths = decode_deaths(record.deaths)
        if cause is not None and record.status != "queued":
            deaths = remember(deaths, _death(record, cause, pid, ran - 1))
        writes.append(_disown(owner, record, deaths))
    if not writes:
        return 0
    for write, outcome in zip(writes, await storage.commit(writes), strict=True):
        if isinstance(outcome, OwnershipLost):  # somebody took it over, or was quicker here
            continue
        if isinstance(outcome, Exception):
            raise outcome
        if write.error is not None:
            why = shlex.join(["tinyllm", "show", write.trace_id, "--storage", storage.name])
            logger.error("trace %r is quarantined; why, is told by: %s", write.trace_id, why)
        elif write.apart and cause is not None:
            logger.warning("trace %r may have killed worker %d: it is executed apart", write.trace_id, pid)
    return ran


def _death(record: Owned, cause: Cause, pid: int, beside: int) -> Death:
    return Death(
        at=time.time(),
        cause=cause.text,
        within=cause.within,
        pid=pid,
        beside=beside,
        step=record.step,
    )


def _disown(owner: str, record: Owned, deaths: tuple[Death, ...]) -> Disown:
    guilty = verdict(deaths)
    return Disown(
        record.trace,
        record.trace_id,
        record.epoch,
        owner,
        deaths=encode_deaths(deaths) if deaths else None,
        apart=blame(deaths) > 0,
        error=None if guilty is None else encode_error(ErrorInfo(type="WorkerDied", message=guilty)),
    )
