from __future__ import annotations

import base64
import random
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.errors import ValueNotStorable
from tinyllm.storage import framing
from tinyllm.storage.framing import COMPRESS_ABOVE, FrameDamaged, checksum, decode, encode
from tinyllm.storage.sqlite.seals import (
    NO_SEAL,
    activation_seal,
    arrival_seal,
    checkpoint_seal,
    message_seal,
    step_seal,
    variable_seal,
)

bodies = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.tuples(st.binary(min_size=1, max_size=9), st.integers(1, 3000)).map(lambda pair: pair[0] * pair[1]),
)


@given(bodies)
def test_every_body_comes_back(body: bytes) -> None:
    assert decode(encode(body)) == body


@given(bodies, st.data())
def test_a_changed_frame_is_noticed(body: bytes, data: st.DataObject) -> None:
    frame = encode(body)
    stored = frame.encode() if isinstance(frame, str) else frame
    if not stored:
        return
    at = data.draw(st.integers(0, len(stored) - 1))
    bad = stored[:at] + bytes([stored[at] ^ data.draw(st.integers(1, 255))]) + stored[at + 1 :]
    try:
        found = decode(bad.decode() if isinstance(frame, str) else bad)
    except (FrameDamaged, UnicodeDecodeError):
        return
    assert found == body or checksum(found, 7) != checksum(body, 7)


def test_small_text_stays_readable() -> None:
    assert encode(b'{"content": "hello"}') == '{"content": "hello"}'


def test_what_sqlite_would_not_show_whole_is_no_text() -> None:
    assert encode(b"a\x00b") == b"\x00a\x00b"


def test_big_bodies_shrink_where_it_helps() -> None:
    text = b"x" * (COMPRESS_ABOVE + 1)
    frame = encode(text)
    assert isinstance(frame, bytes)
    assert len(frame) < 100
    # Digits of a random-looking number hardly shrink by the eighth that is asked for, once they are packed in base 256.
    noise = b"".join(zlib.crc32(bytes([n % 256, n // 256])).to_bytes(4, "big") for n in range(2000))
    assert encode(noise) == b"\x00" + noise


def test_what_a_sample_says_will_hardly_shrink_is_kept_as_it_is() -> None:
    text = base64.b64encode(random.Random(0).randbytes(200_000))  # deflated, it would lose a quarter
    assert encode(text) == text.decode()
    assert len(encode(b"x" * 200_000)) < 2_000


def test_a_checksum_names_its_place() -> None:
    assert checksum(b"body", 1, "node") != checksum(b"body", 2, "node")
    assert checksum(b"body", 1, "node") != checksum(b"body", 1, "other")


def test_a_bomb_is_not_inflated() -> None:
    bomb = zlib.compress(bytes(10_000_000))
    with pytest.raises(FrameDamaged, match="100 bytes were promised"):
        decode(b"\x01" + (100).to_bytes(4, "big") + bomb)
    with pytest.raises(FrameDamaged, match="more than any message"):
        decode(b"\x01" + b"\xff\xff\xff\xff" + bomb)


@pytest.mark.parametrize(
    "frame",
    [b"", b"\x02abc", b"\x01", b"\x01\x00\x00\x00\x03abc", b"\x01\x00\x00\x00\x01" + zlib.compress(b"a") + b"more"],
)
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(FrameDamaged):
        decode(frame)


def test_what_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MESSAGE_CAP", 10)
    with pytest.raises(ValueNotStorable, match="11 bytes"):
        encode(b"x" * 11)


numbers = st.integers(0, 2**63)
small = st.integers(0, 2**40)
maybe = st.none() | small
ids = st.binary(max_size=16)
names = st.text(max_size=5)
times = st.floats(0, 1e10)
texts = st.text(st.characters())  # lone surrogates, too


@given(st.binary(max_size=9), numbers, texts, st.none() | numbers, numbers, st.none() | st.binary(max_size=9))
def test_the_quick_checksums_of_rows_are_those_that_every_row_was_written_with(
    body: bytes, row: int, name: str, place: int | None, count: int, order: bytes | None
) -> None:
    assert message_seal(row, name, place, count, body) == checksum(body, row, name, place, count)
    assert variable_seal(row, name, "full", count, order, body) == checksum(body, row, name, "full", count, order)


Kinds = list[st.SearchStrategy[Any]]
CHECKPOINT: Kinds = [small, small, small, names, st.none() | names, *[small] * 8, times, small, small, times, small]
SEALS: list[tuple[Callable[..., int], Kinds]] = [
    (activation_seal, [small, ids, names, maybe, maybe, st.none() | names, small, st.booleans()]),
    (arrival_seal, [small, small, maybe, ids, st.none() | names, small]),
    (step_seal, [small, small, names, times, times, small, st.none() | names]),
    (checkpoint_seal, [*CHECKPOINT, small, maybe]),
]


@given(st.sampled_from(SEALS), st.data())
def test_a_row_that_says_something_else_has_another_checksum(
    seal: tuple[Callable[..., int], Kinds], data: st.DataObject
) -> None:
    made, kinds = seal
    row = [data.draw(kind) for kind in kinds]
    at = data.draw(st.integers(0, len(kinds) - 1))
    other = data.draw(kinds[at].filter(lambda value: value != row[at]))
    assert made(*row) != made(*row[:at], other, *row[at + 1 :])
    assert made("x", *row[1:]) == NO_SEAL
