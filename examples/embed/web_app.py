r"""A web service whose accepted tasks survive it: it may be stopped, deployed anew or killed at any instant.

    pip install starlette uvicorn
    uvicorn --app-dir examples/embed --factory web_app:create_app

    curl -i localhost:8000/traces -d '{"text": "Once upon a time.\n\nThere was a king.", "id": "tale"}'
    curl localhost:8000/traces/tale

`POST /traces` begins a trace in the background; 202 means that it is on disk. With an `id` of its own a client may send
the same request any number of times; another text under that id is refused with 409. `GET /traces/ID` tells the status,
the step, and the result or the error.

What a shutdown or a crash interrupts goes on when the service starts again. Traces are kept in `traces`, unless
$TINYLLM_STORAGE names another directory.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tinyllm import (
    CheckpointStorage,
    ConfigError,
    ExecutionError,
    Executor,
    GraphBuilder,
    NodeContext,
    SQLiteCheckpointStorage,
    TaskResponse,
    TinyLLMError,
    TraceMismatch,
    TraceOwned,
    ValueNotStorable,
)
from tinyllm.actors.events import Event, TraceStarted
from tinyllm.graph.payload import decode_error

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10
"""How long a shutdown waits for nodes that are running; those that take longer run again at the next start."""

CODES = {TraceMismatch: 409, ConfigError: 422, ValueNotStorable: 422}
"""What HTTP calls the errors that are the client's; any other is 503."""

Model = Callable[[str], Awaitable[str]]


# -- the graph -------------------------------------------------------------------------------------------------


def paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]


async def summarize(paragraph: str, context: NodeContext) -> str:
    model: Model = context.deps
    return await model(paragraph)


def gather(summaries: list[str]) -> dict[str, Any]:
    return {"summary": " ".join(summaries), "paragraphs": len(summaries)}


GRAPH = (
    GraphBuilder("summary")
    .edge(paragraphs, summarize, for_each=True)
    .edge(summarize, gather)
    .node(summarize, effects=True, max_concurrency=4)  # effects: a model's answer costs money
    .node(gather, join="all")
    .build()
)


async def first_sentence(paragraph: str) -> str:
    """Stands for a model: ask yours here."""
    return paragraph.strip().partition(".")[0] + "."


# -- traces in the background ----------------------------------------------------------------------------------


class Service:
    """One executor for the life of the app: traces run beside the requests."""

    def __init__(self, storage: CheckpointStorage, model: Model) -> None:
        self._storage = storage
        self._executor = Executor(GRAPH, checkpoint_storage=storage, deps=model, on_event=self._observe)
        self._tasks: TaskGroup
        self._beginning: dict[str, TaskStatus[None]] = {}
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            async with self._executor, anyio.create_task_group() as self._tasks:
                for trace_id in await self._unfinished():
                    self._tasks.start_soon(self._resume, trace_id)
                yield
                self._executor.stop()  # what runs may end; what is left of a trace is interrupted, and kept
                self._tasks.cancel_scope.deadline = anyio.current_time() + GRACE_SECONDS
        finally:
            await self._storage.close()

    async def begin(self, trace_id: str, text: str) -> None:
        """Return when the trace is on disk; it goes on in the background, or is over.

        :raises TinyLLMError: it is refused.
        """
        await self._begin(trace_id, partial(self._executor.execute, text, trace_id=trace_id))

    async def state(self, trace_id: str) -> dict[str, Any] | None:
        """What the store knows of the trace; None: nothing."""
        record = await self._storage.trace(trace_id)
        if record is None or record.graph_id != GRAPH.id:
            return None
        state: dict[str, Any] = {"trace_id": trace_id, "status": record.status, "step": record.step}
        if record.status == "completed":  # then this runs nothing: it reads the outcome
            state["result"] = (await self._executor.resume_from_checkpoint(trace_id)).value
        if record.status == "failed" and record.error is not None:
            error = decode_error(record.error)
            state["error"] = {"type": error.type, "message": error.message, "node_id": error.node_id}
        return state

    async def _unfinished(self) -> list[str]:
        """Also those that are `running`: of a container that is gone, nothing tells yet that it is dead. A resume
        finds out, and leaves alone what another process executes."""
        found: list[str] = []
        for status in ("interrupted", "running"):
            offset = 0
            while page := await self._storage.traces(graph_id=GRAPH.id, status=status, offset=offset):
                found += [record.trace_id for record in page]
                offset += len(page)
        return found

    async def _resume(self, trace_id: str) -> None:
        try:
            await self._begin(trace_id, partial(self._executor.resume_from_checkpoint, trace_id))
        except TinyLLMError:  # the graph changed, for example; the others go on
            logger.exception("trace %s does not go on", trace_id)

    async def _begin(self, trace_id: str, execute: Callable[[], Awaitable[TaskResponse]]) -> None:
        lock = self._locks.setdefault(trace_id, anyio.Lock())
        async with lock:  # the same request, sent twice at the same time: one after the other
            try:
                await self._tasks.start(self._execute, trace_id, execute)
            finally:
                self._beginning.pop(trace_id, None)

    async def _execute(
        self, trace_id: str, execute: Callable[[], Awaitable[TaskResponse]], *, task_status: TaskStatus[None]
    ) -> None:
        self._beginning[trace_id] = task_status
        try:
            await execute()
        except (ExecutionError, TraceOwned):
            pass  # it failed, which `state()` tells; or it is executed already, by this process or another one
        except TinyLLMError:
            if self._beginning.get(trace_id) is task_status:
                raise  # to whoever began it
            logger.exception("trace %s is interrupted", trace_id)
        if self._beginning.get(trace_id) is task_status:
            task_status.started()

    def _observe(self, event: Event) -> None:
        """A trace that has started is on disk, and goes on after any crash from here on."""
        if isinstance(event, TraceStarted) and (begun := self._beginning.pop(event.trace_id, None)):
            begun.started()


# -- the web ---------------------------------------------------------------------------------------------------


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST."""

    text: str
    id: str | None = None


def create_app(storage: CheckpointStorage | None = None, model: Model = first_sentence) -> Starlette:
    """The app; `storage` is closed when it shuts down. `model` is asked for the summary of each paragraph."""
    service = Service(storage or SQLiteCheckpointStorage(os.environ.get("TINYLLM_STORAGE", "traces")), model)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    async def post(request: Request) -> JSONResponse:
        try:
            order = msgspec.json.decode(await request.body(), type=Order)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HTTPException(422, f"the body is not what is expected: {error}") from error
        trace_id = uuid.uuid4().hex if order.id is None else order.id
        await service.begin(trace_id, order.text)
        return JSONResponse({"trace_id": trace_id}, 202, {"Location": f"/traces/{trace_id}"})

    async def get(request: Request) -> JSONResponse:
        trace_id = request.path_params["trace_id"]
        state = await service.state(trace_id)
        if state is None:
            raise HTTPException(404, f"there is no trace {trace_id!r}")
        return JSONResponse(state)

    routes = [Route("/traces", post, methods=["POST"]), Route("/traces/{trace_id}", get)]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: tell, TinyLLMError: refuse})


async def tell(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def refuse(_: Request, error: Exception) -> JSONResponse:
    code = CODES.get(type(error), 503)
    if code != 503:
        return JSONResponse({"error": str(error)}, code)
    logger.error("a request came to nothing", exc_info=error)  # with paths and processes, which are not the client's
    return JSONResponse({"error": "traces cannot be kept at present; try again later"}, 503)
