"""How amounts, times and tables are written for people."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import click

ELLIPSIS = "…"


_COMMANDS = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What commands a terminal, turns the direction of text around, or is no character; but not tabs and line ends."""


def printable(text: str) -> str:
    """`text` without what would command the terminal: it may come from a store that somebody else wrote."""
    return _COMMANDS.sub("\N{REPLACEMENT CHARACTER}", text)


def say(text: str, *, err: bool = False) -> None:
    """Print what people read."""
    click.echo(printable(text), err=err)


def say_result(text: str) -> None:
    """Print what a graph came to: as it is, but for a terminal."""
    click.echo(printable(text) if sys.stdout.isatty() else text)


def say_json(found: Any, *, compact: bool = False) -> None:
    """Print what programs read, and people look at: JSON can tell every character by its number. `compact`: on one
    line, where more such objects follow."""
    text = json.dumps(found, ensure_ascii=False, indent=None if compact else 2)
    click.echo(_COMMANDS.sub(lambda match: f"\\u{ord(match[0]):04x}", text))


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def duration(seconds: float) -> str:
    """Two units at most: `340 ms`, `4.2 s`, `1 m 02 s`, `3 h 05 m`, `2 d 4 h`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} m"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def ago(then: float, now: float) -> str:
    """Both in UTC seconds since 1970; a date where it is more than thirty days."""
    passed = max(0.0, now - then)
    if passed < 1:
        return "just now"
    for unit, length, limit in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 86400), ("d", 86400, 30 * 86400)):
        if passed < limit:
            return f"{int(passed // length)} {unit} ago"
    return datetime.fromtimestamp(then, UTC).date().isoformat()


def local_time(then: float) -> str:
    """UTC seconds since 1970 as `2026-01-31 14:05:09` on this machine's clock."""
    return datetime.fromtimestamp(then).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def utc(then: float) -> str:
    """UTC seconds since 1970 as ISO 8601 with milliseconds: what a program reads."""
    return datetime.fromtimestamp(then, UTC).isoformat(timespec="milliseconds")


def rate(per_second: float) -> str:
    """With the unit in which it is not far below one."""
    for unit, factor in (("s", 1), ("min", 60)):
        if per_second * factor >= 1:
            amount = per_second * factor
            return f"{amount:,.0f}/{unit}" if amount >= 9.95 else f"{amount:.1f}/{unit}"
    return f"{per_second * 3600:.1f}/h"


def shorten(text: str, width: int) -> str:
    """`text` on one line of at most `width` characters, without what a terminal would take as a command."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * width]).split())
    return line if len(line) <= width and len(text) <= 4 * width else line[: width - 1].rstrip() + ELLIPSIS


def width() -> int | None:
    """Columns of the terminal that stdout is; None where it is none, so nothing is cut for a program that reads it."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    shrink: str | None = None,
    columns: int | None = None,
) -> list[str]:
    """Lines of aligned columns; if they are wider than `columns`, the column `shrink` gives way."""
    cells = [[printable(cell) for cell in row] for row in rows]
    sizes = [max(len(line[i]) for line in (heads, *cells)) for i in range(len(heads))]
    if shrink is not None and columns is not None:
        index = heads.index(shrink)
        excess = sum(sizes) + 2 * (len(sizes) - 1) - columns
        if excess > 0:
            sizes[index] = max(len(shrink), sizes[index] - excess)
            for row in cells:
                row[index] = shorten(row[index], sizes[index])
    return [
        "  ".join(
            cell.rjust(size) if head in right else cell.ljust(size)
            for head, cell, size in zip(heads, line, sizes, strict=True)
        ).rstrip()
        for line in (heads, *cells)
    ]
