"""How many transactions were told to be durable: noted beside the database, where no damage to it can reach.

A write-ahead log that was cut off, or is missing, is valid up to where it ends: what stood behind that is gone, and
nothing in the database tells. So each acknowledged transaction has a number, and the highest is noted in a small file,
which is mapped into memory: a note is there even if the process dies at once.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zlib
from pathlib import Path

from tinyllm.errors import CommitsMissing, StoragePathError, StorageUnavailable

FILE_NAME = "tinyllm.commits"

_SLOTS = 64
"""A process notes in the slot of its pid: of two that shared one, the slower would take back what the other noted."""
_NUMBER = struct.Struct("<Q")
_CHECK = struct.Struct("<I")
_SLOT = 16
_USED = _NUMBER.size + _CHECK.size
_CAREFULLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Somebody else may have put something there: a link to another's file, or a pipe that nobody writes to."""


def acknowledged(directory: Path) -> int:
    """The number of the last transaction of the store in `directory` that was told to be durable, as far as noted."""
    try:
        file = os.open(directory / FILE_NAME, os.O_RDONLY | _CAREFULLY)
    except OSError:
        return 0
    try:
        content = os.read(file, _SLOTS * _SLOT) if stat.S_ISREG(os.fstat(file).st_mode) else b""
    finally:
        os.close(file)
    found = 0
    for start in range(0, len(content) - _SLOT + 1, _SLOT):
        number = content[start : start + _NUMBER.size]
        if _CHECK.unpack_from(content, start + _NUMBER.size)[0] == zlib.crc32(number):
            found = max(found, _NUMBER.unpack(number)[0])
    return found


def refuse_missing(directory: Path, noted: int, number: int) -> None:
    """:raises CommitsMissing: the database has come to transaction `number`, and `noted` was acknowledged. (Noted
    first, and then read from the database: others go on meanwhile.)
    """
    if number < noted:
        raise CommitsMissing(str(directory), noted - number, str(directory / FILE_NAME))


class CommitNotes:
    """Where one process notes."""

    def __init__(self, directory: Path) -> None:
        """:raises StorageUnavailable: the file cannot be made, or not now."""
        path = directory / FILE_NAME
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | _CAREFULLY, 0o600)
            try:
                if not stat.S_ISREG(os.fstat(file).st_mode):
                    raise StoragePathError(str(path), "it is not a file; move it away")
                os.fchmod(file, 0o600)
                size = _SLOTS * _SLOT
                if os.fstat(file).st_size < size:
                    # Written, not truncated to size: on a full disk, touching a page that was never written is a
                    # SIGBUS. Behind what is there, which another process may be noting in.
                    os.pwrite(file, bytes(size - os.fstat(file).st_size), os.fstat(file).st_size)
                self._slots = mmap.mmap(file, size)
            finally:
                os.close(file)
        except OSError as error:
            raise StorageUnavailable(str(path), f"it cannot be written ({error.strerror})") from error
        self._at = os.getpid() % _SLOTS * _SLOT

    def close(self) -> None:
        self._slots.close()

    def note(self, number: int) -> None:
        """Transaction `number`, and all before it, are durable."""
        body = _NUMBER.pack(number)
        self._slots[self._at : self._at + _USED] = body + _CHECK.pack(zlib.crc32(body))
