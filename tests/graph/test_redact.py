"""What is redacted of a captured value, and that what is left is one still."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph.test_values import VALUES
from tinyllm import ExecutorConfig, MessagePayload
from tinyllm.errors import ConfigError
from tinyllm.graph.messages import ErrorInfo
from tinyllm.graph.payload import decode_payload, encode_payload
from tinyllm.graph.redact import MARK, RedactedLogger, Redaction, Rule, redaction_of
from tinyllm.graph.values import capture, restore

KEY = "sk-abcdefghij0123456789"
LOOKS = re.compile("sk-[a-z0-9]{20}")


def redaction(*rules: Rule) -> Redaction:
    made = redaction_of(rules)
    assert made is not None
    return made


def redacted(value: Any, *rules: Rule) -> Any:
    return restore(redaction(*rules).body(capture(value)))


@attrs.frozen
class Login:
    user: str
    password: str


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ({"api_key": "x", "other": "x"}, {"api_key": MARK, "other": "x"}),
        ({"API_Key": {"a": [1]}}, {"API_Key": MARK}),
        ({"deep": [{"my_token": 7, "tokens": 7}]}, {"deep": [{"my_token": MARK, "tokens": 7}]}),
        (Login("me", "x"), {"user": "me", "password": MARK}),
        (f"use {KEY}, or {KEY}!", f"use {MARK}, or {MARK}!"),
        ({KEY: 1, KEY[:-1] + "x": 2, "a": 3}, {MARK: 1, "[redacted 2]": 2, "a": 3}),
        ({(1, KEY): 1, (1, KEY[:-1] + "x"): 2}, {(1, MARK): 1, "[redacted 2]": 2}),
        ({1: KEY, "password": 2}, {1: MARK, "password": MARK}),
        ((KEY, 1), (MARK, 1)),
        ({KEY, KEY[:-1] + "x", 1}, {MARK, 1}),
        (frozenset([KEY]), frozenset([MARK])),
        (KEY.encode(), MARK),
        (Path(f"/a/{KEY}"), MARK),
        (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
        (2**70, 2**70),
        (f"{MARK} {MARK}", f"{MARK} {MARK}"),
    ],
)
def test_what_is_redacted(value: Any, left: Any) -> None:
    assert redacted(value, "api_key", "password", "*_token", LOOKS) == left


def test_a_mark_stays_what_it_is_whatever_looks_like_it() -> None:
    assert redacted("redacted me", re.compile("redacted")) == f"{MARK} me"
    assert redacted(f"{MARK} me", re.compile("redacted")) == f"{MARK} me"


def test_the_parts_of_a_message_have_names_of_their_own() -> None:
    error = ErrorInfo(type="E", message=KEY, node_id="n", traceback=KEY)
    payload = MessagePayload(content="x", error=error, metadata={"content": 1, "deep": KEY}, confidence=0.5)
    body = encode_payload(payload, redaction=redaction("content", "metadata", "error", "deep", LOOKS))
    assert decode_payload(body) == MessagePayload(
        content="x",
        error=ErrorInfo(type="E", message=MARK, node_id="n", traceback=MARK),
        metadata={"content": MARK, "deep": MARK},
        confidence=0.5,
    )


@given(VALUES, st.sampled_from([("*",), (re.compile("."),), ("a*", re.compile("[a-m]+")), (re.compile("[0-9]"),)]))
def test_what_was_redacted_can_be_read_and_is_redacted_no_further(value: Any, rules: Sequence[Rule]) -> None:
    once = redaction(*rules).body(capture(value))
    restore(once)
    assert redaction(*rules).body(once) == once


def test_without_rules_there_is_nothing_to_do() -> None:
    assert ExecutorConfig().redaction is None
    assert ExecutorConfig(redact=["a"]).redaction == ExecutorConfig(redact="a").redaction == redaction("a")


@pytest.mark.parametrize(
    "rules",
    ["", [""], [7], [None], ["sk-(a|b)"], ["/sk-a"], [re.compile("")], [re.compile("a*")], [re.compile(b"a")], 5],
)
def test_rules_that_are_none_are_refused(rules: Any) -> None:
    with pytest.raises(ConfigError, match="redact"):
        ExecutorConfig(redact=rules)


def test_a_logger_says_what_it_would_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    target = logging.getLogger("tinyllm.node.x")
    target.setLevel(logging.INFO)
    logger = RedactedLogger(target, redaction("api_key", LOOKS))
    logger.debug("not said")
    try:
        raise ValueError(f"wrong: {KEY}")
    except ValueError:
        logger.exception("%s is %s", "it", KEY, extra={"api_key": "x", "more": KEY, "number": 5})
    (record,) = caplog.records
    assert (record.name, record.getMessage(), record.exc_info) == ("tinyllm.node.x", f"it is {MARK}", None)
    assert record.funcName == "test_a_logger_says_what_it_would_without_secrets"
    assert (record.__dict__["api_key"], record.__dict__["more"], record.__dict__["number"]) == (MARK, MARK, 5)
    assert f"ValueError: wrong: {MARK}" in caplog.text
    assert KEY not in caplog.text
