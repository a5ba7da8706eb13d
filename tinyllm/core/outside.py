"""What others may do with a trace while it runs, or lies: pause, cancel, answer, name a checkpoint, delete.

A command is left in the store, durably; only the owner of the trace carries it out, in the delta that consumes it.
Where no live process owns the trace, whoever left the command becomes the owner for that one delta.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anyio
import attrs

from tinyllm.core.config import CheckpointConfig
from tinyllm.core.store import check_name, shown
from tinyllm.core.wake import wake
from tinyllm.errors import (
    AlreadyAnswered,
    CheckpointDamaged,
    CheckpointNotFound,
    OwnershipLost,
    QuestionNotOpen,
    TraceEnded,
)
from tinyllm.graph.ids import activation_id
from tinyllm.graph.questions import Question, answered, check_answer, decode_asked, encode_asked, waiting
from tinyllm.graph.redact import Redaction, Rule
from tinyllm.storage.by_hand import forget
from tinyllm.storage.contract import (
    TERMINAL,
    Acquire,
    Acquired,
    ActivationRow,
    Append,
    CheckpointRecord,
    CheckpointStorage,
    Command,
    CommandKind,
    Delta,
    Label,
    Leave,
    Outcome,
    Release,
    Snapshot,
    StateChange,
    Status,
    TraceRecord,
    Write,
)
from tinyllm.storage.owners import is_owned


async def cancel(storage: CheckpointStorage, trace_id: str) -> Status:
    """Have a trace end as `cancelled`: what runs is cancelled, nothing more starts, and it is never resumed.

    Returns its status now: a live owner elsewhere may take a second to notice.

    :raises TraceNotFound: no such trace.
    :raises TraceEnded: it has ended already.
    """
    return await _command(storage, trace_id, "cancel")


async def pause(storage: CheckpointStorage, trace_id: str) -> Status:
    """Have a trace pause: what runs may end, nothing more starts; a resume goes on. As `cancel()` otherwise."""
    return await _command(storage, trace_id, "pause")


async def answer(
    storage: CheckpointStorage,
    trace_id: str,
    value: Any,
    question: str | None = None,
    redact: Sequence[Rule] = (),
) -> Question:
    """Answer a question, once and for all; returns the one that was answered.

    `question` is its `id` or its `name`; it may be left out where only one is open. A trace without a live owner is
    ready to be resumed then, or claimed by a supervisor. `redact`: as the setting of `CheckpointConfig`.

    :raises QuestionNotOpen: no such question waits, or several do.
    :raises AnswerRefused: the value does not fit the question's schema.
    :raises AlreadyAnswered: somebody else was first.
    :raises TraceNotFound, TraceEnded: as `cancel()`.
    """
    redaction = CheckpointConfig(redact=redact).redaction
    (asked,) = await leave_answers(storage, trace_id, [(question, value)], redaction)
    await carry_out(storage, trace_id)
    wake(storage)
    return asked


async def leave_answers(
    storage: CheckpointStorage,
    trace_id: str,
    answers: Iterable[tuple[str | None, Any]],
    redaction: Redaction | None = None,
) -> list[Question]:
    """The same for several, without carrying it out: for whoever resumes the trace next. None is left unless all fit
    open questions; where somebody else was first with one of them, the others are left all the same."""
    snapshot = await storage.load(trace_id)
    answers = list(answers)
    named = _named(open_questions(snapshot))
    if any(name not in named for name, _ in answers):
        await _refuse_answered(storage, snapshot.record, [name for name, _ in answers if name not in named])
    _refuse_ended(snapshot.record)
    chosen = [(_chosen(trace_id, named, name), value) for name, value in answers]
    trace = snapshot.record.trace
    causal = {activation_id(trace_id, row.id).hex(): row.id for row in snapshot.frontier}
    writes = [
        Leave(trace, trace_id, "answer", causal[asked.activation_id], asked.name, body)
        for asked, body in ((asked, check_answer(asked, value, redaction)) for asked, value in chosen)
    ]
    for outcome in await storage.commit(writes):
        if isinstance(outcome, Exception):
            raise outcome
    return [asked for asked, _ in chosen]


async def find_question(storage: CheckpointStorage, trace_id: str, name: str | None = None) -> Question:
    """The open question of that `id` or `name`, or the only one.

    :raises QuestionNotOpen, TraceNotFound, TraceEnded: as `answer()`.
    """
    snapshot = await storage.load(trace_id)
    _refuse_ended(snapshot.record)
    return _chosen(trace_id, _named(open_questions(snapshot)), name)


async def questions(storage: CheckpointStorage, trace_id: str) -> tuple[Question, ...]:
    """The questions of a trace that wait for an answer.

    :raises TraceNotFound: no such trace.
    """
    return open_questions(await storage.load(trace_id))


async def tag(storage: CheckpointStorage, trace_id: str, label: str, *, step: int | None = None) -> CheckpointRecord:
    """Name the newest checkpoint of a trace, or of one of its steps: it is not pruned, and is listed with its name.
    Returns the checkpoint.

    :raises TraceNotFound, CheckpointNotFound: it is not there, or not any more.
    :raises ConfigError: `label` is not 1 to 128 printable characters.
    """
    check_name("label", label)
    return await _label(storage, await storage.find_checkpoint(trace_id, step=step), label)


async def untag(
    storage: CheckpointStorage, trace_id: str, label: str, *, step: int | None = None
) -> list[CheckpointRecord]:
    """Take a name away from all checkpoints of a trace that have it, or from those of one step. Returns them.

    :raises TraceNotFound, CheckpointNotFound: there are none.
    """
    labelled = await labels(storage, trace_id)
    wanted = [record for record in labelled if record.label == label and step in (None, record.step)]
    if not wanted:
        known = ", ".join(f"{record.label!r} at step {record.step}" for record in labelled)
        raise CheckpointNotFound(trace_id, f"named {label!r}", known)
    return [await _label(storage, record, None) for record in wanted]


async def labels(storage: CheckpointStorage, trace_id: str) -> list[CheckpointRecord]:
    """The checkpoints of a trace that have a name, the newest first.

    :raises TraceNotFound: no such trace.
    """
    labelled: list[CheckpointRecord] = []
    seen = 0
    while page := await storage.checkpoints(trace_id, limit=1000, offset=seen):
        seen += len(page)
        labelled += [record for record in page if record.label is not None]
    return labelled


async def delete(storage: CheckpointStorage, trace_id: str) -> None:
    """Forget a trace and all its checkpoints. Forks of it live on.

    :raises TraceNotFound: no such trace.
    :raises TraceOwned: a live process executes it.
    """
    try:
        record = await found(storage, trace_id)
    except CheckpointDamaged:
        record = await shown(storage, trace_id)
    await forget(storage, record)


async def found(storage: CheckpointStorage, trace_id: str) -> TraceRecord:
    """That very trace: nothing is resumed by accident. (`load` raises, and names what is near.)

    :raises TraceNotFound: no such trace.
    """
    return await storage.trace(trace_id) or (await storage.load(trace_id)).record


def open_questions(snapshot: Snapshot) -> tuple[Question, ...]:
    trace_id = snapshot.record.trace_id
    paused = [row for row in snapshot.frontier if row.state == "paused"]
    asked = [waiting(trace_id, row.node, row.id, decode_asked(row.asked)) for row in paused]
    return tuple(question for question in asked if question is not None)


# -- how it is done --------------------------------------------------------------------------------------------


async def _command(storage: CheckpointStorage, trace_id: str, kind: CommandKind) -> Status:
    record = await found(storage, trace_id)
    _refuse_ended(record)
    await _one(storage, Leave(record.trace, trace_id, kind))
    await carry_out(storage, trace_id)
    after = await storage.trace(trace_id)
    return record.status if after is None else after.status


async def carry_out(storage: CheckpointStorage, trace_id: str) -> None:
    """Do what was left for a trace that nobody executes."""
    record = await storage.trace(trace_id)
    if record is None or is_owned(record) or not await storage.commands(trace=record.trace):
        return
    me = secrets.token_hex(8)  # without a lease: should this process die here, the trace is nobody's
    with anyio.CancelScope(shield=True):  # bounded: by two commits
        (acquired,) = await storage.commit([Acquire(record.trace, trace_id, record.epoch, me)])
        if not isinstance(acquired, Acquired):
            return  # somebody took it just now, and carries it out
        snapshot, commands = await storage.load(trace_id), await storage.commands(trace=record.trace)
        writes: list[Write] = [Release(record.trace, acquired.epoch)]
        # Somebody else may have been quicker; and an answer that came too late for its owner starts nothing again.
        if commands and snapshot.status not in TERMINAL:
            writes.insert(0, Append(trace_id, carried_out(snapshot, commands)))
        for outcome in await storage.commit(writes):
            if isinstance(outcome, Exception) and not isinstance(outcome, OwnershipLost):  # likewise
                raise outcome


def carried_out(snapshot: Snapshot, commands: Iterable[Command]) -> Delta:
    """The delta that consumes `commands`, of which there is one at least, for a trace of which nothing runs."""
    kinds = {command.kind for command in commands}
    answers: Mapping[tuple[bytes | None, str | None], bytes | None] = {
        (command.activation, command.name): command.body for command in commands if command.kind == "answer"
    }
    changed = [change for row in snapshot.frontier if (change := _answered(row, answers)) is not None]
    done = {change.activation for change in changed}
    waits = [row for row in snapshot.frontier if row.state == "paused" and row.seq not in done]
    runs = [row for row in snapshot.frontier if row.state not in ("paused", "buffered")]
    status: Status = "running" if done or runs or not waits else "paused"
    if "cancel" in kinds:
        status = "cancelled"
    elif "pause" in kinds or (snapshot.status == "paused" and runs):  # what was paused is for a resume to go on with
        status = "paused"
    return attrs.evolve(
        snapshot.following(),
        status=status,
        changed=tuple(changed),
        consumed=tuple(command.id for command in commands),
    )


def _answered(
    row: ActivationRow, answers: Mapping[tuple[bytes | None, str | None], bytes | None]
) -> StateChange | None:
    asked = decode_asked(row.asked)
    if row.state != "paused" or not asked or (row.id, asked[-1].name) not in answers:
        return None
    told = encode_asked(answered(asked, answers[row.id, asked[-1].name] or b"null"))
    return StateChange(
        activation=row.seq,
        state="planned",
        attempts=row.attempts,
        tries=row.tries,
        due=row.due,
        progress=row.progress,
        asked=told,
    )


def _named(open_: Iterable[Question]) -> Mapping[str | None, list[Question]]:
    """The questions by all that they may be called: an id, a name, or nothing."""
    named: dict[str | None, list[Question]] = {None: []}
    for question in open_:
        for name in {None, question.id, question.name}:
            named.setdefault(name, []).append(question)
    return named


def _chosen(trace_id: str, named: Mapping[str | None, list[Question]], wanted: str | None) -> Question:
    fits = named.get(wanted, [])
    if len(fits) != 1:
        ids = [question.id for question in named[None]]
        raise QuestionNotOpen(trace_id, wanted, ids, several=len(fits) > 1)
    return fits[0]


async def _refuse_answered(storage: CheckpointStorage, record: TraceRecord, names: Iterable[str | None]) -> None:
    """:raises AlreadyAnswered: one of `names` was a question, and has its answer."""
    known = [
        (short, f".{activation_id(record.trace_id, causal).hex()[:8]}.{short}")
        for causal, short in await storage.answered(record.trace)
    ]
    for name in names:
        if any(name == short or (name or "").endswith(end) for short, end in known):
            raise AlreadyAnswered(record.trace_id, name or "")


def _refuse_ended(record: TraceRecord) -> None:
    if record.status in TERMINAL:
        raise TraceEnded(record.trace_id, record.status)


async def _label(storage: CheckpointStorage, checkpoint: CheckpointRecord, label: str | None) -> CheckpointRecord:
    record = await found(storage, checkpoint.trace_id)
    await _one(storage, Label(record.trace, record.trace_id, checkpoint.rev, label))
    return attrs.evolve(checkpoint, label=label)


async def _one(storage: CheckpointStorage, write: Write) -> Outcome:
    (outcome,) = await storage.commit([write])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome
