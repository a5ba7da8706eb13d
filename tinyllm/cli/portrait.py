"""What `tinyllm show` says of a trace."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from textwrap import indent
from typing import Any

import attrs

from tinyllm.cli.objects import question_object, trace_object
from tinyllm.cli.questions import question_lines
from tinyllm.cli.report import remedy, users_line
from tinyllm.cli.text import ago, duration, local_time, plural, shorten, table, utc
from tinyllm.core.checks import releasable
from tinyllm.core.deaths import Death, decode_deaths
from tinyllm.core.outside import labels, open_questions
from tinyllm.core.store import find_trace
from tinyllm.graph.ids import activation_id
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.payload import decode_error, decode_payload
from tinyllm.graph.questions import Question
from tinyllm.graph.values import restore
from tinyllm.graph.variables import Version
from tinyllm.storage.contract import (
    TERMINAL,
    CheckpointRecord,
    CheckpointStorage,
    Snapshot,
    StepRow,
    TraceRecord,
)
from tinyllm.storage.owners import is_owned
from tinyllm.storage.records import BY_HAND


@attrs.frozen
class Work:
    """One node's part of a trace: activations that ended and their mean time, and those in the frontier by state."""

    done: int
    mean_ms: float | None
    frontier: Mapping[str, int]


@attrs.frozen
class Portrait:
    """A trace as of one of its checkpoints. `task` and `variables` are captured bytes, as they are stored."""

    snapshot: Snapshot
    newest: bool
    task: bytes | None
    nodes: Mapping[str, Work]
    variables: Mapping[str, bytes]
    error: ErrorInfo | None
    labels: Sequence[CheckpointRecord]
    """The checkpoints that have a name, the newest first."""

    @property
    def record(self) -> TraceRecord:
        return self.snapshot.record

    @property
    def questions(self) -> tuple[Question, ...]:
        """Those that wait for an answer now."""
        return open_questions(self.snapshot) if self.newest and self.record.status not in TERMINAL else ()


async def read_portrait(storage: CheckpointStorage, reference: str, step: int | None) -> Portrait:
    """The newest checkpoint of a trace, or the one of `step`.

    :raises CheckpointNotFound: the one of `step` is not kept.
    """
    record = await find_trace(storage, reference)
    rev = None if step is None else (await storage.find_checkpoint(record.trace_id, step=step)).rev
    snapshot = await storage.load(record.trace_id, rev)
    first = await storage.messages(record.trace_id, rev=rev, limit=1)
    times: dict[str, list[float]] = {}
    async for row in _steps(storage, record.trace_id, snapshot.step):
        times.setdefault(row.node, []).append(row.duration_ms)
    frontier: dict[str, Counter[str]] = {}
    for activation in snapshot.frontier:
        if not activation.node.startswith("$"):
            frontier.setdefault(activation.node, Counter())[activation.state] += 1
    nodes = {
        node: Work(len(ms), sum(ms) / len(ms) if ms else None, frontier.get(node, {}))
        for node, ms in {**times, **{node: times.get(node, []) for node in frontier}}.items()
    }
    return Portrait(
        snapshot,
        newest=snapshot.rev == snapshot.record.rev,
        task=first[0].body if first and first[0].node == "" else None,
        nodes=nodes,
        variables={key: Version.stored(rows).captured for key, rows in sorted(snapshot.variables.items())},
        error=decode_error(snapshot.record.error) if snapshot.record.error is not None else None,
        labels=await labels(storage, record.trace_id),
    )


async def _steps(storage: CheckpointStorage, trace_id: str, last: int) -> AsyncIterator[StepRow]:
    after = 0
    while page := await storage.steps(trace_id, after=after, limit=10_000):
        for row in page:
            if row.step > last:
                return
            yield row
        after = page[-1].step


def as_lines(portrait: Portrait, now: float, columns: int, command: Callable[..., str]) -> list[str]:
    """For a person. `command` writes a command line that can be pasted."""
    record, snapshot = portrait.record, portrait.snapshot
    place = f"step {snapshot.step:,}, rev {snapshot.rev:,}"
    status = f"{record.status} at {place}, updated {ago(record.updated_at, now)}"
    if not portrait.newest:
        status = f"as of {place}; it is now {record.status} at step {record.step:,}"
    facts = [("trace", record.trace_id), ("graph", f"{record.graph_id} {record.graph_version}"), ("status", status)]
    if record.graph_path:
        facts.insert(2, ("file", record.graph_path))
    if waits := _waits(record):
        facts.append(("waits", ", ".join(waits)))
    if portrait.task is not None:
        value = decode_payload(portrait.task).value
        text = value if isinstance(value, str) else portrait.task.decode()
        facts.append(("task", shorten(text, columns - 8) or "(none)"))
    if record.parent is not None:
        facts.append(("forked", f"from {record.parent} at step {record.parent_step}"))
    if snapshot.generation > 1:
        facts.append(("generation", f"{snapshot.generation}, since step {snapshot.generation_step:,}"))
    if snapshot.elapsed:
        facts.append(("time", f"{duration(snapshot.elapsed)} of execution"))
    if snapshot.tokens_in or snapshot.tokens_out:
        facts.append(("tokens", f"{snapshot.tokens_in:,} in, {snapshot.tokens_out:,} out"))
    if portrait.labels:
        facts.append(("labels", ", ".join(f"{each.label} (step {each.step:,})" for each in portrait.labels)))
    broad = max(len(name) for name, _ in facts)
    lines = [f"{name:<{broad}}  {text}" for name, text in facts]

    if portrait.nodes:
        due = _retries(snapshot, now)
        rows = [
            (
                node,
                f"{work.done:,}",
                duration(work.mean_ms / 1000) if work.mean_ms is not None else "",
                _next(work, due.get(node, []), now),
            )
            for node, work in portrait.nodes.items()
        ]
        heads = ("node", "done", "mean time", "next")
        lines += ["", *table(heads, rows, right=("done", "mean time"), shrink="node", columns=columns)]
    if portrait.variables:
        lines += ["", "variables"]
        lines += [_variable_line(key, body, columns) for key, body in portrait.variables.items()]
    if portrait.error is not None and portrait.newest:
        where = f" in node {portrait.error.node_id!r}" if portrait.error.node_id else ""
        lines += ["", f"error{where}", indent(f"{portrait.error.type}: {portrait.error.message}", "  ")]
        if portrait.error.traceback and (line := users_line(portrait.error.traceback)):
            lines.append(f"  at {line}")
    if portrait.newest and (deaths := decode_deaths(record.deaths)):
        lines += ["", f"processes that died while they executed it ({len(deaths):,})"]
        lines += ["  " + shorten(_death_line(death), columns - 2) for death in deaths]
    return [*lines, "", *_how_to_go_on(portrait, command)]


def _waits(record: TraceRecord) -> list[str]:
    """How a trace waits to be claimed; empty where it does not, or as every other."""
    if is_owned(record) or record.status not in ("queued", "interrupted"):
        return []
    found = [f"with priority {record.priority}"] if record.priority or record.status == "queued" else []
    if record.not_before is not None:
        found.append(f"not before {local_time(record.not_before)}")
    return [*found, *(["to be executed apart"] if record.apart else [])]


def _death_line(death: Death) -> str:
    others = f", beside {plural(death.beside, 'other trace')}" if death.beside else ""
    return f"{local_time(death.at)}: {death.cause}; process {death.pid}, at step {death.step:,}{others}"


def _retries(snapshot: Snapshot, now: float) -> dict[str, list[float]]:
    """By node, when the attempts may start that are not to start yet: UTC seconds."""
    found: dict[str, list[float]] = {}
    for row in snapshot.frontier:
        if row.due is not None and row.due > now:
            found.setdefault(row.node, []).append(row.due)
    return found


def _next(work: Work, due: Sequence[float], now: float) -> str:
    words = {"planned": "to run", "buffered": "collecting"}
    counts = [(words.get(state, state), count) for state, count in work.frontier.items()]
    if due:
        counts = [(word, count - len(due) if word == "to run" else count) for word, count in counts]
        counts.append((f"to retry in {duration(min(due) - now)}", len(due)))
    return ", ".join(f"{count:,} {word}" for word, count in counts if count)


def _variable_line(key: str, body: bytes, columns: int) -> str:
    text = body[: 4 * columns].decode(errors="ignore")
    count = f"{plural(len(items), 'item')} " if isinstance(items := restore(body), list) and len(text) > columns else ""
    return "  " + shorten(f"{key} = {count}{text}", columns - 2)


def _how_to_go_on(portrait: Portrait, command: Callable[..., str]) -> list[str]:
    record = portrait.record
    if not portrait.newest:
        fork = command("fork", record.trace_id, "--at", str(portrait.snapshot.step))
        return ["start a new trace from here:", f"  {fork}"]
    resume = f"  {command('resume', record.trace_id)}"
    live = is_owned(record)
    asked = list(question_lines(portrait.questions, live=live, command=command))
    match record.status:
        case _ if record.fingerprint == BY_HAND:
            kept = command("checkpoints", record.trace_id)
            return ["a program saved it by hand: there is nothing to run; what it kept is in:", f"  {kept}"]
        case "completed":
            return ["print its result again:", resume]
        case "failed":
            advice, commands = remedy(
                record.trace_id, portrait.error, resumable=bool(portrait.snapshot.frontier), command=command
            )
            return [*advice, *(f"  {line}" for line in commands)]
        case "quarantined" if releasable(record):
            force = command("resume", record.trace_id, "--force")
            return ["it is not executed any more; once the cause is mended, release it:", f"  {force}"]
        case "cancelled" | "quarantined":
            return ["it is not resumed; a fork can start from:", f"  {command('checkpoints', record.trace_id)}"]
        case "running" | "queued" if record.owner is not None and live:
            owner = record.owner
            by = f"it is being executed by process {owner.pid} on {owner.host} since {local_time(owner.since)}"
            return [*asked, *([""] if asked else []), by]
        case "queued":
            return ["it waits for a supervisor; execute it here with:", resume]
        case _:
            return asked or ["continue with:", resume]


def as_object(portrait: Portrait) -> dict[str, Any]:
    """All of it by the glossary's names, for JSON; values are written as the store writes them."""
    snapshot = portrait.snapshot
    return {
        **trace_object(portrait.record),
        "checkpoint": {"rev": snapshot.rev, "step": snapshot.step, "status": snapshot.status},
        "generation": snapshot.generation,
        "elapsed_ms": snapshot.elapsed * 1000,
        "total_tokens_in": snapshot.tokens_in,
        "total_tokens_out": snapshot.tokens_out,
        "labels": {each.id: each.label for each in portrait.labels},
        "questions": [question_object(question) for question in portrait.questions],
        "task": None if portrait.task is None else json.loads(portrait.task),
        "nodes": {node: attrs.asdict(work) for node, work in portrait.nodes.items()},
        "frontier": [
            {
                "node_id": row.node,
                "activation_id": activation_id(portrait.record.trace_id, row.id).hex() if row.id else None,
                "state": row.state,
                "attempts": row.attempts,
                "due": None if row.due is None else utc(row.due),
                "error": attrs.asdict(decode_error(row.error)) if row.error is not None else None,
            }
            for row in snapshot.frontier
        ],
        "variables": {key: json.loads(body) for key, body in portrait.variables.items()},
        "error": attrs.asdict(portrait.error) if portrait.error is not None else None,
    }
