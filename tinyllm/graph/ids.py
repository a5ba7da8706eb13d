"""Ids of activations: the same for the same work after any crash, in whatever order the work was planned.

What caused an activation gives its causal id, which is the same in every trace that comes to it in the same way; with
the trace it gives the activation's own. So what is ordered by causal id is ordered alike in all traces of a task, and
in forks. A counter would be shorter, but after a lost tail it hands the key that one activation had used outside to
another.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

LONGEST = 128
NAME = f"1 to {LONGEST} printable characters"


def is_name(text: object) -> bool:
    """Whether `text` can be what people name a thing by: a label, a question, a result's status. It is one line, and
    nothing in it commands a terminal, turns text around or cannot be stored."""
    return isinstance(text, str) and 0 < len(text) <= LONGEST and text.isprintable()


def causal_id(generation: int, parent: bytes, edge: str, ordinal: int) -> bytes:
    """16 bytes. `edge` names the edge, send or entry that `parent`'s result took, `ordinal` the item along it."""
    return blake2b(f"{generation}\0{edge}\0{ordinal}\0".encode() + parent, digest_size=16).digest()


def round_id(generation: int, node: str, arrivals: Iterable[bytes]) -> bytes:
    """The causal id of a join's firing, from those of what arrived; their order does not matter."""
    return blake2b(f"{generation}\0{node}\0".encode() + b"".join(sorted(arrivals)), digest_size=16).digest()


def activation_id(trace_id: str, causal: bytes) -> bytes:
    """16 bytes: what nodes and people know an activation by."""
    return blake2b(f"{trace_id}\0".encode() + causal, digest_size=16).digest()


def idempotency_key(activation: bytes, input_digest: str) -> str:
    return blake2b(activation + input_digest.encode(), digest_size=16).hexdigest()
