"""The size above which a store refuses a value; every backend enforces it identically."""

from __future__ import annotations

from tinyllm.errors import ValueNotStorable
from tinyllm.storage.contract import ActivationRow, Delta, Leave, StateChange

MESSAGE_CAP = 64 * 1024 * 1024
"""Bytes of one message, one change of a variable, one error, ... What is larger belongs into a file."""


def too_big(delta: Delta) -> ValueNotStorable | None:
    """What makes `delta` one that a store refuses, if anything does."""
    for message in delta.messages:
        if len(message.body) > MESSAGE_CAP:
            return _refused(message.node or "the task", message.body)
    for variable in delta.variables:
        if len(variable.body) > MESSAGE_CAP:
            return _refused(f"variables[{variable.key!r}]", variable.body)
    if delta.error is not None and len(delta.error) > MESSAGE_CAP:
        return _refused("error", delta.error)
    rows: list[ActivationRow | StateChange] = [*delta.activations, *delta.changed]
    for row in rows:
        if row.error is row.progress is row.asked is None:
            continue
        for what, body in (("error", row.error), ("progress", row.progress), ("questions", row.asked)):
            if body is not None and len(body) > MESSAGE_CAP:
                return _refused(what, body)
    return None


def answer_too_big(left: Leave) -> ValueNotStorable | None:
    """The refusal of an answer that is larger than a message may be."""
    if left.body is None or len(left.body) <= MESSAGE_CAP:
        return None
    return _refused(f"answer to {left.name!r}", left.body)


def definition_too_big(definition: bytes) -> ValueNotStorable | None:
    """The refusal of a graph's definition that is larger than a message may be."""
    return _refused("graph", definition) if len(definition) > MESSAGE_CAP else None


def _refused(path: str, body: bytes) -> ValueNotStorable:
    mib = 1024 * 1024
    return ValueNotStorable(
        path,
        f"its {len(body) / mib:.1f} MiB exceed the {MESSAGE_CAP // mib} MiB that one message may have; "
        "write it to a file and pass the file's path on",
    )
