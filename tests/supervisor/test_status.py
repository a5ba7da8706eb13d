"""What a supervisor says of itself, there and back as JSON."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supervisor.made_up import status
from tinyllm import ValueMismatch
from tinyllm.supervisor.status import Status, WorkerStatus, from_json, to_json

texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(0, 2**53)
seconds = st.floats(0, 1e12)


def statuses() -> st.SearchStrategy[Status]:
    workers = st.builds(
        WorkerStatus,
        number=numbers,
        pid=st.none() | numbers,
        apart=st.booleans(),
        state=st.sampled_from(["starting", "running", "draining", "stopping", "waiting"]),
        since=seconds,
        restart_in=st.none() | seconds,
        running=numbers,
        ended=numbers,
        restarts=numbers,
        last_death=st.none() | texts,
    )
    return st.builds(
        attrs.evolve,
        st.just(status()),
        id=texts,
        since=seconds,
        graphs=st.lists(texts).map(tuple),
        workers=st.lists(workers).map(tuple),
        lag=st.none() | seconds,
        deaths=st.dictionaries(texts, numbers),
        refused=st.dictionaries(texts, texts, max_size=20),
    )


@given(statuses())
def test_a_status_comes_back_from_json_as_it_was(given: Status) -> None:
    assert from_json(json.loads(json.dumps(to_json(given)))) == given


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("pid", "7"),
        ("pid", True),
        ("pid", 1.0),
        ("state", "asleep"),
        ("graphs", "survey"),
        ("since", "now"),
        ("deaths", {"SIGKILL": "1"}),
        ("backlog", {"waiting": 1}),
        ("more", 1),
    ],
)
def test_nothing_is_coerced_nor_left_out(place: str, value: Any) -> None:
    found = {**to_json(status()), place: value}
    with pytest.raises(ValueMismatch, match=place):
        from_json(found)


@pytest.mark.parametrize("field", [field.name for field in attrs.fields(Status)])
def test_nothing_is_filled_in(field: str) -> None:
    found = to_json(status())
    del found[field]
    with pytest.raises(ValueMismatch, match=field):
        from_json(found)
