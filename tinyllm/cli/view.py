"""What a person sees while a trace is executed, on stderr: a live table on a terminal, else a line now and then."""

from __future__ import annotations

import os
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from tinyllm.actors.events import (
    Event,
    FellBack,
    NodeAnswered,
    NodeFailed,
    NodePaused,
    NodeRetried,
    TraceEnded,
    TraceStarted,
)
from tinyllm.cli.progress import NodeProgress, Progress
from tinyllm.cli.questions import SHOWN, question_lines
from tinyllm.cli.text import duration, plural, printable, rate, shorten, table
from tinyllm.graph.messages import ErrorInfo

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

FIRST_PAUSE = 1.0
LAST_PAUSE = 60.0

LINE = 79
"""Columns that a line about an error keeps to, if what stands beside the error is not too long."""


class View(ABC):
    """Told every event; what it shows besides, `note` shows in order. `origin`: what the trace is forked
    from."""

    restore_terminal: bytes = b""
    """What a process that ends without leaving the view must write to the terminal."""

    def __init__(
        self,
        progress: Progress,
        origin: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress = progress
        self.origin = origin
        self.clock = clock
        self._told_at: dict[tuple[type[Event], str], float] = {}
        self._untold: Counter[tuple[type[Event], str]] = Counter()
        self._asked = 0

    def event(self, event: Event) -> None:
        now = self.clock()
        self.progress.apply(event, now)
        match event:
            case FellBack():
                for line in way_back(event):
                    self.note(line)
            case TraceStarted():
                for line in opening(event, self.origin):
                    self.note(line)
                self.open()
            case NodeRetried():
                again = f"again in {duration(event.wait)}"
                self.tell(event, _about(event.error, f"{event.node_id}: attempt {event.attempt} failed", again), now)
            case NodeFailed(handler=str(handler)):
                self.tell(event, _about(event.error, f"{event.node_id}: failed", f"{handler} handles it"), now)
            case NodeFailed() if self.progress.failed == 1:
                self.note(f"{event.trace_id}: node {event.node_id} failed; letting what is running finish")
            case NodePaused() if self.progress.at_work:  # else it ends now, and what it asks is told then
                self._asked += 1
                lines = "\n".join(question_lines([event.question], live=True))
                if self._asked <= SHOWN:
                    self.note(lines)
                else:
                    self.tell(event, lines, now)
            case NodeAnswered():
                self.tell(event, f"{event.node_id}: {event.name!r} is answered", now)
            case TraceEnded():
                self.close()
                took = duration(self.progress.elapsed(now))
                failures = f", {plural(self.progress.failed, 'failure')}" if self.progress.failed > 1 else ""
                self.note(f"{event.trace_id}: {event.status} at step {event.step:,} after {took}{failures}")
            case _:
                self.moved(now)

    def pause(self, now: float) -> float:
        """Seconds between two lines that nobody asked for: the longer a trace takes, the more, so that its log is
        short."""
        return min(LAST_PAUSE, max(FIRST_PAUSE, self.progress.elapsed(now) / 10))

    def tell(self, event: NodeRetried | NodeFailed | NodePaused | NodeAnswered, line: str, now: float) -> None:
        """Show `line`, unless the same was said of its node just now: thousands of activations may come to it."""
        key = type(event), event.node_id
        if key in self._told_at and now - self._told_at[key] < self.pause(now):
            self._untold[key] += 1
            self.moved(now)
            return
        self._told_at[key] = now
        first, *rest = line.split("\n")
        if more := self._untold.pop(key, 0):
            first += f" (and {more:,} like it before)"
        self.note("\n".join([first, *rest]))

    @abstractmethod
    def note(self, line: str) -> None:
        """Show `line` at once."""

    @abstractmethod
    def moved(self, now: float) -> None:
        """The progress has changed."""

    @abstractmethod
    def open(self) -> None:
        """Take the terminal, if it is drawn on."""

    @abstractmethod
    def close(self) -> None:
        """Give the terminal back. A second call does nothing."""


def opening(event: TraceStarted, origin: str | None = None) -> list[str]:
    """What a start says: for a resume or a fork, what it costs."""
    if not event.resumed:
        first = f"{event.trace_id}: started"
    elif origin is not None:
        to_run = sum(count for node, count in event.waiting.items() if not node.startswith("$"))
        first = f"{event.trace_id}: forked from {origin}; {plural(event.kept, 'step')} shared, {to_run:,} to run"
    else:
        lost = "how many were lost is not known" if event.lost is None else f"{event.lost:,} lost"
        first = f"resumed {event.trace_id}: kept {plural(event.kept, 'step')}, {event.again:,} run again, {lost}"
    return [first, *(f"  changed: {change}" for change in event.changes)]


def way_back(event: FellBack) -> list[str]:
    """What a start from an older checkpoint says, where the newest is damaged."""
    if event.again is None:
        again = "what runs again is not known"
    elif event.again:
        again = "run again: " + ", ".join(f"{node} ({count:,})" for node, count in event.again.items())
    else:
        again = "nothing that had ended runs again"
    return [
        f"{event.trace_id}: damaged at step {event.reached:,}: {event.what}",
        f"  goes on from step {event.step:,}; {again}; the damaged trace is kept as {event.kept_as}",
    ]


class PlainView(View):
    """Lines for a pipe or a log."""

    _shown_at: float | None = None

    def note(self, line: str) -> None:
        print(printable(line), file=sys.stderr, flush=True)
        self._shown_at = self.clock()

    def moved(self, now: float) -> None:
        begun = self.progress.begun
        if begun is not None and self._shown_at is not None and now - self._shown_at >= self.pause(now):
            self.note(f"{begun.trace_id}: {self.progress.sentence(now)}")

    def open(self) -> None:
        """It takes nothing."""

    def close(self) -> None:
        """It took nothing."""


class LiveView(View):
    """A table that is drawn over itself, from a thread of its own: a node that blocks the loop does not stop it."""

    restore_terminal = b"\x1b[?25h\n"

    def __init__(
        self,
        progress: Progress,
        origin: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(progress, origin, clock)
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False, markup=False)
        self._live: Live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=4)

    def open(self) -> None:
        self._live.start(refresh=True)

    def close(self) -> None:
        self._live.stop()

    def note(self, line: str) -> None:
        self._console.print(printable(line), soft_wrap=True)

    def moved(self, now: float) -> None:
        """It is drawn anew all the time."""

    def _draw(self) -> Text:
        from rich.text import Text

        size = shutil.get_terminal_size()
        # Room for the `^C` that a terminal echoes: if it broke the last line, drawing over would miss by one line.
        lines = screen(self.progress, self.clock(), size.columns - 4, size.lines - 2)
        text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        if lines:
            text.stylize("bold", 0, len(lines[0]))
        return text


def screen(progress: Progress, now: float, columns: int, height: int) -> list[str]:
    """The live table and, while it goes on, a sentence below it, in at most `height` lines.

    Where there are more nodes than lines, those with most to do are shown.
    """
    shown = [(name, node) for name, node in list(progress.nodes.items()) if node.seen]
    hidden = len(shown) - max(1, height - 3)
    if hidden > 0:
        busiest = sorted(shown, key=lambda item: (-item[1].running, -item[1].waiting, -item[1].done))
        keep = {name for name, _ in busiest[: len(shown) - hidden]}
        shown = [(name, node) for name, node in shown if name in keep]
    rows = []
    for name, node in shown:
        counts = (f"{node.kept + node.done:,}", f"{node.running:,}", f"{node.waiting:,}")
        speed = node.per_second(now) if node.outstanding and not progress.ended else None
        rows.append(
            (name, *counts, rate(speed) if speed else "", _outlook(node, now, ended=progress.ended is not None))
        )
    heads = ("node", "done", "running", "waiting", "rate", "time left")
    lines = table(heads, rows, right=heads[1:], shrink="node", columns=columns) if rows else []
    if hidden > 0:
        lines.append(f"and {plural(hidden, 'node')} more")
    if not progress.ended:
        lines.append(shorten(f"{duration(progress.elapsed(now))}: {progress.sentence(now, counts=False)}", columns))
    return lines


def _outlook(node: NodeProgress, now: float, *, ended: bool) -> str:
    if node.failed:
        return f"{node.failed:,} failed"
    if node.asking:
        return f"{node.asking:,} asking"
    left = None if ended else node.left(now)
    return duration(left) if left else ""


def _about(error: ErrorInfo, before: str, behind: str) -> str:
    room = max(20, LINE - len(f"{before} (), {behind}"))
    return f"{before} ({shorten(f'{error.type}: {error.message}', room)}), {behind}"


def choose_view(progress: Progress, origin: str | None = None) -> View:
    """The live view where stderr is a terminal that can draw it and rich is installed, else plain lines."""
    if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", None):
        try:
            return LiveView(progress, origin)
        except ImportError:
            pass
    return PlainView(progress, origin)
