"""What is found wrong in a graph definition, before it is known where in which file that stands."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import attrs

from tinyllm.errors import Fault

Path = tuple[Any, ...]
"""Leads to a part of a definition: keys of mappings and indexes of lists. `("nodes", 2, "join")`."""


@attrs.frozen
class Finding:
    """One thing wrong at `path`."""

    path: Path
    message: str
    on_key: bool = attrs.field(default=False, kw_only=True)
    """Whether the key itself is wrong, not its value."""
    offset: int | None = attrs.field(default=None, kw_only=True)
    """Where in the text at `path` the fault begins, from 0; None for the whole of it."""

    def fault(self, file: str | None = None, line: int | None = None, column: int | None = None) -> Fault:
        message = self.message if self.offset is None else f"{self.message} (at its column {self.offset + 1})"
        return Fault(message, where=where(self.path), file=file, line=line, column=column)


def where(path: Path) -> str:
    """The path as a person writes it: `nodes[2].join`."""
    text = ""
    for part in path:
        if isinstance(part, str) and part.isidentifier():
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


def near(name: str, known: Iterable[str]) -> str | None:
    """The one of `known` that was most likely meant by `name`."""
    known = list(known)
    folded = {other.lower(): other for other in known}
    matches = get_close_matches(name.lower(), folded, n=1)
    if matches:
        return folded[matches[0]]
    longer = [other for other in known if len(name) > 1 and other.lower().startswith(name.lower())]
    return longer[0] if len(longer) == 1 else None


def did_you_mean(guess: str | None) -> str:
    return f"; did you mean `{guess}`?" if guess else ""


def shown(value: Any) -> str:
    """A value as a message shows it: named by what it is, and short."""
    match value:
        case None:
            return "empty"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {_short(repr(value))}"
        case str():
            return f"the text {quoted(value)}"
        case list():
            return "a list"
        case dict():
            return "a mapping"
        case _:
            kind = type(value).__name__
            return f"an {kind}" if kind[0].lower() in "aeiou" else f"a {kind}"


def quoted(text: str) -> str:
    return _short(repr(text))


def listed(names: Iterable[str], limit: int = 8) -> str:
    """Names in a row; of many, the first ones and how many more there are."""
    names = list(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(f"`{name}`" for name in names[:limit]) + rest


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 4] + "..." + text[-1]
