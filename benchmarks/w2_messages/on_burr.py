"""W2 on Apache Burr: `n` actions that each add a message of 1 KiB; wall time by action, and the disk.

Burr persists the whole state at each action, so what it writes grows with the square of `n`.
"""

from __future__ import annotations

from burr.core import State

from common import Case, Figures, main
from with_burr import measured


def step(state: State) -> State:
    message = {"by": "assistant", "text": f"{state['count']:08}" + "m" * 1016}
    return state.update(count=state["count"] + 1).append(messages=message)


def run(case: Case) -> Figures:
    figures = measured(case, 20, ["count", "messages"], {"messages": []}, step)
    return figures | {"payload_bytes": case.n * 1024}


if __name__ == "__main__":
    main(run)
