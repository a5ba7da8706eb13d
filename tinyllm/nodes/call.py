"""Calling a node function: its arguments from captured bytes, its result captured as bytes.

All of it happens where the function runs: in the event loop, in a worker thread or in a worker process.
"""

from __future__ import annotations

import inspect
import logging
import os
import traceback
from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property
from typing import Any

import anyio.from_thread
import attrs

from tinyllm.errors import NodeError, TinyLLMError, ValueMutated, ValueNotStorable
from tinyllm.graph.ids import NAME, activation_id, idempotency_key, is_name
from tinyllm.graph.messages import ErrorInfo, Message
from tinyllm.graph.node import NodeFunction, Pause, Result, Send
from tinyllm.graph.payload import Captured, encode_payload
from tinyllm.graph.questions import Asked, redacted, schema_of
from tinyllm.graph.records import record
from tinyllm.graph.redact import RedactedLogger, Redaction
from tinyllm.graph.structure import structure, structurer
from tinyllm.graph.tags import short
from tinyllm.graph.values import capture, restore
from tinyllm.graph.variables import Variables, Version, capture_variables

ERROR_TEXT = 20_000
"""Characters that are recorded of an error's text, and of its traceback."""

Save = Callable[[bytes], Coroutine[Any, Any, None]]
"""Records a captured value as a running activation's progress; returns when it is durable."""

_OURS = os.path.dirname(os.path.dirname(__file__)) + os.sep


@record(eq=False)
class Call:
    """One attempt at an activation: everything a function is called with. It may cross to another process."""

    trace_id: str
    node_id: str
    causal: bytes
    """The activation's causal id."""
    attempt: int
    input: Captured
    sources: tuple[tuple[int, str], ...]
    """(message seq, source node) of what the input came from."""
    versions: Mapping[str, Version]
    progress: bytes | None = None
    asked: tuple[Asked, ...] = ()
    """What it asked in earlier starts, with the answers."""

    @property
    def activation(self) -> bytes:
        """The activation's id. Made when somebody asks: most nodes do not."""
        return activation_id(self.trace_id, self.causal)


@record
class Output:
    """A node's result, captured: nothing in it can change any more."""

    body: bytes
    sets: tuple[tuple[str, bytes], ...] = ()
    goto: tuple[str, ...] | None = None
    sends: tuple[tuple[str, bytes], ...] | None = None
    status: str | None = None
    tokens: tuple[int, int] = (0, 0)
    """In, out."""


@record
class Failure:
    """Why an attempt failed. `kinds`: the names of the exception's class and its bases, by which retries choose."""

    error: ErrorInfo
    kinds: tuple[str, ...] = ()


class Context:
    """The `NodeContext` that a `def` gets; it may be used from the thread, or process, that runs the function."""

    def __init__(self, call: Call, deps: Any, save: Save | None, redaction: Redaction | None) -> None:
        self._call = call
        self._save = save
        self._redaction = redaction
        self._sets: dict[str, Any] = {}
        self._questions = 0
        self.tokens = (0, 0)
        self.deps = deps
        self.variables: Mapping[str, Any] = Variables(call.versions)

    @property
    def trace_id(self) -> str:
        return self._call.trace_id

    @property
    def node_id(self) -> str:
        return self._call.node_id

    @property
    def activation_id(self) -> str:
        return self._call.activation.hex()

    @property
    def idempotency_key(self) -> str:
        return idempotency_key(self._call.activation, self._call.input.digest)

    @property
    def attempt(self) -> int:
        return self._call.attempt

    @cached_property
    def logger(self) -> logging.Logger:
        logger = logging.getLogger(f"tinyllm.node.{self._call.node_id}")
        return logger if self._redaction is None else RedactedLogger(logger, self._redaction)

    def set_variable(self, key: str, value: Any) -> None:
        self._sets[key] = value

    @property
    def sets(self) -> Mapping[str, Any]:
        return self._sets

    def add_tokens(self, tokens_in: int = 0, tokens_out: int = 0) -> None:
        if not all(isinstance(count, int) and count >= 0 for count in (tokens_in, tokens_out)):
            raise NodeError(self.node_id, f"tokens are counted in whole numbers, not {tokens_in!r} and {tokens_out!r}")
        self.tokens = (self.tokens[0] + tokens_in, self.tokens[1] + tokens_out)

    @property
    def progress(self) -> Any:
        return None if self._call.progress is None else restore(self._call.progress)

    def save_progress(self, value: Any) -> Any:
        save, body = self._saver(value)
        anyio.from_thread.run(save, body)

    def ask(self, prompt: str, *, name: str | None = None, schema: Any = None) -> Any:
        self._questions += 1
        if name is None:
            name = "answer" if self._questions == 1 else f"answer_{self._questions}"
        for asked in self._call.asked:
            if asked.name == name and asked.answer is not None:
                answer = restore(asked.answer)
                is_type = schema is not None and not isinstance(schema, Mapping)
                return structure(answer, schema, f"nodes.{self.node_id}: answer {name!r}") if is_type else answer
        raise Pause(prompt, name=name, schema=schema)

    def _saver(self, value: Any) -> tuple[Save, bytes]:
        if self._save is None:
            raise NodeError(self.node_id, "a worker process cannot save progress; leave out `process: true`")
        body = capture(value, f"nodes.{self.node_id}: progress")
        if self._redaction is not None:
            body = self._redaction.body(body)
        self._call = attrs.evolve(self._call, progress=body)
        return self._save, body


class AsyncContext(Context):
    """The one that an `async def` gets."""

    async def save_progress(self, value: Any) -> None:
        save, body = self._saver(value)
        await save(body)

    async def ask(self, prompt: str, *, name: str | None = None, schema: Any = None) -> Any:
        return super().ask(prompt, name=name, schema=schema)


class Caller:
    """Turns calls into arguments, and results into outputs, for one function."""

    def __init__(
        self,
        function: NodeFunction,
        *,
        deps: Any = None,
        debug_mutation: bool = False,
        redaction: Redaction | None = None,
    ) -> None:
        self.function = function
        self._redaction = redaction
        self._deps = deps
        self._debug = debug_mutation
        self._messages = function.annotation in (Message, list[Message])
        self._structure = None if self._messages else structurer(function.annotation)

    def prepare(self, call: Call, save: Save | None = None) -> Prepared:
        """The arguments of one call. `save` is None where nothing can be saved from.

        :raises ValueMismatch: the input does not fit the parameter's annotation.
        """
        if self._debug:
            # Objects of its own for each call: a change is then found where it was made.
            fresh = {key: version.fresh() for key, version in call.versions.items()}
            call = attrs.evolve(call, input=call.input.fresh(), versions=fresh)
        kind = AsyncContext if self.function.is_async else Context
        context = kind(call, self._deps, save, self._redaction) if self.function.wants_context else None
        arguments: list[Any] = []
        if self.function.wants_input:
            if self._messages:
                arguments.append(self._as_messages(call))
            elif self._structure is None:
                arguments.append(call.input.value)
            else:
                arguments.append(self._structure(call.input.value, f"nodes.{call.node_id}: value"))
        return Prepared(call, arguments, {} if context is None else {"context": context}, context)

    def attempt(self, call: Call, save: Save | None = None) -> Output | Asked:
        """One call of a plain function, from its arguments to its output, or to what it asks."""
        prepared = self.prepare(call, save)
        try:
            returned = self.function.call(*prepared.arguments, **prepared.keywords)
        except Pause as pause:
            return self.asked(call, pause)
        return self.output(prepared, returned)

    def asked(self, call: Call, pause: Pause) -> Asked:
        """As `asked_by`, redacted."""
        asked = asked_by(call, pause)
        return asked if self._redaction is None else redacted(asked, self._redaction)

    def output(self, prepared: Prepared, returned: Any) -> Output:
        """Capture what the function returned and set.

        :raises ValueNotStorable: naming the path to what cannot be stored.
        :raises ValueMutated: it changed what it was lent (checked only with `debug_mutation`).
        """
        if self._debug:
            _check_unchanged(prepared)
        node_id = prepared.call.node_id
        sets: dict[str, Any] = {}
        tokens = (0, 0)
        if prepared.context is not None:
            sets.update(prepared.context.sets)
            tokens = prepared.context.tokens
        goto: tuple[str, ...] | None = None
        status: str | None = None
        if isinstance(returned, Result):
            status = returned.status
            if not (status is None or is_name(status)):
                raise NodeError(node_id, f"the status of a result is {NAME}, not {short.repr(status)}")
            if status is not None and self._redaction is not None:
                status = self._redaction.text(status)
            sets.update(returned.set)
            if returned.goto is not None:
                goto = (returned.goto,) if isinstance(returned.goto, str) else tuple(returned.goto)
            returned = returned.value
        redaction = self._redaction
        captured = tuple(capture_variables(sets, f"nodes.{node_id}: set", redaction).items()) if sets else ()
        if isinstance(returned, list) and any(isinstance(item, Send) for item in returned):
            if goto is not None or not all(isinstance(item, Send) for item in returned):
                raise NodeError(
                    node_id, "it returned sends together with other items or a goto; return only sends, or none"
                )
            sends = tuple(
                (item.node, encode_payload(item.value, f"nodes.{node_id}: send[{index}]", redaction))
                for index, item in enumerate(returned)
            )
            return Output(b"null", captured, None, sends, None, tokens)
        body = encode_payload(returned, f"nodes.{node_id}: value", redaction)
        return Output(body, captured, goto, None, status, tokens)

    @staticmethod
    def _as_messages(call: Call) -> Message | list[Message]:
        parts = call.input.parts
        payloads = [call.input.payload] if parts is None else [part.payload for part in parts]
        messages = [
            Message(call.trace_id, source, call.node_id, payload=payload, message_id=f"{call.trace_id}#{seq}")
            for (seq, source), payload in zip(call.sources, payloads, strict=True)
        ]
        return messages[0] if parts is None else messages


@record(eq=False)
class Prepared:
    call: Call
    arguments: list[Any]
    keywords: dict[str, Any]
    context: Context | None


def asked_by(call: Call, pause: Pause) -> Asked:
    """The question that a node raised.

    :raises NodeError: it has the answer: nobody can give another, and the trace would wait for ever; or its name can be
        none.
    :raises ValueNotStorable: there is no JSON Schema for what it wants, or that or the prompt cannot be recorded.
    """
    name = pause.name
    if any(asked.name == name and asked.answer is not None for asked in call.asked):
        remedy = f"take the answer from `context.ask(..., name={name!r})`, or ask under another name"
        raise NodeError(call.node_id, f"it asks {name!r} again, which is answered; {remedy}")
    if not is_name(name):
        raise NodeError(call.node_id, f"it asks under the name {short.repr(name)}; a question's name is {NAME}")
    path = f"nodes.{call.node_id}: "
    asked = Asked(name, str(pause.prompt), schema_of(pause.schema, f"{path}schema of {name!r}"))
    # Whatever cannot be recorded fails its node here: to the run that would record it, it would be its own mistake.
    capture(asked.prompt, f"{path}prompt of {name!r}")
    capture(asked.schema, f"{path}schema of {name!r}")
    return asked


def pause_in(raised: BaseException) -> Pause:
    """The `Pause` that was raised, perhaps in a task group.

    :raises BaseException: what was raised besides, or instead.
    """
    while isinstance(raised, BaseExceptionGroup):
        pauses, others = raised.split(Pause)
        if pauses is None:
            break
        if others is not None:
            raise others
        raised = pauses.exceptions[0]
    if not isinstance(raised, Pause):
        raise raised
    return raised


def failure(
    node_id: str,
    error: BaseException,
    function: NodeFunction | None = None,
    redaction: Redaction | None = None,
) -> Failure:
    kinds = (kind.__name__ for kind in type(error).__mro__ if kind is not object)
    info = _error_info(node_id, error, function)
    if redaction is not None:
        shown = None if info.traceback is None else redaction.text(info.traceback)
        info = attrs.evolve(info, message=redaction.text(info.message), traceback=shown)
    return Failure(info, tuple(kinds))


def _error_info(node_id: str, error: BaseException, function: NodeFunction | None) -> ErrorInfo:
    """The failure as it is recorded, with the traceback inside the user's code; for one that arose before or behind it
    (in the value it was to get, or returned), the place of `function`."""
    theirs = users_frames(traceback.extract_tb(error.__traceback__))
    if not theirs and function is not None:
        theirs = [_definition(function)]
    return ErrorInfo(
        type=type(error).__name__,
        message=_text(error),
        node_id=node_id,
        traceback=_recordable("".join(traceback.format_list(theirs))) or None,
    )


def users_frames(frames: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """What was called by us, and not by us alone: the frames inside the last of ours."""
    ours = [at for at, frame in enumerate(frames) if frame.filename.startswith(_OURS)]
    return frames[ours[-1] + 1 :] if ours else list(frames)


def _definition(function: NodeFunction) -> traceback.FrameSummary:
    code = inspect.unwrap(function.call).__code__
    return traceback.FrameSummary(code.co_filename, code.co_firstlineno, function.call.__qualname__)


def _text(error: BaseException) -> str:
    try:
        text = str(error)
        if error.__cause__ is not None and not isinstance(error, TinyLLMError):
            text += f" (from {type(error.__cause__).__name__}: {error.__cause__})"
    except Exception:  # a broken __str__ must not hide the failure
        text = "(its text cannot be shown)"
    return _recordable(text)


def _recordable(text: str) -> str:
    """`text` as it can be recorded: a lone surrogate, or all that some service answered, would make the failure itself
    unstorable."""
    if len(text) > ERROR_TEXT:
        text = f"{text[:ERROR_TEXT]} ... ({len(text)} characters)"
    return text.encode("utf-8", "backslashreplace").decode()


def _check_unchanged(prepared: Prepared) -> None:
    call = prepared.call
    _compare(call.node_id, "value", call.input.fresh().value, call.input.value)
    for key, version in call.versions.items():
        _compare(call.node_id, f"variables[{key!r}]", version.fresh().value, version.value)


def _compare(node_id: str, path: str, before: Any, now: Any) -> None:
    try:
        same = capture(now) == capture(before)
    except ValueNotStorable:
        same = False
    if not same:
        raise ValueMutated(node_id, _first_difference(path, before, now))


def _first_difference(path: str, before: Any, now: Any) -> str:
    if type(before) is type(now):
        if isinstance(before, dict) and before.keys() == now.keys():
            for key, value in before.items():
                if value != now[key]:
                    return _first_difference(f"{path}[{key!r}]", value, now[key])
        if isinstance(before, list) and len(before) == len(now):
            for index, value in enumerate(before):
                if value != now[index]:
                    return _first_difference(f"{path}[{index}]", value, now[index])
    return path
