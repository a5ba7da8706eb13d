"""What a trace becomes by the pauses and cancels that its run has heard."""

from __future__ import annotations

import pytest

from tinyllm.actors.heard import Heard
from tinyllm.storage.contract import Command, CommandKind, Status


def command(number: int, kind: CommandKind) -> Command:
    return Command(number, 0, kind, None, None, None, 0.0)


@pytest.mark.parametrize(
    ("kinds", "failed", "ending"),
    [
        ((), False, None),
        ((), True, "failed"),
        (("pause",), False, "paused"),
        (("pause",), True, "failed"),
        (("cancel",), True, "cancelled"),
        (("pause", "cancel"), False, "cancelled"),
        (("cancel", "pause"), False, "cancelled"),
    ],
)
def test_a_failure_is_not_forgotten_for_a_pause_and_a_cancel_counts_most(
    kinds: tuple[CommandKind, ...], failed: bool, ending: Status | None
) -> None:
    heard = Heard()
    for number, kind in enumerate(kinds):
        heard.obey(command(number, kind))
    assert heard.ending(failed=failed) == ending
    assert heard.obeyed == list(range(len(kinds)))


def test_what_is_told_again_is_not_obeyed_again() -> None:
    heard, one, two = Heard(), command(1, "pause"), command(2, "cancel")
    assert heard.fresh([one]) == [one]
    assert heard.fresh([one, two]) == [two]
    assert heard.fresh([one, two]) == []
