"""A trio program that counts the words of many files at a time, and may be killed at any instant.

    python examples/embed/trio_program.py FILE...

Each file is a trace of its own. Type the same line again after a crash: files that were counted are not read again,
those that could not be read are tried again. Ctrl-C or SIGTERM lets what runs finish; exit code 130 says that there is
more to do, 1 that a file cannot be counted. Traces are kept in $TINYLLM_STORAGE, or else in `traces`.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from tinyllm import ExecutionError, Executor, TaskResponse, TinyLLMError, load_graph

STORE = os.environ.get("TINYLLM_STORAGE", "traces")
GRAPH = load_graph(Path(__file__).with_name("words.yaml"))


async def main(paths: list[str]) -> int:
    """The exit code: 0 all are counted, 130 interrupted, 1 some cannot be counted."""
    codes = {0}

    async def count(path: str) -> None:
        try:
            response = await execute(executor, path)
        except TinyLLMError as error:  # of this file: the others go on
            print(f"error: {error}", file=sys.stderr)
            codes.add(1)
            return
        if response.status == "interrupted":
            codes.add(130)
        else:
            print(f"{response.value} {path}", flush=True)

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with Executor(GRAPH, checkpoint_storage=STORE) as executor, trio.open_nursery() as beside:
            beside.start_soon(stop_at_signal, signals, executor)  # and whatever else the program does
            async with trio.open_nursery() as counting:
                for path in paths:
                    counting.start_soon(count, path)
            beside.cancel_scope.cancel()
    return max(codes)


async def execute(executor: Executor, path: str) -> TaskResponse:
    """Start the file's trace, or continue it; if it has failed, now or in an earlier run, try once more what failed.

    :raises ExecutionError: it failed again.
    """
    trace_id = f"words-{hashlib.sha256(path.encode()).hexdigest()[:16]}"  # the same file, the same trace
    try:
        return await executor.execute(path, trace_id=trace_id)
    except ExecutionError as error:
        return await executor.resume_from_checkpoint(error.trace_id)


async def stop_at_signal(signals: AsyncIterator[int], executor: Executor) -> None:
    async for _ in signals:
        executor.stop()
        print("stopping: what runs finishes", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        sys.exit(trio.run(main, sys.argv[1:]))
    except TinyLLMError as error:
        sys.exit(f"error: {error}")
