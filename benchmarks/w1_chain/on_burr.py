"""W1 on Apache Burr: `n` trivial actions over a state of 200 bytes; the wall time of one run by its actions."""

from __future__ import annotations

from burr.core import State

from common import main
from with_burr import measured


def step(state: State) -> State:
    return state.update(count=state["count"] + 1)


if __name__ == "__main__":
    main(lambda case: measured(case, 20, ["count"], {"text": "x" * 200}, step))
