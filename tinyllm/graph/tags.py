"""The closed registry of tags: how captured JSON says what JSON has no word for.

A tag is an object with a single key that begins with `$`::

    {"$tuple": [item, ...]}                a namedtuple too: the receiver's annotation restores its class
    {"$set": [item, ...]}                  in the order of the items' own bytes: the same in every process
    {"$frozenset": [item, ...]}
    {"$dict": [[key, value], ...]}         a dict with a key that is no `str`, or that begins with `$`
    {"$int": "-0x1f"}                      beyond 64 bits; hexadecimal, as Python caps decimal digits
    {"$bytes": "base64"}
    {"$datetime": "ISO 8601"}              then, as needed, `[Zone/Key]` of a ZoneInfo and `[fold=1]`
    {"$date": "..."}, {"$time": "..."}     likewise
    {"$timedelta": [days, seconds, microseconds]}
    {"$decimal": "1.50"}, {"$uuid": "..."}
    {"$path": "a/b"}                       `pathlib.Path`; `$posixpath`, `$windowspath`: the pure ones
"""

from __future__ import annotations

import base64
import re
import reprlib
import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from zoneinfo import ZoneInfo

from tinyllm.errors import ValueNotReadable, ValueNotStorable

short = reprlib.Repr()
"""A `repr` that is never long and never raises."""
short.maxstring = short.maxother = 80


# -- writing ---------------------------------------------------------------------------------------------------


def _clock_text(value: datetime | time) -> str:
    zone = value.tzinfo
    key = zone.key if isinstance(zone, ZoneInfo) else None
    if zone is not None and key is None and type(zone) is not timezone:
        kind = f"{type(zone).__module__}.{type(zone).__qualname__}"
        raise ValueNotStorable(".tzinfo", f"is a {kind}; use datetime.timezone, or zoneinfo.ZoneInfo with a key")
    return value.isoformat() + (f"[{key}]" if key else "") + "[fold=1]" * value.fold


def _decimal_text(value: Decimal) -> str:
    if not value.is_finite():
        raise ValueNotStorable("", f"is {value}, which is no number; return None instead")
    return str(value)


WRITERS: dict[type, tuple[str, Callable[[Any], Any]]] = {
    datetime: ("$datetime", _clock_text),
    date: ("$date", date.isoformat),
    time: ("$time", _clock_text),
    timedelta: ("$timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: ("$decimal", _decimal_text),
    uuid.UUID: ("$uuid", str),
    type(Path()): ("$path", str),
    PurePosixPath: ("$posixpath", str),
    PureWindowsPath: ("$windowspath", str),
}
"""By exact type, as what a subclass adds would be lost: the tag, and what makes its content."""


# -- reading ---------------------------------------------------------------------------------------------------


def read_tag(value: dict[str, Any]) -> Any:
    """What the object `value`, which has a key that begins with `$`, stands for; its content was already read.

    :raises ValueNotReadable: the tag is unknown or its content is not what a writer makes.
    """
    tag, *others = value
    if others:
        raise ValueNotReadable(f"the object with the keys {short.repr(list(value))} is neither a tag nor a plain dict")
    if tag not in _READERS:
        raise ValueNotReadable(f"it has the tag {short.repr(tag)}, which this version of tinyllm does not know")
    taken, read = _READERS[tag]
    content = value[tag]
    try:
        if type(content) is taken:
            return read(content)
    except (ValueError, TypeError, OverflowError, InvalidOperation):
        pass
    raise ValueNotReadable(f"the tag {tag!r} has the malformed content {short.repr(content)}")


def _exactly(read: Callable[[str], Any], write: Callable[[Any], str]) -> Callable[[str], Any]:
    """A reader that takes only what the writer writes: `int` and `UUID` allow spaces, underscores, braces, ..."""

    def check(text: str) -> Any:
        value = read(text)
        if write(value) != text:
            raise ValueError(text)
        return value

    return check


_CLOCK = re.compile(r"(?P<text>[^\[]+)(?:\[(?P<zone>[^\[=]+)\])?(?P<fold>\[fold=1\])?")


def _zone(key: str) -> ZoneInfo:
    try:
        return ZoneInfo(key)
    except (KeyError, OSError):
        raise ValueNotReadable(f"this machine does not know the time zone {key!r}; install tzdata") from None


def _datetime(text: str) -> datetime:
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(text)
    value = datetime.fromisoformat(match["text"]).replace(fold=1 if match["fold"] else 0)
    if match["zone"] is None:
        return value
    zone = _zone(match["zone"])
    local = value.replace(tzinfo=zone)
    # Where the zone's rules have changed since it was written, the instant stays and the clock moves.
    return local if local.utcoffset() == value.utcoffset() else value.astimezone(zone)


def _time(text: str) -> time:
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise ValueError(text)
    value = time.fromisoformat(match["text"]).replace(fold=1 if match["fold"] else 0)
    return value if match["zone"] is None else value.replace(tzinfo=_zone(match["zone"]))


def _timedelta(content: list[Any]) -> timedelta:
    value = timedelta(*content)
    if [value.days, value.seconds, value.microseconds] != content or set(map(type, content)) != {int}:
        raise ValueError(content)
    return value


def _decimal(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(text)
    return value


def _distinct(kind: Callable[[Any], Any]) -> Callable[[list[Any]], Any]:
    def read(content: list[Any]) -> Any:
        value = kind(content)
        if len(value) != len(content):
            raise ValueError(content)
        return value

    return read


def _dict(content: list[Any]) -> dict[Any, Any]:
    value = dict(content)
    if len(value) != len(content) or any(type(pair) is not list for pair in content):
        raise ValueError(content)
    return value


_READERS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "$tuple": (list, tuple),
    "$set": (list, _distinct(set)),
    "$frozenset": (list, _distinct(frozenset)),
    "$dict": (list, _dict),
    "$int": (str, _exactly(lambda text: int(text, 16), "{:#x}".format)),
    "$bytes": (str, lambda text: base64.b64decode(text, validate=True)),
    "$datetime": (str, _datetime),
    "$date": (str, _exactly(date.fromisoformat, date.isoformat)),
    "$time": (str, _time),
    "$timedelta": (list, _timedelta),
    "$decimal": (str, _decimal),
    "$uuid": (str, _exactly(uuid.UUID, str)),
    "$path": (str, Path),
    "$posixpath": (str, PurePosixPath),
    "$windowspath": (str, PureWindowsPath),
}
"""By tag: the type of its content, and what makes the value of it."""
