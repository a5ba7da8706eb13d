from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest

from tinyllm.storage import owners
from tinyllm.storage.contract import Owner
from tinyllm.storage.owners import alive, boottime, keep, let_go, this_process

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")

_WAIT = "import sys; print(flush=True); sys.stdin.read()"


def kept() -> Owner:
    """An owner that lives in this process."""
    owner = this_process()
    keep(owner.id)
    return owner


def test_this_process_lives() -> None:
    assert alive(kept()) in (True, None)


@linux
def test_an_owner_of_this_process_lives_as_long_as_it_is_kept() -> None:
    owner, other = this_process(), kept()
    assert alive(owner) is False
    keep(owner.id)
    keep(owner.id)
    assert alive(owner) is True
    let_go(owner.id)
    let_go(owner.id)
    assert alive(owner) is False
    assert alive(other) is True


def test_boottime_goes_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    assert boottime() <= boottime()
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert boottime() <= time.monotonic()


def test_each_owner_is_another() -> None:
    one, other = this_process(), this_process()
    assert one.id != other.id
    assert one.pid == other.pid == os.getpid()


@linux
def test_this_process_is_told_from_one_before_it_with_its_id() -> None:
    owner = kept()
    assert alive(owner) is True
    assert alive(attrs.evolve(owner, started="1")) is False


@linux
def test_a_killed_process_is_dead_before_its_parent_looks() -> None:
    with subprocess.Popen([sys.executable, "-c", _WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        state = owners._stat(child.pid)
        assert state
        owner = attrs.evolve(this_process(), pid=child.pid, started=state[1])
        assert alive(owner) is True
        child.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now, and stays one
        assert alive(owner) is False
    assert alive(owner) is False


@linux
@pytest.mark.parametrize(
    ("changed", "judged"),
    [
        ({"boot_id": "another"}, False),
        ({"boot_id": "another", "host": "another"}, None),
        ({"pid_namespace": "another"}, None),
        ({"pid": 2**31 - 1}, False),
        ({"pid": 2**40}, False),
    ],
)
def test_others_are_judged_only_from_where_they_can_be_seen(changed: dict[str, Any], judged: bool | None) -> None:
    assert alive(attrs.evolve(kept(), **changed)) is judged


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system without /proc."""
    monkeypatch.setattr(owners, "_boot_id", lambda: "")
    monkeypatch.setattr(owners, "_pid_namespace", lambda: "")
    monkeypatch.setattr(owners, "_stat", lambda _: None)


def test_without_proc_only_a_missing_process_is_known_to_be_dead(no_proc: None) -> None:
    assert alive(kept()) is None
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    assert alive(attrs.evolve(this_process(), pid=child.pid)) is False


@linux
def test_a_process_that_hides_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    this = kept()
    monkeypatch.setattr(owners, "_stat", lambda _: None)
    assert alive(this) is None


@linux
def test_a_process_of_another_user_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert alive(kept()) is True
