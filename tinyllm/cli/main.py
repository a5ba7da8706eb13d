"""The `tinyllm` command: its groups, its exit codes, and nothing that takes long to import."""

from __future__ import annotations

import io
import sys
from typing import Any

import click

from tinyllm import __version__
from tinyllm.cli.doctor import doctor
from tinyllm.cli.execute import fork, resume, run
from tinyllm.cli.graphs import validate
from tinyllm.cli.look import checkpoints, show, traces
from tinyllm.cli.outside import answer, cancel, delete, pause, tag
from tinyllm.cli.report import INTERRUPTED, report
from tinyllm.cli.submit import submit
from tinyllm.cli.supervise import drain, status, supervise
from tinyllm.cli.text import printable, say

EXIT_CODES = """\b
Exit codes:
  0    done
  1    failed: a node failed for good, the store did, another process has the trace, or it was cancelled
  2    usage: an argument, a setting or a graph file is wrong, or does not fit the trace
  3    paused: it waits for an answer, or for `tinyllm resume`
  4    not found: no such trace, checkpoint, question or store, or no supervisor
  130  interrupted (Ctrl-C or SIGTERM); `tinyllm resume` goes on
"""


class Commands(click.Group):
    """Lists its commands in the order in which they were added, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(self.commands)


class Root(Commands):
    """Ends every command that raises with a report, never with a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            # It names what was typed, or stands in a store. (That it is final, click says only to type checkers.)
            error.message = printable(error.message)  # type: ignore[misc]
            raise
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click knows what to do
        except KeyboardInterrupt:  # before a trace was executed: there is nothing to save
            say("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:
            ctx.exit(report(error, ctx))


@click.group(cls=Root, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Run long graphs of nodes that can be killed at any instant and go on from where they were."""


@cli.group(cls=Commands)
def graph() -> None:
    """Check graph files. The commands for traces are also here, as `tinyllm graph resume`."""


graph.add_command(validate)
for command in (run, submit, resume, traces, show, checkpoints, fork, answer, pause, cancel, tag, delete):
    cli.add_command(command)
    graph.add_command(command)
for command in (supervise, status, drain, doctor):
    cli.add_command(command)


def main() -> None:
    """What the installed `tinyllm` starts."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a result may hold what the terminal's encoding has no character for
        sys.stdout.reconfigure(errors="backslashreplace")
    cli(prog_name="tinyllm")
