from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.errors import StoragePathError
from tinyllm.storage.high_water import HighWaterFile, path_in, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return path_in(tmp_path, "owner/../1")


def test_a_mark_is_read_while_it_is_noted(path: Path) -> None:
    file = HighWaterFile(path)
    mark = file.slot(7, 2)
    assert read(path) == {}
    mark.note(5, 3)
    mark.note(6, 2)
    assert read(path) == {(7, 2): (6, 2)}
    file.close()
    assert read(path) == {(7, 2): (6, 2)}


def test_a_closed_mark_is_gone_and_its_slot_is_used_again(path: Path) -> None:
    file = HighWaterFile(path)
    for trace in range(1, 1000):
        mark = file.slot(trace, 1)
        mark.note(1, 1)
        mark.close()
        mark.close()
        mark.note(9, 9)
    assert read(path) == {}
    assert path.stat().st_size == os.sysconf("SC_PAGESIZE")
    file.close()


def test_the_file_grows_and_earlier_marks_stay(path: Path) -> None:
    file = HighWaterFile(path)
    marks = {trace: file.slot(trace, 1) for trace in range(1, 1001)}
    for trace, mark in marks.items():
        mark.note(trace, 0)
    for trace, mark in marks.items():
        mark.note(trace * 2, 1)
    assert read(path) == {(trace, 1): (trace * 2, 1) for trace in marks}
    file.close()


@given(st.integers(1, 28), st.binary(min_size=28, max_size=28))
def test_a_torn_note_tells_nothing(cut: int, before: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "owners" / "x"
        file = HighWaterFile(path)
        file.slot(3, 4).note(2**40 + 5, 6)
        file.close()
        whole = path.read_bytes()
        torn = whole[: 28 - cut] + before[28 - cut :] + whole[28:]
        path.write_bytes(torn)
        assert read(path) == ({(3, 4): (2**40 + 5, 6)} if torn == whole else {})


def test_a_file_that_is_missing_or_cut_short_tells_nothing(path: Path) -> None:
    assert read(path) == {}
    path.parent.mkdir()
    path.write_bytes(b"x" * 40)
    assert read(path) == {}


def test_only_the_user_may_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        file = HighWaterFile(path)
        file.slot(1, 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    file.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "owners").write_text("a file")
    with pytest.raises(StoragePathError, match="owners"):
        HighWaterFile(path_in(tmp_path, "x")).slot(1, 1)


_DIES = """
import os, signal, sys
from pathlib import Path
from tinyllm.storage.high_water import HighWaterFile
mark = HighWaterFile(Path(sys.argv[1])).slot(5, 1)
for step in range(1001):
    mark.note(step, 3)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_survives_its_process(path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", _DIES, str(path)], check=False)
    assert dead.returncode == -signal.SIGKILL
    assert read(path) == {(5, 1): (1000, 3)}
