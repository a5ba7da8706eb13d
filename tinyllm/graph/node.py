"""The node API: how a plain function becomes a node, and what it may take and return."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar, overload

import attrs

from tinyllm.graph.ids import NAME, is_name
from tinyllm.graph.tags import short

F = TypeVar("F", bound=Callable[..., Any])

MARK = "__tinyllm_node__"


LIFESPAN = "__tinyllm_lifespan__"


class NodeContext(Protocol):
    """What a node gets when it has a parameter named `context`.

    In an `async def`, `ask()` and `save_progress()` are awaited; in a `def` they are called, and block its thread.
    """

    @property
    def variables(self) -> Mapping[str, Any]:
        """The trace's variables as they were when the node started. Lent: never change a value in place."""

    @property
    def deps(self) -> Any:
        """What was given as `Executor(deps=...)`, else what the graph's lifespan yields; None in a worker process."""

    @property
    def trace_id(self) -> str: ...

    @property
    def node_id(self) -> str: ...

    @property
    def activation_id(self) -> str:
        """The same after any crash, for the same work; 32 hexadecimal digits."""

    @property
    def idempotency_key(self) -> str:
        """`activation_id` with the digest of the input: give it to services that accept such a key."""

    @property
    def attempt(self) -> int:
        """Which try this is, from 1, across resumes."""

    @property
    def logger(self) -> logging.Logger: ...

    def set_variable(self, key: str, value: Any) -> None:
        """Change a variable, as `Result(set=...)` does; recorded with the node's result."""

    def add_tokens(self, tokens_in: int = 0, tokens_out: int = 0) -> None:
        """Count tokens that a model read and wrote; recorded with the node's result."""

    @property
    def progress(self) -> Any:
        """What this activation last saved with `save_progress()`, in an earlier attempt or process; else None."""

    def save_progress(self, value: Any) -> Any:
        """Record how far this activation is; it is durable when this returns (in `exit` mode it is durable at the end).

        :raises ValueNotStorable: the value cannot be recorded.
        """

    def ask(self, prompt: str, *, name: str | None = None, schema: Any = None) -> Any:
        """The answer to a question, if it was given; otherwise this activation ends here and starts again from its top
        once it was: so ask first, act afterwards.

        `name` tells questions of one activation apart: `answer`, `answer_2`, ... by default. `schema` is what the
        answer must be: an annotation (`bool`, `Literal["yes", "no"]`, a class), into which the answer is then
        structured, or a JSON Schema as a dict.
        """


@attrs.frozen
class Result:
    """A node's return value with more to say than the value.

    `set` changes variables: for one with the reducer `append` the value is an item, with `add` what is added, with
    `merge` the keys to update. `goto` names the next node or nodes instead of the edges; each must be declared in the
    node's `targets`. `status` is a word that is recorded with the step, for people: `skipped`, `partial`.
    """

    value: Any = None
    set: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True)
    goto: str | Sequence[str] | None = attrs.field(default=None, kw_only=True)
    status: str | None = attrs.field(default=None, kw_only=True)


@attrs.frozen
class Send:
    """One message for one node. A node that returns a list of them fans out to its declared `targets`."""

    node: str
    value: Any


class Pause(BaseException):
    """Raised in a node, it ends this activation until the question is answered; `context.ask()` raises it.

    No `Exception`: a node that catches those to try something else must not catch this.
    """

    def __init__(self, prompt: str, *, name: str = "answer", schema: Any = None) -> None:
        super().__init__(prompt)
        self.prompt = prompt
        self.name = name
        self.schema = schema


@attrs.frozen
class NodeFunction:
    """A function that a graph may call, with what its signature says of it."""

    name: str
    call: Callable[..., Any]
    version: str | None = None
    effects: bool = False
    is_async: bool = False
    wants_input: bool = True
    wants_context: bool = False
    annotation: Any = inspect.Parameter.empty

    @classmethod
    def of(cls, function: Callable[..., Any]) -> NodeFunction:
        """Read `function`'s signature.

        :raises TypeError: if it takes more than a value and `context`.
        """
        options: Mapping[str, Any] = getattr(function, MARK, {})
        try:
            signature = inspect.signature(function, eval_str=True)
        except NameError:  # an annotation that exists only for the type checker; it then structures nothing
            signature = inspect.signature(function)
        taken = [p for p in signature.parameters.values() if p.name != "context"]
        needed = [p for p in taken if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        inputs = [p for p in taken if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(needed) > 1 or [p for p in needed if p not in inputs]:
            names = ", ".join(p.name for p in needed)
            raise TypeError(
                f"node function {function.__name__!r} must take one value and optionally `context`, not ({names})"
            )
        annotation = inputs[0].annotation if inputs else inspect.Parameter.empty
        version = options.get("version")
        if isinstance(version, str) and not is_name(version):
            raise TypeError(
                f"the version of node function {function.__name__!r} must be {NAME}, not {short.repr(version)}"
            )
        return cls(
            name=options.get("name") or function.__name__,
            call=function,
            version=version,
            effects=options.get("effects", False),
            is_async=inspect.iscoroutinefunction(function),
            wants_input=bool(inputs),
            wants_context="context" in signature.parameters,
            annotation=Any if isinstance(annotation, str) else annotation,
        )


@overload
def node(function: F, /) -> F: ...
@overload
def node(*, name: str | None = None, version: str | None = None, effects: bool = False) -> Callable[[F], F]: ...
def node(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    version: str | None = None,
    effects: bool = False,
) -> Any:
    """Mark a function as a node function; it stays a plain function that a test can call.

    `version`: change it when what the node means has changed, so that older traces are not continued with it
    unasked. `effects=True`: the node acts on the world outside; it starts only after what caused it is durable.
    """

    def mark(target: F) -> F:
        setattr(target, MARK, {"name": name, "version": version, "effects": effects})
        return target

    return mark if function is None else mark(function)


def lifespan(function: Callable[[], AsyncIterator[Any]]) -> Callable[[], Any]:
    """Mark an async generator function as what makes a graph's `context.deps`: what it yields is there from before the
    first node until after the last, for each executor that was given no `deps` of its own. One to a graph.

    ::

        @lifespan
        async def clients():
            async with httpx.AsyncClient() as client:
                yield client

    :raises TypeError: if it is none, or takes arguments.
    """
    if not inspect.isasyncgenfunction(function) or inspect.signature(function).parameters:
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(f"lifespan function {name!r} must be an `async def` without parameters that yields once")
    managed = asynccontextmanager(function)
    setattr(managed, LIFESPAN, True)
    return managed
