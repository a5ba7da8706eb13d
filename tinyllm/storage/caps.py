"""The size above which a store refuses a value; every backend enforces it identically."""

from __future__ import annotations

from tinyllm.errors import ValueNotStorable
from tinyllm.storage.contract import Delta

MESSAGE_CAP = 64 * 1024 * 1024
"""Bytes of one message, one change of a variable, or one error. What is larger belongs into a file."""


def too_big(delta: Delta) -> ValueNotStorable | None:
    """What makes `delta` one that a store refuses, if anything does."""
    for message in delta.messages:
        if len(message.body) > MESSAGE_CAP:
            return _refused(message.node or "the task", message.body)
    for variable in delta.variables:
        if len(variable.body) > MESSAGE_CAP:
            return _refused(f"variables[{variable.key!r}]", variable.body)
    for error in (delta.error, *(row.error for row in delta.activations), *(row.error for row in delta.changed)):
        if error is not None and len(error) > MESSAGE_CAP:
            return _refused("error", error)
    return None


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
