"""Activation ids: the same for the same work after any crash, in whatever order the work was planned.

An id is a digest of what caused the activation. A counter would be shorter, but after a lost tail it hands the key that
one activation had used outside to another.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b


def activation_id(trace_id: str, generation: int, parent: bytes, edge: str, ordinal: int) -> bytes:
    """16 bytes. `edge` names the edge, send or entry that `parent`'s result took, `ordinal` the item along it."""
    return blake2b(f"{trace_id}\0{generation}\0{edge}\0{ordinal}\0".encode() + parent, digest_size=16).digest()


def round_id(trace_id: str, generation: int, node: str, arrivals: Iterable[bytes]) -> bytes:
    """The id of a join's firing, from the ids of what arrived; their order does not matter."""
    return blake2b(f"{trace_id}\0{generation}\0{node}\0".encode() + b"".join(sorted(arrivals)), digest_size=16).digest()


def forked_id(trace_id: str, original: bytes) -> bytes:
    """The id, in a fork, of an activation that was in flight at the forked checkpoint."""
    return blake2b(f"{trace_id}\0fork\0".encode() + original, digest_size=16).digest()


def idempotency_key(activation: bytes, input_digest: str) -> str:
    return blake2b(activation + input_digest.encode(), digest_size=16).hexdigest()
