"""Message payloads as bytes: a body is the captured value itself, or, where a payload says more, that in a tag."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

import attrs
import msgspec

from tinyllm.errors import ValueNotStorable
from tinyllm.graph.messages import ErrorInfo, Message, MessagePayload, TaskPayload
from tinyllm.graph.records import unguarded
from tinyllm.graph.redact import Redaction
from tinyllm.graph.values import MAX_BYTES, capture, digest, reads, restore

_items = msgspec.json.Decoder(list[msgspec.Raw]).decode

_TAG = b'{"$payload":'  # a captured dict never starts so: the codec escapes keys that begin with "$"
_WHOLE = b'{"$message":'
_SAYS_MORE = b'{"$'

_Payload = unguarded(MessagePayload)
_Message = unguarded(Message)


def encode_payload(value: Any, path: str = "value", redaction: Redaction | None = None) -> bytes:
    """The body of the message that carries `value`: any storable value, a `TaskPayload`, a `MessagePayload`, or
    a whole `Message`, of which only the payload counts.

    :raises ValueNotStorable: naming the path to the fault.
    """
    body = _encode_payload(value, path)
    return body if redaction is None else redaction.body(body)


def _encode_payload(value: Any, path: str) -> bytes:
    if isinstance(value, TaskPayload):
        value = (
            MessagePayload(task=value.content, content=value.content, metadata=value.metadata)
            if value.metadata
            else value.content
        )
    if isinstance(value, Message):
        value = value.payload
    if not isinstance(value, MessagePayload):
        return capture(value, path)
    said = {
        field.name: getattr(value, field.name)
        for field in attrs.fields(MessagePayload)
        if getattr(value, field.name) is not None
    }
    if not value.metadata:
        del said["metadata"]
    if said.keys() <= {"content"} or said.keys() <= {"structured"}:
        return capture(value.value, path)
    if isinstance(value.error, ErrorInfo):
        said["error"] = attrs.asdict(value.error)
    body = _TAG + capture(said, path) + b"}"
    if len(body) > MAX_BYTES:
        raise ValueNotStorable(path, f"it takes {len(body):,} bytes, more than the {MAX_BYTES:,} allowed")
    return body


@reads("a message's payload")
def decode_payload(body: bytes) -> MessagePayload:
    body = payload_of(body)
    if not body.startswith(_TAG):
        return MessagePayload.of(restore(body))
    said = restore(body[len(_TAG) : -1])
    if said.get("error") is not None:
        said["error"] = _error_of(said["error"])
    if not isinstance(said.get("metadata", {}), dict) or not isinstance(said.get("content"), str | None):
        raise TypeError("its content is no text, or its metadata no dict")
    return MessagePayload(**said)


def encode_message(message: Message, path: str = "message", redaction: Redaction | None = None) -> bytes:
    """The body of a message that a program made and saves: its payload, and what no trace could tell again.

    :raises ValueNotStorable: naming the path to the fault.
    """
    said = [message.trace_id, message.target_node, message.message_id, message.parent_id, message.created_at]
    return _WHOLE + b"[" + capture(said, path) + b"," + encode_payload(message, f"{path}.payload", redaction) + b"]}"


class Said(Protocol):
    """What a trace keeps of a message."""

    @property
    def seq(self) -> int: ...
    @property
    def node(self) -> str: ...
    @property
    def body(self) -> bytes: ...


@reads("a message")
def decode_messages(said: Iterable[Said], trace_id: str, began: datetime) -> list[Message]:
    """The messages of a trace that `began` then. What a body does not say of its message, the trace tells.

    Written out for what nearly every message is, without a call for each thing that it could be: there are many.
    """
    found = []
    for row in said:
        body = row.body
        of, target, message_id, parent, created_at = trace_id, None, f"{trace_id}#{row.seq}", None, began
        if not body.startswith(_SAYS_MORE):
            value = restore(body)
            content, structured = (value, None) if type(value) is str else (None, value)
            payload = _Payload(None, content, structured, None, None, None, None, None, {})
            payload.__class__ = MessagePayload
        else:
            if body.startswith(_WHOLE):
                own, body = map(bytes, _items(body[len(_WHOLE) : -1]))
                of, target, message_id, parent, created_at = restore(own)
            payload = decode_payload(body)
        message = _Message(of, row.node, target, payload, message_id, parent, created_at)
        message.__class__ = Message
        found.append(message)
    return found


@reads("a message")
def payload_of(body: bytes) -> bytes:
    """The body without what a message says beside its payload."""
    return bytes(_items(body[len(_WHOLE) : -1])[1]) if body.startswith(_WHOLE) else body


def encode_error(error: ErrorInfo) -> bytes:
    return capture(attrs.asdict(error))


@reads("an error")
def decode_error(body: bytes) -> ErrorInfo:
    return _error_of(restore(body))


def _error_of(said: dict[str, Any]) -> ErrorInfo:
    error = ErrorInfo(**said)
    if not all(isinstance(part, str | None) for part in attrs.astuple(error)):
        raise TypeError("a part of it is no text")
    return error


_UNREAD = object()


class Captured:
    """One captured payload: its bytes are the truth, its object is decoded once, when first read, and lent to all
    readers. (Two threads may both decode it at first; either object is as good.)

    Parts and items are made from bytes as well, never from an object that was lent: a reader may have changed that.
    """

    __slots__ = ("_body", "_items", "_payload", "_value", "parts")

    def __init__(self, body: bytes | None = None, *, parts: tuple[Captured, ...] | None = None) -> None:
        self._body = body
        self._items: list[Captured] | None = None
        self._payload: MessagePayload | None = None
        self._value: Any = _UNREAD
        self.parts = parts
        """What a join received: its value is the list of theirs."""

    @reads("a list with as many items as were handed on")
    def item(self, index: int) -> Captured:
        """The part of a list that one activation of a `for_each` edge receives."""
        if self._items is None:
            body = self.body
            if body.startswith(_TAG):
                body = capture(decode_payload(body).value)
            self._items = [Captured(bytes(item)) for item in _items(body)]
        return self._items[index]

    @property
    def body(self) -> bytes:
        if self._body is None:
            assert self.parts is not None
            self._body = capture([decode_payload(part.body).value for part in self.parts])
        return self._body

    @property
    def payload(self) -> MessagePayload:
        if self._payload is None:
            if self.parts is not None:
                self._payload = MessagePayload(structured=[part.value for part in self.parts])
            else:
                if self.body.startswith((_TAG, _WHOLE)):
                    self._payload = decode_payload(self.body)
                else:  # the object that is lent is one, whether as a value or in a payload
                    self._payload = MessagePayload.of(self.value)
        return self._payload

    @property
    def value(self) -> Any:
        if self._value is _UNREAD:
            body = self._body
            if self.parts is not None or body is None or body.startswith((_TAG, _WHOLE)):
                self._value = self.payload.value
            else:  # as nearly always; a payload costs more than many values
                self._value = restore(body)
        return self._value

    @property
    def digest(self) -> str:
        return digest(self.body)

    def fresh(self) -> Captured:
        """The same bytes, with an object of its own."""
        if self.parts is not None:
            return Captured(parts=tuple(part.fresh() for part in self.parts))
        return Captured(self.body)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (None, self.parts) if self.parts is not None else (self.body, None)


def _rebuild(body: bytes | None, parts: tuple[Captured, ...] | None) -> Captured:
    return Captured(body, parts=parts)
