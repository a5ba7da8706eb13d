"""What the kill trial must know of a graph that it kills."""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import attrs

from tests.torture.victim import Lived


@attrs.frozen
class Piece:
    """A piece of work. Each activation has a key, which its witness writes and its result tells."""

    graph: str
    """The function that builds it: `module:function`."""
    task: Any
    steps: int
    variables: Callable[[Path], dict[str, Any]]
    """Those of a trace with that folder."""
    key: Callable[[str, Any], str]
    """Of the node that returned the value."""
    causes: Callable[[str], Set[str]]
    """The keys that must be recorded before the one of that key starts, where what starts waits for that."""
    has_effects: Callable[[str], bool]
    result: Callable[[Path, Lived], bytes]
    """Of the trace with that folder, which has come to its end in that life."""
