"""How supervisors are written, for people and for programs."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import attrs

from tinyllm.cli.options import command_line
from tinyllm.cli.text import duration, plural, shorten, table, utc
from tinyllm.supervisor.status import Status, WorkerStatus, to_json

if TYPE_CHECKING:
    from tinyllm.storage.contract import Backlog, Demand

_MARGIN = " " * 12
_REASON = 400
"""Characters of a reason or a cause that are looked at: it may be a traceback's last line."""


@attrs.frozen
class Silent:
    """A supervisor that lives, but of which no status could be got."""

    id: str
    reason: str


@attrs.frozen
class Standing:
    """What supervisors a store has. Where it has none, what waits there all the same, and the files of its graphs."""

    store: str
    supervisors: tuple[Status | Silent, ...]
    backlog: Backlog | None = None
    graphs: tuple[str, ...] = ()
    unserved: tuple[Demand, ...] | str = ()
    """Graphs of which traces wait that none of the supervisors serves; or why that is not known."""


def standing_object(standing: Standing) -> dict[str, Any]:
    """For programs: times are ISO 8601, spans are seconds."""
    return {
        "store": standing.store,
        "supervisors": [
            {"id": each.id, "error": each.reason} if isinstance(each, Silent) else _status_object(each)
            for each in standing.supervisors
        ],
        "backlog": None if standing.backlog is None else _backlog_object(attrs.asdict(standing.backlog)),
        "unserved": None if isinstance(standing.unserved, str) else [attrs.asdict(each) for each in standing.unserved],
    }


def _status_object(status: Status) -> dict[str, Any]:
    found = to_json(status)
    workers = [{**worker, "since": utc(worker["since"])} for worker in found["workers"]]
    return {
        **found,
        "since": utc(found["since"]),
        "workers": workers,
        "backlog": _backlog_object(found["backlog"]),
    }


def _backlog_object(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "oldest": None if found["oldest"] is None else utc(found["oldest"])}


def standing_lines(standing: Standing, now: float, columns: int) -> list[str]:
    """A block of lines for each supervisor, none wider than `columns`; but commands, to be pasted, are not broken.
    `now` in UTC seconds."""
    if not standing.supervisors:
        lines = _wrapped(f"no supervisor serves {standing.store}", "", columns)
        return lines + (_backlog_lines(standing.backlog, None, now, columns) if standing.backlog is not None else [])
    blocks = [
        _wrapped(f"supervisor {each.id} did not say how it is: {shorten(each.reason, _REASON)}", "", columns)
        if isinstance(each, Silent)
        else _block(each, now, columns)
        for each in standing.supervisors
    ]
    if standing.unserved:
        blocks.append(_unserved(standing.unserved, columns))
    return [line for block in blocks for line in ["", *block]][1:]


def _unserved(unserved: tuple[Demand, ...] | str, columns: int) -> list[str]:
    if isinstance(unserved, str):
        return _line("unserved", f"not known: {shorten(unserved, _REASON)}", columns)
    lines = []
    for each in unserved:
        lines += _line("unserved", f"{each.waiting:,} of {each.graph_id}", columns)
        if each.graph_path is not None:
            lines.append(f"    {command_line('supervise', each.graph_path)}")
    return lines


def _block(status: Status, now: float, columns: int) -> list[str]:
    head = f"supervisor {status.id}: {status.state}, started {duration(max(0, now - status.since))} ago"
    lines = _wrapped(head, "", columns)
    lines += _line("process", f"{status.pid} on {status.host}, tinyllm {status.version}", columns)
    lines += _line("graphs", ", ".join(status.graphs), columns)
    lines += _backlog_lines(status.backlog, status.lag, now, columns)
    ended = f"{status.completed:,} completed, {status.failed:,} failed; {status.per_minute:,} in the last minute"
    lines += _line("ended", ended, columns)
    deaths = "; ".join(f"{count:,} {shorten(cause, _REASON)}" for cause, count in status.deaths.items())
    lines += _line("restarts", f"{status.restarts:,}", columns)
    lines += _line("deaths", deaths or "none", columns)
    if status.refused:
        lines += _line("refused", f"{plural(len(status.refused), 'trace')} that cannot be executed:", columns)
        for trace, reason in status.refused.items():
            lines += _wrapped(f"{trace}: {shorten(reason, _REASON)}", "    ", columns)
    if status.workers:
        lines += [f"  {line}" for line in _workers(status.workers, now, columns - 2)]
    return lines


def _workers(workers: tuple[WorkerStatus, ...], now: float, columns: int) -> list[str]:
    heads = ("worker", "pid", "state", "for", "running", "ended", "restarts")
    rows = [
        (
            f"{worker.number}",
            "-" if worker.pid is None else f"{worker.pid}",
            _state(worker),
            duration(max(0, now - worker.since)),
            f"{worker.running:,}",
            f"{worker.ended:,}",
            f"{worker.restarts:,}" + ("" if worker.last_death is None else f": {shorten(worker.last_death, _REASON)}"),
        )
        for worker in workers
    ]
    return table(heads, rows, right=("worker", "pid", "running", "ended"), shrink="restarts", columns=columns)


def _state(worker: WorkerStatus) -> str:
    if worker.state == "waiting":
        return "again" if worker.restart_in is None else f"again in {duration(worker.restart_in)}"
    return f"{worker.state}, apart" if worker.apart else worker.state


def _backlog_lines(backlog: Backlog, lag: float | None, now: float, columns: int) -> list[str]:
    counts = (
        f"{backlog.waiting:,} waiting, {backlog.later:,} later, {backlog.running:,} running, "
        f"{backlog.apart:,} apart, {backlog.quarantined:,} quarantined"
    )
    if lag is None and backlog.oldest is not None:
        lag = max(0.0, now - backlog.oldest)
    waited = "nothing waits" if lag is None else f"the oldest has waited {duration(lag)}"
    lines = [*_line("traces", counts, columns), *_line("lag", waited, columns)]
    return lines + ([f"    {command_line('list', '--status', 'quarantined')}"] if backlog.quarantined else [])


def _line(name: str, text: str, columns: int) -> list[str]:
    return _wrapped(text, f"  {name}".ljust(len(_MARGIN)), columns)


def _wrapped(text: str, before: str, columns: int) -> list[str]:
    """`text` behind `before`; a word that is too long for a line is broken."""
    margin = _MARGIN if before else "  "
    return textwrap.wrap(
        text, max(columns, 40), initial_indent=before, subsequent_indent=margin, break_on_hyphens=False
    ) or [before.rstrip()]
