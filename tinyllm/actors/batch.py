"""What the writer writes next: fair among traces, bounded in rows and bytes. Pure; beside `writer.py`."""

from __future__ import annotations

from collections import deque

from tinyllm.actors.protocol import Ask, Put

MAX_WRITES = 128
MAX_BYTES = 1 << 20


class Queue:
    """Writes by trace, in order within a trace, taken in turns."""

    def __init__(self) -> None:
        self._traces: dict[str, deque[Put | Ask]] = {}

    def __bool__(self) -> bool:
        return bool(self._traces)

    def add(self, item: Put | Ask) -> None:
        if (items := self._traces.get(item.trace_id)) is None:  # not `setdefault`: a deque is dear, and mostly there
            items = self._traces[item.trace_id] = deque()
        items.append(item)

    def take(self) -> list[Put | Ask]:
        """The next batch: at most `MAX_WRITES`, and not past the first that fills `MAX_BYTES`."""
        batch: list[Put | Ask] = []
        size = 0
        while self._traces and len(batch) < MAX_WRITES and size < MAX_BYTES:
            trace_id, items = next(iter(self._traces.items()))
            item = items.popleft()
            if not items:
                del self._traces[trace_id]
            elif len(self._traces) > 1:  # to the back: one write each, in turns
                del self._traces[trace_id]
                self._traces[trace_id] = items
            batch.append(item)
            size += item.delta.size if isinstance(item, Put) else 0
        return batch

    def drop(self, trace_id: str) -> list[Put | Ask]:
        """Take out all that waits for a trace."""
        return list(self._traces.pop(trace_id, ()))
