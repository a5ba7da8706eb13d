"""The pauses and cancels that a run was told, and what its trace becomes by them. Pure; beside `run.py`."""

from __future__ import annotations

from collections.abc import Iterable

from tinyllm.storage.contract import Command, Status


class Heard:
    def __init__(self) -> None:
        self._told: list[int] = []
        """The commands that were told: each is told again until it is consumed. (An empty set would take four times the
        memory, and hardly a trace is told anything.)"""
        self._ending: Status | None = None
        self.obeyed: list[int] = []
        """The commands that the trace's end carries out."""

    def fresh(self, commands: Iterable[Command]) -> list[Command]:
        """Those that were not told before."""
        fresh = [command for command in commands if command.id not in self._told]
        self._told += [command.id for command in fresh]
        return fresh

    def obey(self, command: Command) -> None:
        """A pause or a cancel; a pause does not undo a cancel."""
        self.obeyed.append(command.id)
        if command.kind == "cancel":
            self._ending = "cancelled"
        else:
            self._ending = self._ending or "paused"

    def ending(self, *, failed: bool) -> Status | None:
        """What the trace becomes when nothing runs any more; None: it goes on. A failure is not forgotten for a pause,
        but a cancelled trace is cancelled whatever happened."""
        return "failed" if failed and self._ending != "cancelled" else self._ending
