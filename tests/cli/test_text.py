"""How amounts, times and tables are written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.cli.text import ago, duration, plural, rate, shorten, table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.34, "340 ms"),
        (0.9996, "1.0 s"),
        (4.21, "4.2 s"),
        (9.96, "10 s"),
        (59.6, "1 m 00 s"),
        (62, "1 m 02 s"),
        (3599.7, "1 h 00 m"),
        (11100, "3 h 05 m"),
        (187200, "2 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("passed", "text"),
    [(-5, "just now"), (0.2, "just now"), (5, "5 s ago"), (200, "3 min ago"), (7300, "2 h ago"), (4e5, "4 d ago")],
)
def test_ago(passed: float, text: str) -> None:
    assert ago(1e9 - passed, 1e9) == text


def test_long_ago_is_a_date() -> None:
    assert ago(0, 1e9) == "1970-01-01"


@pytest.mark.parametrize(("speed", "text"), [(1234, "1,234/s"), (2.5, "2.5/s"), (0.5, "30/min"), (0.001, "3.6/h")])
def test_rate(speed: float, text: str) -> None:
    assert rate(speed) == text


def test_plural() -> None:
    assert [plural(count, "step") for count in (0, 1, 1200)] == ["0 steps", "1 step", "1,200 steps"]


@given(st.text(), st.integers(2, 50))
def test_shortened_text_fits_on_its_line(text: str, width: int) -> None:
    line = shorten(text, width)
    assert len(line) <= width
    assert line.isprintable()


def test_shorten_keeps_what_fits_and_drops_terminal_commands() -> None:
    assert shorten("two\n lines", 20) == "two lines"
    assert shorten("\x1b[31mred\x1b[0m", 20) == "[31mred [0m"
    assert shorten("abcdefgh", 5) == "abcd…"


def test_table_aligns_and_the_chosen_column_gives_way() -> None:
    rows = [("demo", "a-very-long-graph-name", "7"), ("survey-7k3mq", "short", "1,204")]
    assert table(("trace", "graph", "step"), rows, right=("step",)) == [
        "trace         graph                    step",
        "demo          a-very-long-graph-name      7",
        "survey-7k3mq  short                   1,204",
    ]
    narrow = table(("trace", "graph", "step"), rows, right=("step",), shrink="graph", columns=32)
    assert narrow[1] == "demo          a-very-lon…      7"
    assert all(len(line) <= 32 for line in narrow)
