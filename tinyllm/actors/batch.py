"""What the writer writes next: fair among traces, bounded in rows and bytes. Pure; beside `writer.py`."""

from __future__ import annotations

from collections.abc import Iterator

from tinyllm.actors.protocol import Ask, Put
from tinyllm.storage.contract import Release

MAX_WRITES = 128
MAX_BYTES = 1 << 20


class Queue:
    """Writes by trace, in order within a trace, taken in turns."""

    def __init__(self) -> None:
        self._traces: dict[str, list[Put | Ask]] = {}  # not deques: they are large, and a trace's credit is small

    def __bool__(self) -> bool:
        return bool(self._traces)

    def add(self, item: Put | Ask) -> None:
        self._traces.setdefault(item.trace_id, []).append(item)

    def __iter__(self) -> Iterator[Put | Ask]:
        return (item for items in self._traces.values() for item in items)

    def take_out(self, item: Put | Ask) -> None:
        items = self._traces[item.trace_id]
        items.remove(item)
        if not items:
            del self._traces[item.trace_id]

    def take(self) -> list[Put | Ask]:
        """The next batch: at most `MAX_WRITES`, and not past the first that fills `MAX_BYTES`."""
        batch: list[Put | Ask] = []
        size = 0
        while self._traces and len(batch) < MAX_WRITES and size < MAX_BYTES:
            trace_id, items = next(iter(self._traces.items()))
            item = items.pop(0)
            del self._traces[trace_id]
            if items:  # to the back: one write each, in turns
                self._traces[trace_id] = items
            batch.append(item)
            size += item.delta.size if isinstance(item, Put) else 0
        return batch

    def drop(self, refused: Put) -> list[Put | Ask]:
        """Take out all that waits of the run that handed `refused` over. Another may have begun since: the trace was
        taken over, and has come back."""
        items = self._traces.pop(refused.trace_id, [])
        if kept := [item for item in items if not _is_of_the_run(item, refused)]:
            self._traces[refused.trace_id] = kept
        return [item for item in items if _is_of_the_run(item, refused)]


def _is_of_the_run(item: Put | Ask, other: Put) -> bool:
    if isinstance(item, Put):
        return item.delta.epoch == other.delta.epoch
    return isinstance(item.write, Release) and item.write.epoch == other.delta.epoch
