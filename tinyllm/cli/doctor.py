"""The command `doctor`: how a store is, and what can be saved of a damaged one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tinyllm.cli.options import command_line, json_option, log_level_option, storage_option
from tinyllm.cli.text import local_time, plural, say, say_json

if TYPE_CHECKING:
    from tinyllm.storage.sqlite.health import Health, Holder
    from tinyllm.storage.sqlite.salvage import Salvaged

SHOWN = 20
"""Problems of one kind that are told to a person."""


@click.command()
@click.option(
    "--salvage",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Copy every trace that can be read to a new store in DIR.",
)
@storage_option
@json_option
@log_level_option
@click.pass_context
def doctor(context: click.Context, salvage: Path | None, storage: str | None, as_json: bool) -> None:
    """Read the whole store, and say how it is.

    The exit code is 1 if something is damaged. Nothing is changed; processes may go on meanwhile.
    """
    from tinyllm.core.store import storage_path
    from tinyllm.errors import StoreMissing
    from tinyllm.storage.sqlite import health
    from tinyllm.storage.sqlite import salvage as rescue
    from tinyllm.storage.sqlite.database import FILE_NAME

    place = storage_path(storage).absolute()
    if not (place / FILE_NAME).exists():
        raise StoreMissing(str(place), "nothing is there")
    found = health.examine(place)
    saved = None
    if salvage is not None:
        saved = rescue.salvage(place, found.intact, salvage.expanduser().absolute())
    if as_json:
        say_json(_object(found, saved))
    else:
        say("\n".join(_lines(found)))
        for line in _advice(found, saved, salvage):
            say(line, err=True)
    if not found.sound or (saved is not None and saved.left):
        context.exit(1)


def _lines(found: Health) -> list[str]:
    bug = ", which can corrupt a database with a write-ahead log" if found.wal_reset_bug else ""
    lines = [
        f"store      {found.path}",
        f"sqlite     {found.sqlite}{bug}; journal mode {found.journal_mode}, schema {found.schema}",
        f"size       {_bytes(found.database_bytes)}, of which {_bytes(found.free_bytes)} are free;"
        f" write-ahead log {_bytes(found.wal_bytes)}",
    ]
    holders = [_holder(holder) for holder in found.holders] or ["none has a lease"]
    lines += [f"{'processes' if at == 0 else '':<11}{line}" for at, line in enumerate(holders)]
    counts = [f"{count:,} {status}" for status, count in sorted(found.traces.items())]
    lines.append(f"traces     {', '.join(counts) or 'none'}")
    told = [*found.problems[:SHOWN], *(f"{each.trace_id}: {each.what}" for each in found.damaged[:SHOWN])]
    lines += [f"{'damage' if at == 0 else '':<11}{line}" for at, line in enumerate(told)]
    more = len(found.problems) + len(found.damaged) - len(told)
    if more:
        lines.append(f"{'':<11}and {plural(more, 'other')}; --json has all")
    aside = [f"{each.trace_id}: {each.what}" for each in found.set_aside[:SHOWN]]
    lines += [f"{'set aside' if at == 0 else '':<11}{line}" for at, line in enumerate(aside)]
    if found.sound and not aside:
        lines.append("check      the file is whole, and every trace can be read")
    return lines


def _advice(found: Health, saved: Salvaged | None, target: Path | None) -> list[str]:
    if saved is not None:
        lines = [f"{plural(len(saved.copied), 'trace')} copied to {target}"]
        lines += [f"not copied: {trace_id}: {why}" for trace_id, why in saved.left.items()]
        return lines
    count = len(found.intact)
    lines = []
    if found.damaged:
        lines += ["a damaged trace goes on from its newest checkpoint that is whole:"]
        lines += [f"  {command_line('resume', each.trace_id)}" for each in found.damaged[:1]]
    if found.sound or not count:
        return lines
    return [*lines, f"copy the {plural(count, 'trace')} that can be read to a new store with:", f"  {_salvage_line()}"]


def _salvage_line() -> str:
    return command_line("doctor", "--salvage", "DIR")


def _holder(holder: Holder) -> str:
    owner = holder.owner
    state = {True: "alive", False: "dead", None: "not to be seen from here"}[holder.alive]
    has = plural(holder.traces, "trace")
    return f"{owner.pid} on {owner.host}, since {local_time(owner.since)}, {state}, {has}"


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.0f} kB"


def _object(found: Health, saved: Salvaged | None) -> dict[str, Any]:
    import attrs

    told = {**attrs.asdict(found), "sound": found.sound}
    told["processes"] = [
        {"pid": each.owner.pid, "host": each.owner.host, "since": each.owner.since, "alive": each.alive}
        | {"traces": each.traces}
        for each in found.holders
    ]
    del told["holders"]
    if saved is not None:
        told["salvaged"] = attrs.asdict(saved)
    return told
