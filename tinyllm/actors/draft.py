"""A delta in the making: its rows, and the sequence numbers they get."""

from __future__ import annotations

import msgspec

from tinyllm.graph.payload import Captured
from tinyllm.graph.variables import Order, Version
from tinyllm.storage.contract import (
    ActivationRow,
    ArrivalRow,
    Fired,
    Marks,
    MessageRow,
    StateChange,
    StepRow,
    VariableRow,
)

_encode_order = msgspec.json.Encoder().encode


class Draft:
    """Abandoned, it leaves no trace: the numbers it handed out are handed out again."""

    def __init__(self, marks: Marks, *, keeps_history: bool) -> None:
        self._keeps_history = keeps_history
        self._message, self._activation = marks.message, marks.activation
        self._arrival, self._variable = marks.arrival, marks.variable
        self.node: str | None = None
        self.messages: list[MessageRow] = []
        self.activations: list[ActivationRow] = []
        self.arrivals: list[ArrivalRow] = []
        self.fired: list[Fired] = []
        self.changed: list[StateChange] = []
        self.ended: list[int] = []
        self.variables: list[VariableRow] = []
        self.seqs = 0
        """By how much the sum of the seqs of all rows of variables has grown."""
        self.steps: list[StepRow] = []
        self.task: str | None = None
        self.consumed: list[int] = []

    @property
    def marks(self) -> Marks:
        """The numbers handed out so far."""
        return Marks(self._message, self._activation, self._arrival, self._variable)

    @property
    def size(self) -> int:
        """Bytes of all bodies."""
        size = 0
        for message in self.messages:
            size += len(message.body)
        for variable in self.variables:
            size += len(variable.body)
        for change in self.changed:
            size += len(change.progress or b"") + len(change.asked or b"")
        return size

    def message(self, source: str, consumers: int, captured: Captured) -> int:
        self._message += 1
        self.messages.append(MessageRow(self._message, source, consumers, captured.body, self._keeps_history))
        return self._message

    def next_activation(self) -> int:
        self._activation += 1
        return self._activation

    def next_arrival(self) -> int:
        self._arrival += 1
        return self._arrival

    def set(self, versions: dict[str, Version], key: str, body: bytes) -> None:
        """Give a variable a new value, here and in `versions`."""
        self._variable += 1
        self.variables.append(VariableRow(self._variable, key, "full", self._variable, body))
        before = versions.get(key)
        self.seqs += self._variable - (0 if before is None else before.seqs)
        versions[key] = Version(self._variable, body)

    def append(self, versions: dict[str, Version], key: str, item: bytes, order: Order) -> None:
        """Append an item to a variable, here and in `versions`."""
        self._variable += 1
        version = versions[key]
        self.variables.append(VariableRow(self._variable, key, "append", version.base, item, _encode_order(order)))
        self.seqs += self._variable
        versions[key] = version.appended(self._variable, order, item)
