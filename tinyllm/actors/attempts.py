"""Whether a failed attempt is followed by another, and after how long. Pure; beside `plan.py`."""

from __future__ import annotations

from collections.abc import Collection

from tinyllm.graph.definition import Retry


def wait_before_retry(retry: Retry | None, tries: int, kinds: Collection[str], activation: bytes) -> float | None:
    """Seconds until the next attempt; None: there is none.

    `tries` have failed in the present budget, the last with an exception of the class and bases named `kinds`. The
    jitter is drawn from the activation's id: it spreads activations, and is the same in every process.
    """
    if retry is None or tries >= retry.max_attempts:
        return None
    # `httpx.HTTPError` by its last part: a class is often known under another module than the one that defines it
    # (`asyncio.TimeoutError` is Python's own), and a name that never fits would be found out by a failure.
    if retry.on and not any(name.rpartition(".")[2] in kinds for name in retry.on):
        return None
    wait = retry.initial
    for _ in range(tries - 1):  # a power would overflow long after the cap was reached
        if wait >= retry.max or retry.factor == 1:
            break
        wait *= retry.factor
    wait = min(wait, retry.max)
    drawn = int.from_bytes(activation[:4], "big") * (tries * 2 + 1) % 2**32 / 2**32
    return wait * (1 - retry.jitter * drawn)
