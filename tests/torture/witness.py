"""An independent witness: what ran, as the nodes themselves write it into a file that tinyllm knows nothing of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from tinyllm import NodeContext

FILE = "witness"
"""The variable that names the file."""


@attrs.frozen
class Line:
    """`verb` is `start` or `end`; `key` names the work, `id` is the activation's."""

    verb: str
    id: str
    key: str


@contextmanager
def witnessed(context: NodeContext, key: str) -> Iterator[None]:
    """Append a line when the work `key` starts, and one when it has ended."""
    write(context, "start", key)
    yield
    write(context, "end", key)


def write(context: NodeContext, verb: str, key: str) -> None:
    file = os.open(context.variables[FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{verb} {context.activation_id} {key}\n".encode())  # one write: lines never mix
    finally:
        os.close(file)


def read(path: Path) -> list[Line]:
    return [Line(*line.split(" ", 2)) for line in path.read_text().splitlines()] if path.exists() else []
