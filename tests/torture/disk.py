"""A disk that remembers and fails: SQLite's way to its files, with every change noted, and refused where that is asked.

SQLite reaches files through two tables of functions, one to open them and one for each open file
(https://www.sqlite.org/vfs.html). Here those that change a file are replaced by ones that ask first and note
afterwards; all others, and all work, stay SQLite's own. It is put under whatever opens a database while it is in place,
so what is tested is the store as it ships.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from types import TracebackType
from typing import Any, Literal

import attrs

from tinyllm.storage.sqlite.library import sqlite3

OK = 0
READONLY = 8
FULL = 13
IOERR_WRITE, IOERR_FSYNC, IOERR_TRUNCATE, IOERR_SHORT = (10 | variant << 8 for variant in (3, 4, 6, 2))
"""SQLite's result codes (https://www.sqlite.org/rescode.html)."""

Kind = Literal["create", "write", "truncate", "sync", "delete", "lost"]


@attrs.frozen
class Change:
    """Something that was done to the file `name`. `at` is where; for `truncate` the new size; for `delete` whether its
    directory was synced. `lost`: a sync failed, and what it did not write is taken for written from then on; whoever
    fails a sync notes that."""

    kind: Kind
    name: str
    at: int = 0
    data: bytes = b""


Refusal = Callable[[Change], int]
"""What a change meets with: `OK`, or the code with which it fails. `IOERR_SHORT`: only its first half is written."""


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`, up to what is replaced; the rest is copied as it is."""

    _fields_ = [
        ("version", c_int),
        *((name, c_void_p) for name in ("close", "read", "write", "truncate", "sync", "size", "lock", "unlock")),
        *((f"rest{number}", c_void_p) for number in range(10)),
    ]


class _File(ctypes.Structure):
    _fields_ = [("methods", POINTER(_Methods))]


class _System(ctypes.Structure):
    """`sqlite3_vfs`, likewise."""

    _fields_ = [
        ("version", c_int),
        ("file_size", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        *((f"rest{number}", c_void_p) for number in range(14)),
    ]


_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(_File), c_int, POINTER(c_int))
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_Close = CFUNCTYPE(c_int, c_void_p)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)


class Disk:
    """In place from `with` to its end; the connections made meanwhile must be closed by then. One at a time."""

    def __init__(self, refuse: Refusal | None = None) -> None:
        self.log: list[Change] = []
        """Everything that was done, in order."""
        self.refuse = refuse
        self._names: dict[int, str] = {}
        self._methods: dict[int, _Methods] = {}
        self._alive: list[Any] = []
        """ctypes keeps no callback alive by itself."""

    def __enter__(self) -> Disk:
        self._library = _library()
        self._original = self._library.sqlite3_vfs_find(None).contents
        self._system = _System.from_buffer_copy(self._original)
        self._system.name = b"noted"
        self._open = _Open(self._original.open)
        self._delete = _Delete(self._original.delete)
        self._system.open = self._replace(_Open, self._opened)
        self._system.delete = self._replace(_Delete, self._deleted)
        self._library.sqlite3_vfs_register(ctypes.byref(self._system), 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._library.sqlite3_vfs_register(ctypes.byref(self._original), 1)
        self._library.sqlite3_vfs_unregister(ctypes.byref(self._system))
        if kind is None:
            assert not self._names, f"still open: {', '.join(self._names.values())}"

    def _replace(self, prototype: Any, function: Callable[..., int]) -> int:
        callback = prototype(function)
        self._alive.append(callback)
        return ctypes.cast(callback, c_void_p).value or 0

    def _do(self, change: Change, work: Callable[[], int]) -> int:
        code = OK if self.refuse is None else self.refuse(change)
        if code == OK:
            code = work()
        if code == OK:
            self.log.append(change)
        return code

    def _opened(self, _system: int, path: int | None, file: Any, flags: int, out: Any) -> int:
        name = "" if path is None else os.path.basename(os.fsdecode(ctypes.string_at(path)))
        is_new = path is not None and not os.path.exists(os.fsdecode(ctypes.string_at(path)))

        def work() -> int:
            code: int = self._open(ctypes.addressof(self._original), path, file, flags, out)
            if code == OK and name:
                self._names[ctypes.addressof(file.contents)] = name
                self._watch(file.contents)
            return code

        return self._do(Change("create", name), work) if is_new else work()

    def _watch(self, file: _File) -> None:
        """Give an open file a table with ours in it."""
        original = ctypes.addressof(file.methods.contents)
        if original not in self._methods:
            theirs = file.methods.contents
            ours = _Methods.from_buffer_copy(theirs)
            close, write, truncate, sync = (
                _Close(theirs.close),
                _Write(theirs.write),
                _Truncate(theirs.truncate),
                _Sync(theirs.sync),
            )

            def closed(file: int) -> int:
                self._names.pop(file, None)
                return int(close(file))

            def written(file: int, data: int, size: int, at: int) -> int:
                change = Change("write", self._names[file], at, ctypes.string_at(data, size))
                code = self._do(change, lambda: write(file, data, size, at))
                if code == IOERR_SHORT and size > 1:
                    write(file, data, size // 2, at)
                    self.log.append(attrs.evolve(change, data=change.data[: size // 2]))
                    return IOERR_WRITE
                return code

            def cut(file: int, size: int) -> int:
                return self._do(Change("truncate", self._names[file], size), lambda: truncate(file, size))

            def synced(file: int, flags: int) -> int:
                return self._do(Change("sync", self._names[file]), lambda: sync(file, flags))

            ours.close = self._replace(_Close, closed)
            ours.write = self._replace(_Write, written)
            ours.truncate = self._replace(_Truncate, cut)
            ours.sync = self._replace(_Sync, synced)
            self._methods[original] = ours
        file.methods = ctypes.pointer(self._methods[original])

    def _deleted(self, _system: int, path: bytes, sync: int) -> int:
        change = Change("delete", os.path.basename(os.fsdecode(path)), sync)
        return self._do(change, lambda: int(self._delete(ctypes.addressof(self._original), path, sync)))


def _library() -> Any:
    """The SQLite that the store uses, as ctypes sees it."""
    module = __import__(
        f"{sqlite3.__name__.partition('.')[0]}._sqlite3" if "pysqlite3" in sqlite3.__name__ else "_sqlite3"
    )
    library = ctypes.CDLL(getattr(module, "_sqlite3", module).__file__)
    library.sqlite3_vfs_find.argtypes, library.sqlite3_vfs_find.restype = [c_char_p], POINTER(_System)
    return library
