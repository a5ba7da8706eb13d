"""What only a real process shows: the live view on a terminal of 80 columns, and how little is imported to start."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from tests.cli.desk import Desk

HEAVY = {
    "anyio",
    "asyncio",
    "attr",
    "cattrs",
    "msgspec",
    "rich",
    "sqlite3",
    "pysqlite3",
    "sqlite_utils",
    "trio",
    "yaml",
}


def on_terminal(desk: Desk, *words: str, columns: int = 80, term: str = "xterm") -> tuple[int, str, str]:
    """Exit code, stdout (a pipe) and what a terminal of `columns` columns got on stderr."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    drawn = b""
    with desk.start(*words, stderr=theirs, environment={"TERM": term}) as process:
        os.close(theirs)
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # on Linux, the end of a terminal that nobody holds open
                break
            if not part:
                break
            drawn += part
        os.close(ours)
        assert process.stdout is not None
        out = process.stdout.read()
    return process.returncode, out, drawn.decode()


def test_live_view_is_drawn_and_taken_away_again(desk: Desk) -> None:
    pytest.importorskip("rich")
    code, out, drawn = on_terminal(desk, "run", str(desk.graph), "--task", "4", "--id", "demo")
    assert (code, out) == (0, "the sum is 14\n")
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1  # the cursor is hidden, and comes back
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").splitlines()]
    assert lines[0] == "demo: started"
    assert lines[-1].startswith("demo: completed at step 6 after ")
    assert [line.split()[:2] for line in lines[-4:-1]] == [["plan", "1"], ["work", "4"], ["total", "1"]]
    assert max(map(len, lines)) < 80


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_what_a_node_prints_is_seen_but_is_no_result(desk: Desk, term: str) -> None:
    nodes = desk.folder / "nodes.py"
    nodes.write_text(nodes.read_text().replace("    return list", '    print("from a node")\n    return list'))
    code, out, drawn = on_terminal(desk, "run", str(desk.graph), "--task", "4", term=term)
    assert (code, out) == (0, "the sum is 14\n")
    assert drawn.count("from a node") == 1


def test_dumb_terminal_gets_plain_lines(desk: Desk) -> None:
    code, out, drawn = on_terminal(desk, "run", str(desk.graph), "--task", "4", "--id", "demo", term="dumb")
    assert (code, out) == (0, "the sum is 14\n")
    assert "\x1b" not in drawn
    assert drawn.startswith("demo: started\r\n")


def test_help_imports_nothing_heavy() -> None:
    program = "import sys, tinyllm.cli.main; print(*{name.partition('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert set(out.split()) & HEAVY == set()
