"""From a body to what stands in the database, and back.

A body that is text and small or does not shrink is stored as TEXT: any SQLite tool shows it. Everything else is a BLOB
whose first byte names the frame: `0` and the body as it is, `1` and the length as 4 bytes, big-endian, and the body
deflated. The checksum is of the body, with what it belongs to: a row that was moved or renamed does not verify either.
"""

from __future__ import annotations

import zlib

from tinyllm.errors import ValueNotStorable
from tinyllm.storage.caps import MESSAGE_CAP

Frame = str | bytes

COMPRESS_ABOVE = 4096
"""Bytes: below it, compression saves no page and hides the text."""

_SAMPLE = 16_384
"""Bytes, from the middle of a body that has several times as many: they tell whether it is worth deflating, which
takes as long for 5 MiB as a thousand small nodes."""

_RAW = b"\x00"
_DEFLATED = b"\x01"
_LEVEL = 1  # on JSON within a tenth of level 6's size, at a quarter of its time


class FrameDamaged(ValueError):
    """A frame does not hold what was put into it. The caller knows, and says, whose it is."""


def encode(body: bytes) -> Frame:
    """The frame of `body`.

    :raises ValueNotStorable: it is over the cap, and `decode` would refuse it.
    """
    size = len(body)
    if size > MESSAGE_CAP:
        raise ValueNotStorable("body", f"its {size} bytes exceed the {MESSAGE_CAP} that a row may have")
    if size > COMPRESS_ABOVE and _promises_to_shrink(body, size):
        deflated = zlib.compress(body, _LEVEL)
        if len(deflated) < size - size // 8:
            return _DEFLATED + size.to_bytes(4, "big") + deflated
    if b"\x00" not in body:  # SQLite's text functions stop at one
        try:
            return body.decode()
        except UnicodeDecodeError:
            pass
    return _RAW + body


def _promises_to_shrink(body: bytes, size: int) -> bool:
    if size < 4 * _SAMPLE:
        return True
    sample = body[size // 2 : size // 2 + _SAMPLE]
    return len(zlib.compress(sample, _LEVEL)) < _SAMPLE - _SAMPLE // 3


def decode(frame: Frame) -> bytes:
    """The body of `frame`.

    :raises FrameDamaged: it is none, or would grow over the cap.
    """
    if isinstance(frame, str):
        return frame.encode()
    tag = frame[:1]
    if tag == _RAW:
        return frame[1:]
    if tag != _DEFLATED:
        raise FrameDamaged(f"unknown frame {tag!r}")
    size = int.from_bytes(frame[1:5], "big")
    if size > MESSAGE_CAP:
        raise FrameDamaged(f"it claims {size} bytes, more than any message may have")
    inflate = zlib.decompressobj()
    try:
        # One byte more than promised shows a frame that goes on: nothing is ever inflated beyond that.
        body = inflate.decompress(frame[5:], size + 1)
    except zlib.error as error:
        raise FrameDamaged(str(error)) from error
    if len(body) != size or not inflate.eof or inflate.unused_data:
        raise FrameDamaged(f"{size} bytes were promised")
    return body


def checksum(body: bytes, *belongs_to: object) -> int:
    """CRC-32 of `body` and of what it belongs to."""
    return checksum_of(body, repr(belongs_to))


def checksum_of(body: bytes, belongs_to: str) -> int:
    """The same, of the text of the tuple of what it belongs to."""
    return zlib.crc32(body, zlib.crc32(belongs_to.encode("utf-8", "surrogatepass")))
