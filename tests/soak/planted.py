"""A supervisor with a bug: `python -m tests.soak.planted BUG ARGUMENT...` is `tinyllm ARGUMENT...`, but for that."""

from __future__ import annotations

import sys
from typing import Any

from tinyllm.cli.main import main
from tinyllm.supervisor import supervisor


def leave_what_is_owned() -> None:
    """What a dead worker left stays its own."""

    async def nothing(*_: Any) -> int:
        return 0

    vars(supervisor)["disown"] = nothing


if __name__ == "__main__":
    bug = sys.argv.pop(1)
    globals()[bug]()
    main()
