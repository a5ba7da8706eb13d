"""An asyncio program that takes down the digest of every file in a directory, and may be killed at any instant.

    python examples/embed/asyncio_program.py TRACE DIRECTORY

TRACE is a name of your choice. Type the same line again after a crash and it goes on: no digest that was recorded is
taken again. Type it after the end and it prints what was recorded. Ctrl-C or SIGTERM lets the files under way finish;
exit code 130 says that there is more to do. Traces are kept in $TINYLLM_STORAGE, or else in `traces`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from pathlib import Path

from tinyllm import ExecutionError, Executor, GraphBuilder, TaskResponse, TinyLLMError
from tinyllm.actors.events import Committed, Event

STORE = os.environ.get("TINYLLM_STORAGE", "traces")


def files(directory: str) -> list[str]:
    return sorted(str(path) for path in Path(directory).iterdir() if not path.is_dir())


def digest(path: str) -> str:
    """A plain function runs in a thread: while it reads, the event loop is free."""
    with open(path, "rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path}"


def manifest(lines: list[str]) -> str:
    return "\n".join(lines)


GRAPH = (
    GraphBuilder("manifest")
    .edge(files, digest, for_each=True)
    .edge(digest, manifest)
    .node(manifest, join="all")
    .build()
)


async def main(trace_id: str, directory: str) -> int:
    """The exit code: 0 done, 130 interrupted."""
    events: asyncio.Queue[Event] = asyncio.Queue()
    async with Executor(GRAPH, checkpoint_storage=STORE, on_event=events.put_nowait) as executor:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop, executor)
        beside = asyncio.create_task(tell(events))  # whatever else the program does: the loop is shared
        try:
            response = await execute(executor, trace_id, directory)
        finally:
            beside.cancel()
    if response.status == "interrupted":
        print(f"{trace_id}: stopped at step {response.nodes_executed}; the same line goes on", file=sys.stderr)
        return 130
    print(response.content)
    return 0


async def execute(executor: Executor, trace_id: str, directory: str) -> TaskResponse:
    """Start the trace, or continue it; if it has failed, now or in an earlier run, try once more what failed.

    :raises ExecutionError: it failed again.
    """
    try:
        return await executor.execute(directory, trace_id=trace_id)
    except ExecutionError as error:
        print(f"{error.trace_id}: {error.reason}; trying again", file=sys.stderr)
        return await executor.resume_from_checkpoint(error.trace_id)


def stop(executor: Executor) -> None:
    executor.stop()
    print("stopping: files under way finish", file=sys.stderr, flush=True)


async def tell(events: asyncio.Queue[Event]) -> None:
    while True:
        event = await events.get()
        if isinstance(event, Committed):
            print(f"{event.trace_id}: {event.step} steps are recorded", file=sys.stderr, flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        sys.exit(asyncio.run(main(*sys.argv[1:])))
    except TinyLLMError as error:
        sys.exit(f"error: {error}")
