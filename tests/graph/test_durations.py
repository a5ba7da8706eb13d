"""Durations, as text and as seconds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.graph.durations import LONGEST, duration_text, parse_duration

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1.5h", 5400), ("250ms", 0.25), ("2d", 172_800), ("0s", 0), ("0.1h", 360), ("007s", 7)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "5", "-5s", "+5s", "1e3s", ".5s", "5.s", "5 s", "5S", "5min", "5m30s", "1_000s", "٣s", "5s\n", "infs"],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be a duration such as `30s`, `5m`, `1\.5h` or `250ms`"):
        parse_duration(text)


def test_a_bare_number_is_shown_with_a_unit() -> None:
    for number in ("2.5", 2.5):
        with pytest.raises(ValueError, match=r"; write `2\.5s`$"):
            parse_duration(number)


def test_more_than_a_century_is_refused() -> None:
    assert parse_duration("36500d") == LONGEST
    for text in ("36501d", "9" * 400 + "d"):
        with pytest.raises(ValueError, match="must be at most a century"):
            parse_duration(text)


@given(st.integers(0, 10**9), st.sampled_from(list(UNITS)))
def test_units_are_what_they_are_called(count: int, unit: str) -> None:
    seconds = count * UNITS[unit]
    if seconds <= LONGEST:
        assert math.isclose(parse_duration(f"{count}{unit}"), seconds)


@given(st.floats(0, LONGEST) | st.integers(0, int(LONGEST)))
def test_seconds_survive_being_written(seconds: float) -> None:
    assert parse_duration(duration_text(seconds)) == seconds


@given(st.floats(max_value=0, exclude_max=True) | st.sampled_from([math.inf, math.nan]) | st.integers(max_value=-1))
def test_what_is_no_length_of_time_is_written_as_none(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_duration(duration_text(seconds))


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{1,6} ?(ms|s|m|h|d)?", fullmatch=True))
def test_any_text_gives_seconds_or_an_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 <= seconds <= LONGEST
