"""What a worker process does with a call: load the function by its path, call it, capture the result there."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from functools import cache

from tinyllm.errors import UnguardedMain
from tinyllm.graph.functions import load
from tinyllm.graph.node import NodeFunction
from tinyllm.graph.questions import Asked
from tinyllm.graph.redact import Redaction
from tinyllm.nodes.call import Call, Caller, Failure, Output, failure


def call_in_worker(
    path: str, qualname: str, debug_mutation: bool, redaction: Redaction | None, call: Call
) -> Output | Asked | Failure:
    """Runs in the worker. A failure comes back as data: an exception of the user's may not survive pickling."""
    _leave_signals_to_parent()
    _die_with_parent()
    function = None
    try:
        caller = _caller(path, qualname, debug_mutation, redaction)
        function = caller.function
        return caller.attempt(call)
    except (Exception, SystemExit) as error:
        return failure(call.node_id, error, function, redaction)


def refuse_in_worker_start() -> None:
    """Refuse to execute from the top level of a script that a worker process is loading.

    A worker loads its parent's main module, as `multiprocessing` does. A script that executes without asking whether it
    is the main program would start everything again in every worker, and those in theirs.

    :raises UnguardedMain: naming the script.
    """
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__mp_main__":
            raise UnguardedMain(frame.f_code.co_filename)


@cache
def _caller(path: str, qualname: str, debug_mutation: bool, redaction: Redaction | None) -> Caller:
    return Caller(NodeFunction.of(load(path, qualname)), debug_mutation=debug_mutation, redaction=redaction)


@cache
def _leave_signals_to_parent() -> None:
    """A terminal's Ctrl-C reaches the whole process group; the run lets its nodes finish, and ends workers itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@cache
def _die_with_parent() -> None:
    """A worker that outlives a killed run would still be working on what the resumed run starts again.

    Only the parent holds the other end of the worker's standard input, so that hangs up when the parent dies. (Linux's
    parent-death signal means the *thread* that started the worker: trio starts it from one that ends 10 s later.)
    """
    if not hasattr(select, "poll"):
        return
    parent = select.poll()
    parent.register(0, 0)  # with no events asked for, it tells of the hang-up alone
    if parent.poll(0):
        os.kill(os.getpid(), signal.SIGKILL)

    def watch() -> None:
        parent.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="tinyllm parent watch", daemon=True).start()
