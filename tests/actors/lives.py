"""What may happen to a trace from its admission to its end: a world's plan and a store, in the hands of chance."""

from __future__ import annotations

import random
from typing import Any

import attrs

from tests.actors.graphs import Record, now
from tests.actors.merging import merge
from tests.actors.worlds import End, Walk, World
from tinyllm.core.outside import open_questions
from tinyllm.graph.values import capture
from tinyllm.storage.contract import UNOWNED, CheckpointStorage, Delta, Prune, Pruned


class Life:
    """One trace of `world`, new or that of `record`, executed as an executor would, in random order and with random
    merging.

    Others answer its questions and pause it, with an owner and without one; up to `crashes` times it loses what was not
    stored and goes on. With `keep`, it is pruned now and then.
    """

    def __init__(
        self,
        world: World,
        rng: random.Random,
        *,
        crashes: int = 0,
        keep: int | None = None,
        record: Record | None = None,
    ) -> None:
        self.world = world
        self.rng = rng
        self.record = record or Record(world.graph)
        self.states: dict[int, dict[str, Any]] = {}
        """With `keep`, each checkpoint as it was when it was the newest."""
        self._crashes = crashes
        self._keep = keep
        self._walk = Walk(world, rng)
        self._pending: Delta | None = None
        self._durable: list[tuple[str, bytes]] = []
        """The steps that are."""
        self._told: set[int] = set()
        """The commands that this process has carried out."""
        self._answered: set[tuple[str, str]] = set()
        if record is None:
            self.record.admit(self._walk.plan, self._walk.begin())
        self._note()
        if record is not None:
            self._go_on()

    def run(self) -> End:
        while not self.over:
            self.happen()
        return self.end()

    @property
    def over(self) -> bool:
        return self._walk.plan.status in ("completed", "failed") and self._pending is None

    def end(self) -> End:
        return self._walk.end()

    # -- what happens ------------------------------------------------------------------------------------------

    def happen(self) -> None:
        """One thing, and what comes in between. (It may also come to one that is over: it ends again.)"""
        rng, plan = self.rng, self._walk.plan
        if self._told_now() or (plan.status == "running" and self._step()):
            if plan.status in UNOWNED or rng.random() < 0.7:
                self._flush()
        else:
            self._flush()
            if plan.status in ("running", "paused"):  # all that is left was cancelled, or waits for somebody
                self._answer(all_of_them=rng.random() < 0.2)
                if plan.status == "running" or self.record.commands() or plan.activations:
                    self._go_on()
        if rng.random() < 0.2:
            self._answer()
        if rng.random() < 0.05 and plan.status == "running" and not self.record.commands():
            self.record.leave("pause")
        if self._keep is not None and rng.random() < 0.2:
            assert isinstance(self.record.write(Prune(self.record.key, self._keep, rng.randint(1, 5))), Pruned)
            self.check()
        self._crash()

    def _step(self) -> bool:
        delta = self._walk.attempt()
        if delta is not None:
            self._hand(delta)
        return delta is not None

    def _told_now(self) -> bool:
        """Carry out something that was left. (It is told only when the owner looks.)"""
        plan = self._walk.plan
        left = [command for command in self.record.commands() if command.id not in self._told]
        if plan.status != "running" or not left or self.rng.random() < 0.5:
            return False
        command = left[0]
        self._told.add(command.id)
        if command.kind == "answer":
            self._hand(plan.heed([command]))
        else:
            self._hand(plan.close("paused", [command.id]))
        return True

    def _answer(self, *, all_of_them: bool = False) -> None:
        """Answer what is known to be asked: what was answered once is never asked again."""
        waiting = {(command.activation, command.name) for command in self.record.commands()}
        fresh = []
        for question in open_questions(self.record.load()):
            if (question.activation_id, question.name) not in self._answered:
                fresh.append(question)
            else:
                assert (self.record.causal(question), question.name) in waiting
        for question in fresh if all_of_them else fresh[:1] and [self.rng.choice(fresh)]:
            self._answered.add((question.activation_id, question.name))
            self.record.leave("answer", question, capture(self.world.reply(question)))

    def _crash(self) -> None:
        if not self._crashes or self.rng.random() > 0.15:
            return
        self._crashes -= 1
        if self._walk.plan.status == "running":
            while self._walk.plan.activations and self.rng.random() < 0.3:
                self._hand(self._walk.cut_off())
            if self.rng.random() < 0.5:
                self._flush()
        self._go_on()

    def _go_on(self) -> None:
        """In a new process, with what was stored; before it comes somebody may have carried out what was left."""
        self._pending, self._told = None, set()
        self._walk.steps = list(self._durable)
        if self.record.commands() and self.rng.random() < 0.5:
            self.record.carry_out()
            self._note()
        plan = self.record.resume()
        self._walk.go_on(plan)
        for command in self.record.commands():
            self._told.add(command.id)
            self._hand(plan.heed([command]))
        if plan.status == "running" and (woken := plan.wake()):
            self._hand(woken)
        self._flush()

    # -- what is stored ----------------------------------------------------------------------------------------

    def _hand(self, delta: Delta) -> None:
        self._pending = delta if self._pending is None else merge(self._pending, delta)

    def _flush(self) -> None:
        if self._pending is not None:
            self.record.append(self._pending)
            self._pending, self._durable = None, list(self._walk.steps)
            self._note()

    def _note(self) -> None:
        if self._keep is not None:
            self.states[self.record.rev] = self._state(self.record.rev)

    def check(self) -> None:
        """Every checkpoint that is kept is what it was."""
        for rev in self.record.kept():
            assert self._state(rev) == self.states[rev], f"at rev {rev}"

    def _state(self, rev: int) -> dict[str, Any]:
        return now(state(self.record.store, self.record.trace_id, rev))


async def state(store: CheckpointStorage, trace_id: str, rev: int) -> dict[str, Any]:
    """What a store knows of a checkpoint, but for what it forgets when it is no longer the newest."""
    snapshot = await store.load(trace_id, rev)
    told = attrs.asdict(snapshot, recurse=False)
    del told["record"]
    told["frontier"] = [
        row
        if row.state == "buffered"
        else attrs.evolve(row, state="planned", attempts=0, error=None, tries=0, due=None, progress=None, asked=None)
        for row in snapshot.frontier
    ]
    told["messages"] = {seq: attrs.evolve(row, consumers=0) for seq, row in snapshot.messages.items()}
    history = await store.messages(trace_id, rev=rev)
    return told | {"history": [attrs.evolve(row, consumers=0) for row in history]}
