"""How far an owner was when it died: marks in a small file that it maps into its memory.

Writing there is writing to memory, and yet survives the process, because the pages belong to the file. One slot of 32
bytes for each trace that is being executed; a free slot is all zeros. A process killed in the middle of a note leaves a
slot whose check does not fit: then nothing is known.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import threading
import zlib
from pathlib import Path
from urllib.parse import quote

from tinyllm.errors import StoragePathError

_SLOT = 32
_KEY = struct.Struct("<IQ")
"""Trace key, epoch."""
_PLACE = struct.Struct("<QI")
"""Step, running."""
_CHECK = struct.Struct("<I")
_BODY = _KEY.size + _PLACE.size
_USED = _BODY + _CHECK.size
_CHUNK = mmap.ALLOCATIONGRANULARITY
OWNERS = "owners"
"""The directory, in that of a store, which they are in."""
_SUFFIX = ".marks"
_MOST = 16 * 2**20
"""Bytes of a file that are read: half a million traces at once."""


def path_in(directory: Path, owner: str) -> Path:
    """Where the marks of the owner of that id are kept in a store's directory."""
    return directory / OWNERS / (quote(owner, safe="") + _SUFFIX)


def files(directory: Path) -> list[Path]:
    """The files of all owners in a store's directory."""
    return list((directory / OWNERS).glob(f"*{_SUFFIX}"))


def read(path: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """What is noted in a file: by trace key and epoch, the step and how many activations were running."""
    try:
        # No link, which may lead anywhere; and a FIFO would keep whoever opens it waiting.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            content = file.read(_MOST) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else b""
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return {}  # nothing was ever noted, or it is another user's: nothing is known
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for start in range(0, len(content) - _SLOT + 1, _SLOT):
        body = content[start : start + _BODY]
        (check,) = _CHECK.unpack_from(content, start + _BODY)
        trace, epoch = _KEY.unpack_from(body)
        if trace and check == zlib.crc32(body):
            found[trace, epoch] = _PLACE.unpack_from(body, _KEY.size)
    return found


class HighWaterFile:
    """The marks of one owner."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: int | None = None
        self._chunks: list[mmap.mmap] = []
        self._free: list[tuple[mmap.mmap, int]] = []

    def make(self) -> None:
        """Make the file, with room for some marks, before somebody waits for a place in it.

        :raises StoragePathError: as `slot`.
        """
        with self._lock:
            if not self._chunks:
                self._grow()

    def slot(self, trace: int, epoch: int) -> HighWaterMark:
        """A place for the mark of `trace` at `epoch`.

        :raises StoragePathError: the file cannot be made, or the disk is full.
        """
        with self._lock:
            if not self._free:
                self._grow()
            chunk, offset = self._free.pop()
        return HighWaterMark(self, chunk, offset, _KEY.pack(trace, epoch))

    def give_back(self, chunk: mmap.mmap, offset: int) -> None:
        chunk[offset : offset + _SLOT] = bytes(_SLOT)
        with self._lock:
            self._free.append((chunk, offset))

    def close(self) -> None:
        """Let go of the file; marks that were not closed stay readable in it."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            # A mark that is still noted keeps its mapping alive; noting it then does no harm.
            self._chunks.clear()
            self._free.clear()

    def _grow(self) -> None:
        try:
            if self._file is None:
                if not self.path.parent.is_dir():
                    self.path.parent.mkdir(mode=0o700, exist_ok=True)
                    self.path.parent.chmod(0o700)  # where the umask took even that away
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                os.fchmod(self._file, 0o600)
            start = len(self._chunks) * _CHUNK
            # Written, not truncated to size: on a full disk, touching a page that was never written is a SIGBUS.
            os.pwrite(self._file, bytes(_CHUNK), start)
            chunk = mmap.mmap(self._file, _CHUNK, offset=start)
        except OSError as error:
            raise StoragePathError(str(self.path), f"it cannot be written ({error.strerror})") from error
        self._chunks.append(chunk)
        self._free += [(chunk, offset) for offset in reversed(range(0, _CHUNK, _SLOT))]


class HighWaterMark:
    """The mark of one trace."""

    __slots__ = ("_chunk", "_file", "_key", "_offset")

    def __init__(self, file: HighWaterFile, chunk: mmap.mmap, offset: int, key: bytes) -> None:
        self._file = file
        self._chunk: mmap.mmap | None = chunk
        self._offset = offset
        self._key = key

    def note(self, step: int, running: int) -> None:
        """Note that `step` was handed over, with `running` activations still running."""
        if self._chunk is not None:
            body = self._key + _PLACE.pack(step, running)
            self._chunk[self._offset : self._offset + _USED] = body + _CHECK.pack(zlib.crc32(body))

    def close(self) -> None:
        """The trace ended or was given up. A second call does nothing."""
        chunk, self._chunk = self._chunk, None
        if chunk is not None:
            self._file.give_back(chunk, self._offset)
