"""What supervisors and workers tell each other."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm import ExecutorConfig
from tinyllm.supervisor.messages import (
    Assignment,
    Beat,
    Drain,
    Freed,
    Leaving,
    Ready,
    Refused,
    Wake,
    config_of,
    decode,
    encode,
    settings_of,
)

texts = st.text(st.characters(codec="utf-8"))
whole = st.integers(0, 2**40)
messages = st.one_of(
    st.builds(Wake),
    st.builds(Drain),
    st.builds(Ready, st.lists(texts).map(tuple), st.lists(texts).map(tuple)),
    st.builds(Beat, whole, whole, whole, whole),
    st.builds(Refused, texts, texts),
    st.builds(Freed, texts),
    st.builds(Leaving, st.sampled_from(["drained", "store", "broken"]), texts),
    st.builds(
        Assignment,
        graphs=st.lists(texts).map(tuple),
        path=st.lists(texts).map(tuple),
        storage=texts,
        concurrency=whole,
        limits=st.dictionaries(texts, whole),
        apart=st.booleans(),
        grace=st.floats(0, 1e6),
        hang_seconds=st.floats(0, 1e6),
        accept_graph_change=st.booleans(),
        settings=st.dictionaries(texts, whole),
        log_level=whole,
    ),
)


@given(messages)
def test_a_message_is_one_line_and_comes_as_it_was(message: Wake) -> None:
    line = encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode(line) == message


@pytest.mark.parametrize("line", [b"", b"print", b"[]", b"{}", b'{"Halt":{}}', b'{"Beat":{"running":1}}', b"\xff"])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of whichever part of it
        decode(line)


def test_an_executor_is_configured_as_the_supervisor_was_told() -> None:
    config = ExecutorConfig(durability="sync", redact=["*_token", re.compile("sk-[a-z]+", re.IGNORECASE)])
    assert config_of(settings_of(config)) == config
