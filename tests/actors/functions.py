"""Functions that a worker process finds by this file's path."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

PARENT = os.environ.setdefault("TINYLLM_TEST_PARENT", str(os.getpid()))


class OddError(Exception):
    """One that does not survive pickling."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"odd {number} {text}")


def describe(value: Any, context: Any) -> Any:
    here: Any = os.getpid() == int(PARENT)
    match value:
        case "raise":
            raise OddError(1, "two")
        case "exit":
            sys.exit(3)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "signals":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            return "survived"
        case "endless":
            time.sleep(3600)
        case "object":
            here = object()
    return {"input": value, "here": here, "greeting": context.variables.get("greeting"), "deps": context.deps}


def asks(value: Any, context: Any) -> Any:
    return context.ask("go on?", name="go")


def saves(value: Any, context: Any) -> None:
    context.save_progress(1)
