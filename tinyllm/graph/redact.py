"""Keeping secrets out of what is captured: by the names they stand under, and by how they look.

A captured body is redacted before anything else sees it: what is stored is what the next node gets, live and after a
resume.
"""

from __future__ import annotations

import fnmatch
import logging
import re
import traceback
from base64 import b64decode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import msgspec

from tinyllm.errors import ConfigError, ValueNotStorable
from tinyllm.graph.values import capture, restore

MARK = "[redacted]"
"""What stands in the place of a secret."""

_MARKED = msgspec.json.encode(MARK)
_LISTS = ("$tuple", "$set", "$frozenset")
_PAIRS = "$dict"
_PAYLOAD = "$payload"

_MARKS = re.compile(r"(\[redacted(?: \d+)?\])")
"""And what tells those apart that have become equal."""

Rule = str | re.Pattern[str]
"""A name, in which `*`, `?` and `[...]` stand for characters as in file names, in any case; or a compiled regular
expression for what is a secret wherever it is found in a text."""


def redaction_of(rules: Sequence[Rule]) -> Redaction | None:
    """What `rules` redact; None where there are none, so that whoever has none pays nothing."""
    if not rules:
        return None
    names = [fnmatch.translate(rule) for rule in rules if isinstance(rule, str)]
    found = re.compile("|".join(names), re.IGNORECASE) if names else None
    return Redaction(found, tuple(rule for rule in rules if not isinstance(rule, str)))


_NO_NAME = frozenset("/(){}\\+^$|")
"""Characters of which a text is probably meant as a regular expression: as a name it would hide nothing."""


class Rules:
    """A validator: a sequence of rules."""

    allowed = (
        "a list of names, such as 'api_key' or '*_token', and of compiled regular expressions for text (on the command "
        "line between slashes), none of which matches an empty one"
    )

    def __call__(self, _: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        for rule in value:
            if isinstance(rule, re.Pattern):
                well = isinstance(rule.pattern, str) and rule.search("") is None
            else:
                well = isinstance(rule, str) and rule != "" and _NO_NAME.isdisjoint(rule)
            if not well:
                raise ConfigError(attribute.name, rule, self.allowed)


def rules(value: Any) -> Any:
    """A converter: a tuple of what was given, of which one is enough."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


@attrs.frozen
class Redaction:
    names: re.Pattern[str] | None
    patterns: tuple[re.Pattern[str], ...]

    def hides(self, name: str) -> bool:
        """Whether what stands under that name is a secret."""
        return self.names is not None and self.names.match(name) is not None

    def text(self, text: str) -> str:
        """`text`, with a mark for every part that looks like a secret."""
        for pattern in self.patterns:
            # What is a mark already stays one: a value is redacted again with every node that hands it on.
            parts = _MARKS.split(text)
            parts[::2] = (pattern.sub(MARK, part) for part in parts[::2])
            text = "".join(parts)
        return text

    def body(self, body: bytes, name: str = "") -> bytes:
        """The captured `body`, which stands under `name`, without secrets."""
        if self.hides(name):
            return _MARKED
        before = msgspec.json.decode(body)
        after = self._value(before)
        return body if after == before else msgspec.json.encode(after)

    def variables(self, captured: Mapping[str, bytes]) -> dict[str, bytes]:
        return {key: self.body(body, key) for key, body in captured.items()}

    def _value(self, value: Any) -> Any:
        """Captured JSON without secrets. Tags stay whole: what is in one is replaced with it."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if not isinstance(value, dict):
            return value
        tag = next(iter(value), "")
        if not tag.startswith("$"):
            return dict(_distinct((self.text(key), self._under(key, item)) for key, item in value.items()))
        content = value[tag]
        if tag == _PAYLOAD:  # the names of its parts are not the user's
            return {tag: {part: self._value(item) for part, item in content.items()}}
        if tag == _PAIRS:
            pairs = ((self._value(key), self._under(key, item)) for key, item in content)
            return {tag: [list(pair) for pair in _distinct(pairs)]}
        if tag in _LISTS:
            items = [self._value(item) for item in content]
            return {tag: items if tag == "$tuple" else list({_key(item): item for item in items}.values())}
        text = b64decode(content).decode("latin-1") if tag == "$bytes" else content
        return MARK if isinstance(text, str) and self.text(text) != text else value

    def _under(self, name: Any, value: Any) -> Any:
        return MARK if isinstance(name, str) and self.hides(name) else self._value(value)


def _distinct(pairs: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
    """`pairs`, with keys that have become equal told apart by numbers: nothing is lost but the secret."""
    seen: set[Any] = set()
    numbers: Counter[str] = Counter()
    for key, value in pairs:
        plain = key if isinstance(key, str) else MARK
        while _key(key) in seen:
            numbers[plain] += 1
            key = f"{plain.removesuffix(MARK)}[redacted {numbers[plain] + 1}]"
        seen.add(_key(key))
        yield key, value


def _key(value: Any) -> Any:
    """What is equal only for values that are the same."""
    return value if isinstance(value, str) else msgspec.json.encode(value)


class RedactedLogger(logging.Logger):
    """Says what `target` would, without secrets; whoever hears that, and of what level, hears it of this."""

    def __init__(self, target: logging.Logger, redaction: Redaction) -> None:
        super().__init__(target.name)
        self.parent = target
        self._target = target
        self._redaction = redaction

    def handle(self, record: logging.LogRecord) -> None:
        self._target.handle(record)

    def makeRecord(self, *args: Any, **options: Any) -> logging.LogRecord:
        record = super().makeRecord(*args, **options)
        redaction = self._redaction
        record.msg, record.args = redaction.text(record.getMessage()), ()
        if record.exc_info:  # its text only: whoever handles the record would read the exception itself
            record.exc_text = redaction.text("".join(traceback.format_exception(*record.exc_info)).rstrip())
            record.exc_info = None
        for name in record.__dict__.keys() - _PLAIN:  # what was given as `extra`
            value = record.__dict__[name]
            record.__dict__[name] = MARK if redaction.hides(name) else self._given(value)
        return record

    def _given(self, value: Any) -> Any:
        """A value of `extra`: any that could be recorded, or its text."""
        try:
            return restore(self._redaction.body(capture(value)))
        except ValueNotStorable:
            return self._redaction.text(str(value))


_PLAIN = logging.makeLogRecord({}).__dict__.keys()
