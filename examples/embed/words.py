"""The node functions of `words.yaml`."""

from __future__ import annotations

from pathlib import Path

from tinyllm import node


@node
def paragraphs(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").split("\n\n")


@node
def count(paragraph: str) -> int:
    return len(paragraph.split())


@node
def total(counts: list[int]) -> int:
    return sum(counts)
