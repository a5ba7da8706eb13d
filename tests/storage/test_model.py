"""Random histories of many traces, on every backend, against a model that copies everything at every rev.

Forks and prunes have several rules, one of them for both: what goes wrong between them needs many of both to show.
"""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.storage.backends import BACKENDS, census, open_backend
from tests.storage.deltas import DELETED, Item, Writer, merge
from tests.storage.naive import NaiveTrace
from tinyllm.errors import AlreadyAnswered, CheckpointInUse, CheckpointNotFound, OwnershipLost, TraceEnded
from tinyllm.storage.contract import (
    TERMINAL,
    Acquired,
    Acquit,
    ActivationState,
    Append,
    Appended,
    Backlog,
    Claim,
    Claimed,
    Command,
    CommandKind,
    Delete,
    Delta,
    Disown,
    Done,
    Drop,
    Held,
    Label,
    Leave,
    Left,
    Outcome,
    Prune,
    Pruned,
    Release,
    Status,
    Wanted,
    Write,
)
from tinyllm.storage.owners import this_process

T = TypeVar("T")

EXAMPLES = {"memory": 150, "sqlite": 50}
MOST_TRACES = 6

NEVER = 2e11
"""UTC seconds, as a time before which something is not to be claimed."""

_BEGINS: tuple[Status, ...] = ("queued", "running", "running")

Data = st.DataObject


@attrs.define(eq=False)
class Tracked:
    """A trace that lives: who writes it, and what it must look like."""

    writer: Writer
    naive: NaiveTrace
    last: Delta

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """Where hypothesis tells what it drew."""
        printer.text(self.naive.trace_id)

    @property
    def ended(self) -> bool:
        return self.naive.status in TERMINAL


class StoreMachine(RuleBasedStateMachine):
    backend: str

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.directory = Path(tempfile.mkdtemp(dir=_FAST))
        self.runner = asyncio.Runner()
        self.sound = True
        self.traces: list[Tracked] = []
        self.all: list[NaiveTrace] = []
        self.last_command = 0
        self.owners = [this_process(), this_process()]
        self.run(self.open)

    def run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        async def call() -> T:
            return await function(*args)

        try:
            return self.runner.run(call())
        except BaseException:
            self.sound = False
            raise

    async def open(self) -> None:
        self.storage = open_backend(self.backend, self.directory)
        await self.storage.initialize()
        for owner in self.owners:
            self.storage.renew(owner)

    async def commit(self, writes: Sequence[Write], *expected: Outcome | type[Exception]) -> list[Outcome]:
        outcomes = await self.storage.commit(writes)
        assert len(outcomes) == len(writes)
        for outcome, wanted in zip(outcomes, expected, strict=bool(expected)):
            assert isinstance(outcome, wanted) if isinstance(wanted, type) else outcome == wanted, (outcome, wanted)
        return outcomes

    def draw_trace(self, data: Data, *, running: bool = False) -> Tracked:
        return data.draw(st.sampled_from([t for t in self.traces if not (running and t.ended)]), label="trace")

    def track(self, tracked: Tracked) -> None:
        tracked.naive.key = tracked.writer.key
        self.traces.append(tracked)
        self.all.append(tracked.naive)

    def room(self) -> bool:
        return len(self.traces) < MOST_TRACES

    def some(self) -> bool:
        return bool(self.traces)

    def some_running(self) -> bool:
        return any(not t.ended for t in self.traces)

    # -- rules -------------------------------------------------------------------------------------------------

    @precondition(room)
    @rule(
        plan=st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=3),
        owned=st.booleans(),
        sets=st.sets(st.sampled_from(["x", "y"])),
        window=st.sampled_from([None, 0, 1, 2, 5]),
        status=st.sampled_from(_BEGINS),
        priority=st.integers(-1, 1),
        later=st.booleans(),
    )
    def admit(
        self,
        plan: list[str],
        owned: bool,
        sets: set[str],
        window: int | None,
        status: Status,
        priority: int,
        later: bool,
    ) -> None:
        owner = self.owners[0].id if owned else None
        writer = Writer(f"t{len(self.all)}", owner, window)
        write = writer.admit(plan=plan, set=[(key, b"[]") for key in sorted(sets)], status=status)
        write = attrs.evolve(write, priority=priority, not_before=NEVER if later else None)
        (outcome,) = self.run(self.commit, [write])
        owner = None if status == "queued" else owner
        naive = NaiveTrace(writer.trace_id, owner=owner, window=window, priority=priority, later=later)
        naive.apply(write.first)
        self.track(Tracked(writer.admitted(outcome), naive, write.first))

    @precondition(some_running)
    @rule(data=st.data(), count=st.integers(1, 4))
    def append(self, data: Data, count: int) -> None:
        self.append_some(data, [self.draw_trace(data, running=True) for _ in range(count)])

    @precondition(some_running)
    @rule(data=st.data(), count=st.integers(2, 6))
    def append_to_one(self, data: Data, count: int) -> None:
        self.append_some(data, [self.draw_trace(data, running=True)] * count)

    def append_some(self, data: Data, tracked: Sequence[Tracked]) -> None:
        deltas: list[tuple[Tracked, Delta]] = []
        for t in tracked:
            width = data.draw(st.sampled_from([1, 1, 1, 2, 3]), label="steps in one")
            delta = merge([t.writer.delta(**draw_step(data, t.writer)) for _ in range(width)])
            if waiting := sorted({key for other in self.traces for key in other.naive.commands}):
                consumed = data.draw(st.lists(st.sampled_from(waiting), max_size=2), label="consumes")
                delta = attrs.evolve(delta, consumed=tuple(consumed))
            t.writer.rev = delta.rev
            deltas.append((t, delta))
        self.run(
            self.commit,
            [Append(t.naive.trace_id, delta) for t, delta in deltas],
            *[Appended(delta.rev) for _, delta in deltas],
        )
        for t, delta in deltas:
            t.naive.apply(delta)
            t.last = delta
        for t in {id(t): t for t in tracked}.values():
            self.run(t.naive.compare_newest, self.storage)

    @precondition(some_running)
    @rule(data=st.data())
    def end(self, data: Data) -> None:
        t = self.draw_trace(data, running=True)
        status = data.draw(st.sampled_from(_ENDS))
        delta = t.writer.delta(status=status, error=b"{}" if status == "failed" else None, body=None)
        self.run(self.commit, [Append(t.naive.trace_id, delta)], Appended(delta.rev))
        t.naive.apply(delta)
        t.last = delta

    @precondition(some_running)
    @rule(data=st.data(), epochs=st.sampled_from([-1, 1]), revs=st.sampled_from([-1, 0, 0, 1]))
    def append_refused(self, data: Data, epochs: int, revs: int) -> None:
        """Of another epoch or, with the right one, of a rev that is not the next; beside one that is written."""
        t = self.draw_trace(data, running=True)
        other = self.draw_trace(data, running=True)
        stray = copy.deepcopy(t.writer).delta(**draw_step(data, t.writer))
        if stray.marks == t.writer.marks and stray.step == t.writer.step:
            return  # it adds nothing, so it is the same as the last one
        if revs:
            stray = attrs.evolve(stray, rev=stray.rev + revs)
        else:
            stray = attrs.evolve(stray, epoch=stray.epoch + epochs)
        good = other.writer.delta(**draw_step(data, other.writer))
        self.run(
            self.commit,
            [Append(t.naive.trace_id, stray), Append(other.naive.trace_id, good)],
            OwnershipLost,
            Appended(good.rev),
        )
        other.naive.apply(good)
        other.last = good

    @precondition(some)
    @rule(data=st.data())
    def append_again(self, data: Data) -> None:
        """The last delta, whose outcome its owner may not have heard of."""
        t = self.draw_trace(data)
        if t.last.epoch == t.writer.epoch:
            self.run(self.commit, [Append(t.naive.trace_id, t.last)], Appended(t.last.rev))

    @precondition(some)
    @rule(data=st.data(), stale=st.booleans())
    def acquire(self, data: Data, stale: bool) -> None:
        t = self.draw_trace(data)
        owner = data.draw(st.sampled_from(self.owners)).id
        write = t.writer.acquire(owner, definition=owner.encode())
        if stale:
            self.run(self.commit, [attrs.evolve(write, epoch=write.epoch - 1)], OwnershipLost)
            return
        t.writer.epoch += 1
        self.run(self.commit, [write], Acquired(t.writer.epoch))
        t.naive.status, t.naive.error = "running", None
        t.naive.taken(owner)

    @precondition(some)
    @rule(data=st.data(), stale=st.booleans(), later=st.booleans())
    def release(self, data: Data, stale: bool, later: bool) -> None:
        t = self.draw_trace(data)
        until = NEVER if later else None
        self.run(self.commit, [Release(t.writer.key, t.writer.epoch - stale, until)], Done())
        if not stale:
            t.naive.owner, t.naive.later = None, later

    @rule(
        owner=st.integers(0, 1),
        limit=st.integers(1, 4),
        at_most=st.sampled_from([None, None, 0, 2, 4]),
        apart=st.booleans(),
    )
    def claim(self, owner: int, limit: int, at_most: int | None, apart: bool) -> None:
        name = self.owners[owner].id
        ready = [t for t in self.traces if t.naive.waits and not t.naive.later]
        waiting = [t for t in ready if t.naive.apart == apart]
        places = limit if at_most is None else at_most - sum(t.naive.owner is not None for t in self.traces)
        if at_most is not None and not apart and any(t.naive.apart for t in ready):
            places -= 1
        room = min(limit, places)
        waiting.sort(key=lambda t: (-t.naive.priority, t.naive.key))
        taken = waiting[: max(room, 0)]
        for t in taken:
            t.writer.epoch += 1
            t.naive.taken(name)
        held = tuple(Held(t.naive.key, t.naive.trace_id, "g", t.writer.epoch) for t in taken)
        self.run(self.commit, [Claim((Wanted("h", "?"), Wanted("g", name, at_most)), limit, apart)], Claimed(held))

    @precondition(some)
    @rule(data=st.data(), stale=st.booleans(), apart=st.booleans(), error=st.sampled_from([None, None, b"{}"]))
    def disown(self, data: Data, stale: bool, apart: bool, error: bytes | None) -> None:
        t = self.draw_trace(data)
        deaths = data.draw(st.sampled_from([None, b"[1]"]), label="deaths")
        owner = t.naive.owner or "nobody"
        write = Disown(t.naive.key, t.naive.trace_id, t.writer.epoch - stale, owner, deaths, apart, error)
        if stale or t.naive.owner is None:
            self.run(self.commit, [write], OwnershipLost)
            return
        t.writer.epoch += 1
        self.run(self.commit, [write], Done())
        t.naive.disowned(deaths, apart, error)

    @precondition(some)
    @rule(data=st.data(), stale=st.booleans())
    def acquit(self, data: Data, stale: bool) -> None:
        t = self.draw_trace(data)
        write = Acquit(t.naive.key, t.naive.trace_id, t.writer.epoch - stale)
        self.run(self.commit, [write], OwnershipLost if stale else Done())
        if not stale:
            t.naive.deaths, t.naive.apart = None, False

    @precondition(some)
    @rule(data=st.data(), label=st.sampled_from(["good", None]))
    def label(self, data: Data, label: str | None) -> None:
        t = self.draw_trace(data)
        rev = data.draw(st.integers(0, t.naive.rev + 1), label="rev")
        there = rev in t.naive.kept
        self.run(
            self.commit, [Label(t.naive.key, t.naive.trace_id, rev, label)], Done() if there else CheckpointNotFound
        )
        if there and label is not None:
            t.naive.labels[rev] = label
        else:
            t.naive.labels.pop(rev, None)

    @precondition(some)
    @rule(data=st.data(), count=st.integers(1, 3))
    def drop(self, data: Data, count: int) -> None:
        t = self.draw_trace(data)
        for _ in range(count):
            rev = data.draw(st.integers(0, t.naive.rev + 1), label="rev")
            expected: Outcome | type[Exception] = Pruned(rev in t.naive.kept)
            if rev in t.naive.kept and t.naive.stays(rev):
                expected = CheckpointInUse
            self.run(self.commit, [Drop(t.naive.key, t.naive.trace_id, rev)], expected)
            if expected == Pruned(1):
                t.naive.drop(rev)

    @precondition(some)
    @rule(data=st.data(), kind=st.sampled_from(["pause", "cancel", "answer", "answer"]))
    def leave(self, data: Data, kind: CommandKind) -> None:
        t = self.draw_trace(data)
        naive = t.naive
        activation = name = body = None
        if kind == "answer":
            ids = {row.id for state in naive.kept.values() for row in state.frontier if row.id}
            activation = data.draw(st.sampled_from(sorted(ids) or [b"?" * 16]), label="asked by")
            name, body = data.draw(st.sampled_from(["why", "when"])), b'"because"'
        write = Leave(naive.key, naive.trace_id, kind, activation, name, body)
        same = [left.id for left in naive.commands.values() if kind == left.kind != "answer"]
        if t.ended:
            self.run(self.commit, [write], TraceEnded)
        elif (activation, name) in naive.answered:
            self.run(self.commit, [write], AlreadyAnswered)
        elif same:
            self.run(self.commit, [write], Left(same[0]))
        else:
            (outcome,) = self.run(self.commit, [write], Left)
            assert isinstance(outcome, Left)
            assert outcome.command > self.last_command
            self.last_command = outcome.command
            naive.commands[outcome.command] = Command(
                outcome.command, naive.key, kind, activation, name, body, created_at=0.0
            )
            if kind == "answer":
                naive.answered.add((activation, name))

    @precondition(some)
    @rule(data=st.data(), keep=st.integers(1, 4), limit=st.integers(1, 5))
    def prune(self, data: Data, keep: int, limit: int) -> None:
        self.prune_some(self.draw_trace(data), keep, limit)

    def prune_some(self, t: Tracked, keep: int, limit: int) -> int:
        dropped = t.naive.prune(keep, limit)
        self.run(self.commit, [Prune(t.writer.key, keep, limit)], Pruned(dropped))
        return dropped

    @precondition(some)
    @rule(keep=st.integers(1, 3), limit=st.integers(1, 5))
    def prune_all(self, keep: int, limit: int) -> None:
        for t in self.traces:
            while self.prune_some(t, keep, limit):
                pass

    @precondition(lambda self: self.some() and self.room())
    @rule(data=st.data())
    def fork(self, data: Data) -> None:
        t = self.draw_trace(data)
        self.fork_at(data, t, data.draw(st.sampled_from(sorted(t.naive.kept)), label="rev"))

    @precondition(lambda self: self.some_running() and self.room())
    @rule(data=st.data(), before=st.integers(0, 2), after=st.integers(1, 3), keep=st.integers(1, 2))
    def fork_then_prune(self, data: Data, before: int, after: int, keep: int) -> None:
        """What the child stands on is soon among the oldest that its parent has."""
        t = self.draw_trace(data, running=True)
        self.append_some(data, [t] * before)
        self.fork_at(data, t, data.draw(st.sampled_from(sorted(t.naive.kept)[-2:]), label="rev"))
        self.append_some(data, [t] * after)
        self.prune_some(t, keep, 64)

    def fork_at(self, data: Data, t: Tracked, rev: int) -> None:
        owner = data.draw(st.sampled_from([*(owner.id for owner in self.owners), None]), label="owner")
        snapshot = self.run(self.storage.load, t.naive.trace_id, rev)
        sets = [("x", b'["forked"]')] if data.draw(st.booleans(), label="changes a variable") else []
        writer, write = t.writer.fork(snapshot, f"t{len(self.all)}", owner, set=sets)
        (outcome,) = self.run(self.commit, [write])
        naive = t.naive.fork(rev, writer.trace_id, owner, write.first)
        self.track(Tracked(writer.admitted(outcome), naive, write.first))

    @precondition(some)
    @rule(data=st.data())
    def delete(self, data: Data) -> None:
        self.delete_one(self.draw_trace(data))

    def delete_one(self, t: Tracked) -> None:
        self.run(self.commit, [Delete(t.writer.key)], Done())
        self.traces.remove(t)
        t.naive.deleted = True
        assert self.run(self.storage.trace, t.naive.trace_id) is None

    @rule()
    def reclaim(self) -> None:
        self.run(self.compare_rows)

    @precondition(lambda self: self.backend != "memory")
    @rule()
    def reopen(self) -> None:
        self.run(self.storage.close)
        self.run(self.open)

    @rule()
    def look(self) -> None:
        self.run(self.compare)

    # -- checks ------------------------------------------------------------------------------------------------

    async def compare(self) -> None:
        for owner in self.owners:
            left = [command.id for command in await self.storage.commands(owner=owner.id)]
            assert left == sorted(key for t in self.traces if t.naive.owner == owner.id for key in t.naive.commands)
            held = [record.trace for record in await self.storage.held(owner.id)]
            assert held == sorted(t.naive.key for t in self.traces if t.naive.owner == owner.id)
        await self.compare_waiting()
        listed = await self.storage.traces(limit=1000)
        assert {record.trace_id for record in listed} == {t.naive.trace_id for t in self.traces}
        for t in self.traces:
            await t.naive.compare(self.storage)
        await self.compare_rows()

    async def compare_waiting(self) -> None:
        traces = [t.naive for t in self.traces]
        owned = [naive.owner for naive in traces if naive.owner is not None]
        assert [lease.id for lease in await self.storage.owners()] == sorted(set(owned))
        now = [naive for naive in traces if naive.waits and not naive.later]
        later = [naive for naive in traces if naive.waits and naive.later]
        backlog = await self.storage.backlog(["g"])
        assert attrs.evolve(backlog, oldest=None) == Backlog(
            waiting=sum(not naive.apart for naive in now),
            apart=sum(naive.apart for naive in now),
            later=len(later),
            running=len(owned),
            quarantined=sum(naive.status == "quarantined" for naive in traces),
            oldest=None,
        )
        assert (backlog.oldest is None) == (backlog.waiting == 0)
        for apart in (False, True):
            due = [0.0 for naive in now if naive.apart == apart] + [NEVER for naive in later if naive.apart == apart]
            assert await self.storage.next_due(["h", "g"], apart=apart) == min(due, default=None)

    async def compare_rows(self) -> None:
        """No row is kept that nobody needs."""
        while await self.storage.reclaim(64):
            pass
        assert await census(self.storage) == {naive.key: rows for naive in self.all if (rows := naive.census())}

    def teardown(self) -> None:
        try:
            if self.sound:
                self.run(self.compare)
                # In either order, so that tombstones are made, and go with their last child.
                for t in list(self.traces) if len(self.all) % 2 else list(reversed(self.traces)):
                    self.delete_one(t)
                self.run(self.compare_rows)
                assert self.run(census, self.storage) == {}
        finally:
            self.runner.run(self.storage.close())
            self.runner.close()
            shutil.rmtree(self.directory)


def draw_step(data: Data, writer: Writer) -> dict[str, Any]:
    """What an owner might do next."""
    ready = sorted(seq for seq, row in writer.live.items() if row.state != "buffered")
    end = data.draw(st.sampled_from(ready), label="ends") if ready and data.draw(st.integers(0, 5)) > 0 else None
    step: dict[str, Any] = {"end": end, "history": data.draw(st.booleans(), label="history")}
    joins: st.SearchStrategy[list[str]] = st.lists(st.sampled_from(["join1", "join2"]), max_size=2)
    if end is not None:
        step["plan"] = data.draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=3), label="plans")
        step["items"] = data.draw(st.booleans())
        step["arrive"] = data.draw(joins, label="arrives at")
        if data.draw(st.integers(0, 4)) == 0:
            step["awaited"] = data.draw(joins, label="is awaited at")
    open_rounds = sorted({*writer.rounds, *step.get("arrive", ()), *step.get("awaited", ())})
    if open_rounds:
        step["fire"] = sorted(data.draw(st.sets(st.sampled_from(open_rounds)), label="fires"))
    others = [seq for seq in ready if seq != end]
    if others and data.draw(st.integers(0, 4)) == 0:
        seq = data.draw(st.sampled_from(others))
        step["change"] = [(seq, data.draw(st.sampled_from(_STATES)))]
    sets: list[tuple[str, object]] = []
    for key in sorted(data.draw(st.sets(st.sampled_from(["x", "y", "z"]), max_size=2), label="sets")):
        kinds = ["append", "append", "full", "deleted"] if key in writer.bases else ["full", "full and append"]
        kind = data.draw(st.sampled_from(kinds))
        if kind == "deleted":
            sets.append((key, DELETED))
        if kind.startswith("full"):
            sets.append((key, b"[%d]" % writer.rev))
        if kind.endswith("append"):
            sets.append((key, Item(b"%d" % writer.rev)))
    if data.draw(st.integers(0, 9)) == 0:
        step["task"] = f"task at {writer.rev}"
    return step | {"set": sets}


_STATES: tuple[ActivationState, ...] = ("planned", "paused", "failed", "cancelled")
_ENDS: tuple[Status, ...] = ("completed", "failed", "cancelled", "paused")
_FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where a commit waits for no disk."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_equals_model(backend: str) -> None:
    chosen = settings.default
    if settings.get_current_profile_name() != "long":
        chosen = settings(max_examples=EXAMPLES[backend], stateful_step_count=30)
    run_state_machine_as_test(
        partial(StoreMachine, backend),  # type: ignore[arg-type] # any factory does
        settings=settings(chosen, suppress_health_check=list(HealthCheck)),
    )
