"""Reading a YAML file into plain data, remembering where everything stands.

YAML's events are read one by one, instead of composing a tree first: so depth and size are bounded before anything is
built, and every key and value keeps its place.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any, NoReturn

import attrs
import yaml

from tinyllm.errors import Fault, InvalidGraph
from tinyllm.graph.findings import Finding, Path

MAX_BYTES = 4 * 1024 * 1024
MAX_VALUES = 250_000
"""After aliases are expanded: an alias takes a few bytes and may stand for millions of values."""
MAX_DEPTH = 32

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # without libyaml: slower by far, but the same

_TAG = "tag:yaml.org,2002:"
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]{0,18})|[^:]*[.][^:]*")


@attrs.frozen
class _Place:
    """YAML's marks: where a value begins and ends, and where its key begins if it has one."""

    start: Any
    end: Any
    key: Any = None


class Document:
    """The data of one YAML file, and the faults that only its text can show: duplicate keys.

    :raises InvalidGraph: with a single fault, if the file cannot be read as one YAML document.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.faults: list[Fault] = []
        self._places: dict[Path, _Place] = {}
        self._anchors: dict[str | None, tuple[Any, int] | None] = {}
        """The values that aliases repeat, with their sizes; None while one is being read."""
        self._size = 0
        self._text = self._read_text()
        try:
            self._loader = _Loader(self._text)
            self.data = self._read_document()
            self._loader.dispose()
        except yaml.YAMLError as error:
            self._refuse(*self._explained(error))

    def fault(self, finding: Finding) -> Fault:
        """The finding with its line and column: those of its path, or of the nearest part around it that has any."""
        path = finding.path
        while path not in self._places:
            path = path[:-1]
        place = self._places[path]
        if finding.offset is not None and path == finding.path and (inside := self._inside(path, finding.offset)):
            line, column = inside
            finding = attrs.evolve(finding, offset=None)
        else:
            mark = place.key if finding.on_key and place.key is not None else place.start
            line, column = mark.line + 1, mark.column + 1
        return finding.fault(self.path, line, column)

    def _inside(self, path: Path, offset: int) -> tuple[int, int] | None:
        """Line and column of a character of a text; None if the file does not hold that line of the text as it is."""
        text: Any = self.data
        for part in path:
            text = text[part]
        place = self._places[path]
        begin = text.rfind("\n", 0, offset) + 1
        line = text[begin:].partition("\n")[0]
        written = self._text[place.start.index : place.end.index]
        if written.count(line) != 1:
            return None
        return _position(self._text, place.start.index + written.index(line) + offset - begin)

    # -- the file ----------------------------------------------------------------------------------------------

    def _read_text(self) -> str:
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                what = "a directory" if os.path.isdir(self.path) else "no regular file"
                self._refuse(f"is {what}; name a graph file (YAML)")
            with open(self.path, "rb") as file:
                body = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            self._refuse("there is no such file")
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL
            self._refuse(f"cannot be read: {getattr(error, 'strerror', None) or error}")
        if len(body) > MAX_BYTES:
            self._refuse(f"is larger than {MAX_BYTES >> 20} MiB, the most that a graph file may be")
        try:
            return body.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            text = body[: error.start].decode()
            self._refuse("is not UTF-8 text; save it as UTF-8", *_position(text, len(text)))

    def _refuse(self, message: str, line: int | None = None, column: int | None = None) -> NoReturn:
        raise InvalidGraph((Fault(message, file=self.path, line=line, column=column),)) from None

    def _refuse_at(self, mark: Any, message: str) -> NoReturn:
        self._refuse(message, mark.line + 1, mark.column + 1)

    def _explained(self, error: Any) -> tuple[str, int | None, int | None]:
        """A message with its position, for an error of the YAML parser."""
        if isinstance(error, yaml.reader.ReaderError):
            line, column = _position(self._text, len(self._text.encode()[: error.position].decode(errors="ignore")))
            return f"is not YAML: {error.reason} (character {error.character!r})", line, column
        mark, problem = error.problem_mark, error.problem
        if error.context == "while scanning a quoted scalar" and "end of stream" in problem:
            mark, problem = error.context_mark, "a quoted text begins here and is never closed"
        elif "cannot start any token" in problem:
            character = self._text[mark.index : mark.index + 1]
            tab = "a tab cannot indent; use spaces"
            problem = tab if character == "\t" else f"no value can begin with {character!r}; quote it"
        elif problem.startswith("mapping values are not allowed"):
            problem = "a `:` where no key can be; mend the indentation, or quote a text that holds `: `"
        elif error.context:
            since = f", which begins at line {error.context_mark.line + 1}" if error.context_mark else ""
            problem = f"{problem} {error.context}{since}"
        return f"is not YAML: {problem}", mark.line + 1, mark.column + 1

    # -- its values --------------------------------------------------------------------------------------------

    def _read_document(self) -> Any:
        self._loader.get_event()  # the stream begins
        if isinstance(self._loader.get_event(), yaml.StreamEndEvent):
            self._refuse("is empty; a graph needs at least `id` and `nodes`", 1, 1)
        data = self._value(self._loader.get_event(), (), None)
        self._loader.get_event()  # the document ends
        after = self._loader.get_event()
        if not isinstance(after, yaml.StreamEndEvent):
            self._refuse_at(after.start_mark, "a second document begins here; a graph file holds one")
        if data is None:
            self._refuse("is empty; a graph needs at least `id` and `nodes`", 1, 1)
        return data

    def _value(self, event: Any, path: Path, key: Any) -> Any:
        """The value that begins with `event`; `key` is the mark of its key."""
        mark = event.start_mark
        self._places[path] = _Place(mark, event.end_mark, key)
        self._grow(mark, 1)
        if isinstance(event, yaml.AliasEvent):
            known = self._anchors.get(event.anchor)
            if known is None:
                inside = "an alias cannot stand inside of what it repeats" if event.anchor in self._anchors else ""
                self._refuse_at(mark, inside or f"nothing before this is marked `&{event.anchor}`")
            self._grow(mark, known[1])
            return known[0]
        if len(path) > MAX_DEPTH:
            self._refuse_at(mark, f"is nested more than {MAX_DEPTH} levels deep")
        if event.tag is not None:
            self._refuse_at(mark, f"tags are not read in graph files; remove `{event.tag.replace(_TAG, '!!')}`")
        before = self._size
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        match event:
            case yaml.SequenceStartEvent():
                value: Any = self._sequence(path)
            case yaml.MappingStartEvent():
                value = self._mapping(path)
            case _:
                value = self._scalar(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, self._size - before)
        return value

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self._loader.get_event(), yaml.SequenceEndEvent):
            items.append(self._value(event, (*path, len(items)), None))
        return items

    def _mapping(self, path: Path) -> dict[Any, Any]:
        items: dict[Any, Any] = {}
        while not isinstance(event := self._loader.get_event(), yaml.MappingEndEvent):
            mark = event.start_mark
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                self._refuse_at(mark, "a key must be plain text")
            if event.value == "<<" and event.implicit[0]:
                self._refuse_at(mark, "merge keys (`<<`) are not read in graph files; write the keys out")
            self._grow(mark, 1)
            key = self._key(event)
            at = (*path, key)
            if key not in items:
                items[key] = self._value(self._loader.get_event(), at, mark)
            else:
                self._repeated(at, mark)
        return items

    def _repeated(self, path: Path, mark: Any) -> None:
        """Read over the value of a key that was there before; what is wrong in it is still found."""
        first = self._places[path].key
        message = f"duplicate key; it is in line {first.line + 1} already"
        self.faults.append(Finding(path, message).fault(self.path, mark.line + 1, mark.column + 1))
        places, self._places = self._places, {}
        self._value(self._loader.get_event(), path, mark)
        self._places = places

    def _key(self, event: Any) -> Any:
        """As a value, but `on`, which YAML 1.1 takes for true, is the word: nobody names a thing by a truth."""
        key = self._scalar(event)
        return event.value if isinstance(key, bool) else key

    def _scalar(self, event: Any) -> Any:
        """Text, or what it means: a decimal number, true, false or null.

        YAML 1.1 knows more: 0x10, 1:30 (which is 90) and 2025-12-19 stay the text that they are for everyone else.
        """
        tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit).removeprefix(_TAG)
        if tag in ("bool", "null") or (tag in ("int", "float") and _DECIMAL.fullmatch(event.value)):
            return self._loader.construct_object(yaml.ScalarNode(_TAG + tag, event.value))
        return event.value

    def _grow(self, mark: Any, size: int) -> None:
        self._size += size
        if self._size > MAX_VALUES:
            self._refuse_at(mark, f"holds more than {MAX_VALUES} values, aliases counted as often as they are used")


def _position(text: str, index: int) -> tuple[int, int]:
    """Line and column, from 1, of a character of `text`."""
    return text.count("\n", 0, index) + 1, index - text.rfind("\n", 0, index)
