"""The unit for systemd: it starts a command that there is, and leaves it the time that it asks for."""

from __future__ import annotations

import shlex
from configparser import ConfigParser
from pathlib import Path

import click
import pytest

from tinyllm.cli.main import cli

UNIT = Path(__file__).parents[2] / "examples" / "systemd" / "tinyllm.service"


@pytest.fixture(scope="module")
def unit() -> ConfigParser:
    parser = ConfigParser(interpolation=None, delimiters=["="])  # strict: nothing is said twice
    parser.optionxform = str  # type: ignore[method-assign,assignment] # names differ by case
    parser.read_string(UNIT.read_text())
    return parser


def started(unit: ConfigParser) -> tuple[click.Command, dict[str, object]]:
    """The command that ExecStart names, and its parameters as they are written there."""
    program, name, *words = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "tinyllm"
    command = cli.commands[name]
    parsed, left, _order = command.make_parser(click.Context(command)).parse_args(words)
    assert left == []
    return command, parsed


def test_it_starts_a_supervisor(unit: ConfigParser) -> None:
    command, parsed = started(unit)
    assert command.name == "supervise"
    assert parsed["workers"] == "4"
    assert parsed["grace"] == "60"
    state = f"/var/lib/{unit['Service']['StateDirectory']}"
    assert str(parsed["storage"]).startswith(f"{state}/")


def test_the_command_has_the_time_that_it_is_told_to_take(unit: ConfigParser) -> None:
    _command, parsed = started(unit)
    assert float(unit["Service"]["TimeoutStopSec"]) >= float(str(parsed["grace"])) + 10


def test_what_a_supervisor_counts_on(unit: ConfigParser) -> None:
    service = unit["Service"]
    assert {name: service[name] for name in ("Type", "NotifyAccess", "KillMode", "Restart", "OOMPolicy")} == {
        "Type": "notify",
        "NotifyAccess": "main",
        "KillMode": "mixed",
        "Restart": "on-failure",
        "OOMPolicy": "continue",
    }
    assert float(service["WatchdogSec"]) > 0


def test_the_commands_in_its_comments_are_there(unit: ConfigParser) -> None:
    lines = [
        line.partition("/bin/tinyllm ")[2] for line in UNIT.read_text().splitlines() if line.startswith("#   sudo")
    ]
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        command = cli.commands[name]
        command.make_parser(click.Context(command)).parse_args(words)
    assert len(lines) == 2
