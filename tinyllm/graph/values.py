"""The one codec that captures values: what a node returned, as bytes that can no longer change.

The bytes are compact UTF-8 JSON. `None`, `bool`, `int` of 64 bits, finite `float`, `str`, `list` and `dict` with `str`
keys are JSON's own; `tags.py` lists what else can be stored, and how. Enum members become their values, instances of
attrs classes, dataclasses and pydantic models the dict of their fields, and instances of subclasses of JSON's types,
`tuple`, `set`, `frozenset` and `bytes` the plain type. Anything else is refused.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import math
import sys
import types
from array import array
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import attrs
import msgspec

from tinyllm.errors import ValueNotReadable, ValueNotStorable
from tinyllm.graph.tags import WRITERS, read_tag, short

MAX_BYTES = 64 * 2**20
"""The largest captured value."""

MAX_DEPTH = 200
"""How deep containers may be nested: at most three JSON levels for each, well within Python's recursion limit."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

_LEAST_INT, _GREATEST_INT = -(2**63), 2**64 - 1


def capture(value: Any, path: str = "value") -> bytes:
    """The bytes of `value`.

    :raises ValueNotStorable: its `path` begins with the one given here and leads to the fault.
    """
    body = None
    try:
        try:
            body = _encode(value if _is_plain(value) else _Capture().run(value, path))
        except UnicodeEncodeError:  # a lone surrogate, which only the careful walk can name
            body = _encode(_Capture().run(value, path))
    except RecursionError:  # the caller's own stack is nearly used up
        raise ValueNotStorable(path, "is nested too deeply") from None
    except _TooLarge:
        pass
    if body is None or len(body) > MAX_BYTES:
        limit = f"{MAX_BYTES // 2**20} MiB"
        raise ValueNotStorable(path, f"is larger than {limit} when captured; keep it elsewhere and return where it is")
    return body


def restore(body: bytes) -> Any:
    """The value that was captured as `body`; a new object each time.

    :raises ValueNotReadable: `body` is not what `capture` makes.
    """
    try:
        value = _decode(body)
        kind = type(value)  # before the search, which takes longer than to decode a text
        return _untag(value) if (kind is dict or kind is list) and b'"$' in body else value
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueNotReadable(str(error)) from None
    except RecursionError:
        raise ValueNotReadable("it is nested too deeply") from None


T = TypeVar("T")
P = ParamSpec("P")

NONSENSE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What Python raises where something restored is not what the code that reads it relies on."""


def reads(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Have a function that reads captured bytes raise `ValueNotReadable` where they are those of a value, but not of
    `what` was captured for it: a store may have been written by somebody else."""

    def decorate(read: Callable[P, T]) -> Callable[P, T]:
        @wraps(read)
        def checked(*args: P.args, **options: P.kwargs) -> T:
            try:
                return read(*args, **options)
            except NONSENSE as error:
                raise ValueNotReadable(f"it is not {what} ({str(error) or type(error).__name__})") from error

        return checked

    return decorate


def _untag(value: Any) -> Any:
    """What `value`, decoded JSON, stands for; its lists and dicts are changed in place, from the innermost out."""
    kind = type(value)
    if kind is list:
        for index, item in enumerate(value):
            kind = type(item)
            if kind is dict or kind is list:
                value[index] = _untag(item)
    elif kind is dict:
        tagged = False
        for key, item in value.items():
            tagged = tagged or key[:1] == "$"
            kind = type(item)
            if kind is dict or kind is list:
                value[key] = _untag(item)
        if tagged:
            return read_tag(value)
    return value


def digest(body: bytes) -> str:
    """A fingerprint of captured bytes: 32 hexadecimal digits."""
    return hashlib.blake2b(body, digest_size=16).hexdigest()


# -- capture ---------------------------------------------------------------------------------------------------


class _TooLarge(Exception):
    """The value takes more than `MAX_BYTES`; raised before they are made."""


def _is_plain(value: Any) -> bool:
    """Whether msgspec writes `value` exactly as it is (but for surrogates, which it refuses).

    msgspec cannot be asked to be strict: it writes tuples, sets, dates and dataclasses as JSON that reads back as
    something else, and NaN as null. False is no verdict: the careful walk then converts, or refuses.
    """
    kind = type(value)
    if kind is dict or kind is list:
        return _weigh(value, MAX_DEPTH, set()) is not None
    if kind is str:
        if len(value) > MAX_BYTES:
            raise _TooLarge
        return True
    if kind is int:
        return bool(_LEAST_INT <= value <= _GREATEST_INT)
    return value is None or kind is bool or (kind is float and math.isfinite(value))


def _weigh(value: Any, depth: int, seen: set[int]) -> int | None:
    """The least number of bytes that `value`, a list or dict, takes; None if it is not plain.

    A container met twice is not plain: a few lists that hold each other twice over can make a tree of any size, which
    only the careful walk gets through in time.
    """
    if depth == 0 or id(value) in seen:
        return None
    seen.add(id(value))
    items: Iterable[Any] = value
    size = 2 * len(value)
    if type(value) is dict:
        try:
            keys = "".join(value)
        except TypeError:
            return None
        if "$" in keys:
            return None
        size += len(keys)
        items = value.values()
    elif len(value) > 16:  # long lists mostly hold one type: then C does the work
        kinds = set(map(type, value))
        if kinds == {str}:
            size += sum(map(len, value))
            items = ()
        elif kinds == {float}:
            if not all(map(math.isfinite, value)):
                return None
            items = ()
        elif kinds == {int}:
            try:
                array("q", value)
            except OverflowError:
                return None
            items = ()
    for item in items:
        kind = type(item)
        if kind is str:
            size += len(item)
        elif kind is int:
            if not _LEAST_INT <= item <= _GREATEST_INT:
                return None
        elif kind is dict or kind is list:
            inner = _weigh(item, depth - 1, seen)
            if inner is None:
                return None
            size += inner
        elif kind is float:
            if not math.isfinite(item):
                return None
        elif kind is not bool and item is not None:
            return None
    if size > MAX_BYTES:
        raise _TooLarge
    return size


# -- the careful walk ------------------------------------------------------------------------------------------


@attrs.frozen
class _Parts:
    """What a container consists of."""

    members: list[Any]
    part: Callable[[int], str]
    """Where member number n is, in Python's notation; empty for what cannot be reached by any: keys, set elements."""
    join: Callable[[list[Any]], Any]
    """What the container becomes, given what its members became."""


@attrs.frozen
class _Done:
    """A container that was converted: what it became, the bytes it takes at least, how many levels it has."""

    value: Any
    result: Any
    size: int
    height: int


class _Capture:
    """Converts what needs a tag, and names the place of what cannot be stored."""

    def __init__(self) -> None:
        self.size = 0
        self.height = 0
        self.open: set[int] = set()
        # By id, so that what is mentioned a million times is walked once. It keeps the values alive, hence their ids.
        self.done: dict[int, _Done] = {}

    def run(self, value: Any, path: str) -> Any:
        try:
            return self.convert(value, 0)
        except ValueNotStorable as fault:
            raise ValueNotStorable(path + fault.path, fault.reason) from None

    def convert(self, value: Any, depth: int) -> Any:
        """`value`, with `depth` containers around it, as JSON with tags.

        Nothing but itself calls it again, so that one level costs one frame. Paths of faults are relative:
        each level puts its part in front as they pass.
        """
        kind = type(value)
        if value is None or kind is bool:
            return value
        if isinstance(value, enum.Enum):
            return self.convert(value.value, depth)
        if isinstance(value, (str, int, float, bytes)):
            return self.scalar(value)
        if writer := WRITERS.get(kind):
            tag, write = writer
            content = write(value)
            return {tag: self.scalar(content) if isinstance(content, str) else content}
        if done := self.done.get(id(value)):
            self.add(done.size)
            self.reach(depth + done.height)
            return done.result
        if id(value) in self.open:
            raise ValueNotStorable("", "contains itself")
        parts = _parts(value)
        size, height = self.size, self.height
        self.height = 0
        self.reach(depth + 1)
        self.open.add(id(value))
        results = []
        for number, member in enumerate(parts.members):
            self.add(2)
            try:
                results.append(self.convert(member, depth + 1))
            except ValueNotStorable as fault:
                if part := parts.part(number):
                    fault.path = part + fault.path
                    raise
                inner = f"has {short.repr(member)} in it, which{fault.path} {fault.reason}"
                raise ValueNotStorable("", inner) from None
        result = parts.join(results)
        self.open.remove(id(value))
        self.done[id(value)] = _Done(value, result, self.size - size, self.height - depth)
        self.height = max(self.height, height)
        return result

    def scalar(self, value: str | int | float | bytes) -> Any:
        if isinstance(value, str):
            self.add(len(value))
            try:
                value.isascii() or value.encode()
            except UnicodeEncodeError as error:
                reason = f"has the lone surrogate {value[error.start]!a} at index {error.start}; return text without it"
                raise ValueNotStorable("", reason) from None
            return str.__str__(value)
        if isinstance(value, int):
            if _LEAST_INT <= value <= _GREATEST_INT:
                return int.__int__(value)
            self.add(value.bit_length() // 4)
            return {"$int": f"{int.__int__(value):#x}"}
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ValueNotStorable("", f"is {float.__repr__(value)}, which JSON cannot hold; return None instead")
            return float.__float__(value)
        self.add(len(value) * 4 // 3)
        return {"$bytes": b64encode(value).decode()}

    def add(self, size: int) -> None:
        self.size += size
        if self.size > MAX_BYTES:
            raise _TooLarge

    def reach(self, height: int) -> None:
        if height > MAX_DEPTH:
            raise ValueNotStorable("", f"is nested more than {MAX_DEPTH} levels deep")
        self.height = max(self.height, height)


def _parts(value: Any) -> _Parts:
    if isinstance(value, list):
        return _Parts(list(value), "[{}]".format, list)
    if isinstance(value, tuple):
        return _Parts(list(value), "[{}]".format, lambda results: {"$tuple": results})
    if isinstance(value, (dict, types.MappingProxyType)):
        return _pairs(value, lambda key: f"[{short.repr(key)}]")
    if isinstance(value, (set, frozenset)):
        tag = "$set" if isinstance(value, set) else "$frozenset"
        return _Parts(list(value), lambda _: "", lambda results: {tag: _join_set(results)})
    kind: Any = type(value)
    if (names := _class_fields(kind)) is not None:
        fields = names
        try:
            members = [getattr(value, name) for name in fields]
        except AttributeError as error:
            raise ValueNotStorable(f".{error.name}", "is not set") from None
        return _Parts(members, lambda n: f".{fields[n]}", lambda results: dict(zip(fields, results, strict=True)))
    pydantic = sys.modules.get("pydantic")  # whoever has a model has imported it; we need not
    if pydantic and isinstance(value, pydantic.RootModel):
        return _Parts([value.root], lambda _: ".root", lambda results: results[0])
    if pydantic and isinstance(value, pydantic.BaseModel):
        return _pairs(dict(value), ".{}".format)
    hint = _HINTS.get(kind.__name__, "return plain data (dicts, lists, text, numbers), a dataclass or an attrs class")
    raise ValueNotStorable("", f"is of type {kind.__module__}.{kind.__qualname__}, which cannot be stored; {hint}")


_HINTS = {
    "coroutine": "await it",
    "generator": "return a list of what it yields",
    "bytearray": "return bytes",
    "memoryview": "return bytes",
    "range": "return a list",
    "deque": "return a list",
    "ndarray": "return its .tolist()",
    "DataFrame": "return its .to_dict('records')",
}


@lru_cache(maxsize=1024)  # looking it up costs more than capturing a field
def _class_fields(kind: Any) -> list[str] | None:
    if attrs.has(kind):
        return [field.name for field in attrs.fields(kind)]
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else None


def _pairs(value: Mapping[Any, Any], part: Callable[[Any], str]) -> _Parts:
    pairs = list(value.items())
    members = [member for pair in pairs for member in pair]
    return _Parts(members, lambda n: part(pairs[n // 2][0]) if n % 2 else "", _join_dict)


def _join_dict(results: list[Any]) -> dict[str, Any]:
    keys, items = results[::2], results[1::2]
    _check_distinct(keys, "keys")
    if all(type(key) is str and key[:1] != "$" for key in keys):
        return dict(zip(keys, items, strict=True))
    return {"$dict": list(zip(keys, items, strict=True))}


def _join_set(results: list[Any]) -> list[Any]:
    _check_distinct(results, "elements")
    return sorted(results, key=_encode)


def _check_distinct(results: list[Any], what: str) -> None:
    """Keys and elements must come back hashable, and as many: an enum member, for one, becomes its value."""
    try:
        distinct = {_untag(_decode(_encode(result))) if type(result) is dict else result for result in results}
    except TypeError:
        reason = f"has {what} that come back as dicts or lists, which cannot be {what}; use strings or tuples"
        raise ValueNotStorable("", reason) from None
    if len(distinct) != len(results):
        raise ValueNotStorable("", f"has {what} that become equal when they are stored; use plain values")
