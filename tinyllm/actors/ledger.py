"""What a run has handed over and not yet heard of: the variables of those deltas, and who waits for them."""

from __future__ import annotations

from collections.abc import Mapping

from tinyllm.actors.protocol import Answer
from tinyllm.graph.variables import Version
from tinyllm.storage.contract import Done


class Ledger:
    def __init__(self, versions: Mapping[str, Version], step: int) -> None:
        self.durable_versions = versions
        """The variables as of the newest durable delta: what nodes with effects see."""
        self.durable_step = step
        self._versions: list[tuple[int, Mapping[str, Version]]] = []
        self._waiting: list[tuple[int, Answer]] = []
        self._durable = 0

    def change(self, number: int, versions: Mapping[str, Version]) -> None:
        """Delta `number` leaves the variables as `versions`."""
        self._versions.append((number, versions))

    def wait(self, number: int, answer: Answer) -> None:
        """Settle `answer` once delta `number` is durable."""
        if number <= self._durable:
            answer.settle(Done())
        else:
            self._waiting.append((number, answer))

    def acknowledge(self, number: int, step: int) -> None:
        """All up to delta `number` is as durable as it will be."""
        self._durable, self.durable_step = number, step
        while self._versions and self._versions[0][0] <= number:
            _, self.durable_versions = self._versions.pop(0)
        while self._waiting and self._waiting[0][0] <= number:
            self._waiting.pop(0)[1].settle(Done())

    def refuse(self, error: Exception) -> None:
        """Nothing more becomes durable."""
        while self._waiting:
            self._waiting.pop(0)[1].settle(error)
