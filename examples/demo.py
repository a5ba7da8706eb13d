"""`make demo`: survey the standard library, kill the survey three times, and check every claim that tinyllm makes.

Everything is typed into the real command line, in processes of their own. A claim that does not hold ends the demo with
exit code 1 and leaves its directory behind.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio

from tinyllm import SQLiteCheckpointStorage, StorageConfig
from tinyllm.graph.payload import decode_payload

TINYLLM = Path(sys.executable).with_name("tinyllm")
SURVEY = os.path.relpath(Path(__file__).parent / "survey" / "survey.yaml")
PATIENCE = 110  # seconds that one command may take


class Survey:
    """The commands of this demo, with one store, one witness and a directory for the reports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.witness = folder / "witness"
        self.witness.touch()

    def type(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Type a `tinyllm` command, and wait until it has ended or was killed."""
        environment = {**os.environ, "SURVEY_WITNESS": str(self.witness)}
        command = [str(TINYLLM), *words, "--storage", str(self.store)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)

    def run(self, trace_id: str, kill_after: int | None = None) -> subprocess.CompletedProcess[str]:
        """`tinyllm run` of the survey; its report goes to a directory named like the trace."""
        words = ["run", SURVEY, "--id", trace_id, "--set", f"out={json.dumps(str(self.folder / trace_id))}", "--json"]
        finished = self.type(*words, *([] if kill_after is None else ["--kill-after", str(kill_after)]))
        wanted = 0 if kill_after is None else -signal.SIGKILL
        claim(finished.returncode == wanted, f"the run ended with {finished.returncode}, not {wanted}", finished.stderr)
        return finished

    def parsed(self) -> list[int]:
        """The numbers of the batches that were parsed, as the witness has them."""
        return [int(line.split()[0]) for line in self.witness.read_text().splitlines()]

    def recorded(self, trace_id: str) -> set[int]:
        """The numbers of the batches whose parse is durable, as the store has them."""

        async def read() -> set[int]:
            storage = SQLiteCheckpointStorage(StorageConfig(sqlite_path=str(self.store)))
            await storage.initialize()
            try:
                history = await storage.messages(trace_id, limit=1_000_000)
            finally:
                await storage.close()
            return {decode_payload(row.body).value["number"] for row in history if row.node == "parse"}

        return anyio.run(read)

    def report(self, trace_id: str) -> tuple[dict[str, Any], bytes]:
        """The report as data, and all its bytes."""
        files = [self.folder / trace_id / name for name in ("report.json", "report.md")]
        texts = [file.read_bytes() for file in files]
        return json.loads(texts[0]), b"".join(texts)


class Failed(Exception):
    """A claim does not hold."""


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="tinyllm-demo-"))
    try:
        demonstrate(Survey(folder))
    except Failed as failed:
        sys.exit(f"\nTHE DEMO FAILED: {failed}\nWhat it did is in {folder}.")
    shutil.rmtree(folder)


def demonstrate(survey: Survey) -> None:
    began = time.monotonic()
    say(f"tinyllm surveys the standard library of Python {platform.python_version()}, and is killed three times.\n")

    say("1  The reference: a survey that nobody disturbs (about 20 s)")
    clock = time.monotonic()
    steps = json.loads(survey.run("reference").stdout)["nodes_executed"]
    report, reference = survey.report("reference")
    batches = survey.parsed()
    totals = report["totals"]
    row("surveyed", f"{totals['files']:,} files, {totals['lines']:,} lines; {totals['broken']} files do not parse")
    row("recorded", f"{steps} steps, {len(batches)} of them batches of files, in {time.monotonic() - clock:.0f} s")
    claim(totals["broken"] >= 3, "the three files that do not parse are not in the report")
    claim(sorted(batches) == list(range(1, len(batches) + 1)), "the reference did not parse each batch once")

    say("\n2  The same survey as trace 'demo', killed with SIGKILL, and continued by typing the same command:")
    say(f"   $ tinyllm run {SURVEY} --id demo [--kill-after N]")
    survey.witness.write_text("")
    durable: set[int] = set()
    again: Counter[int] = Counter()
    for kill_after in [steps // 4, steps // 2, steps * 3 // 4, None]:
        before = len(survey.parsed())
        finished = survey.run("demo", kill_after)
        again += Counter(durable & set(survey.parsed()[before:]))
        row(opening(finished.stderr), f"killed at step {kill_after}" if kill_after else "completed")
        if kill_after:
            durable = survey.recorded("demo")
    claim(survey.report("demo")[1] == reference, "the report differs from the reference")
    row("report", f"the same as the reference, byte for byte ({len(reference):,} bytes)")

    say("\n3  The witness: a file that every parse appends a line to, and that tinyllm knows nothing of")
    parsed = survey.parsed()
    claim(set(parsed) == set(batches), "a batch was not parsed")
    claim(not again, f"batches {sorted(again)} were recorded, and parsed again")
    row("lines", f"{len(parsed)} for {len(batches)} batches: {len(parsed) - len(batches)} were under way at a kill")
    row("batches recorded before a kill", f"{len(durable)}, of which {len(again)} were parsed again")

    say("\n4  A fork: the same survey from its node 'rank' on, ranked by lines")
    say("   $ tinyllm fork demo --at rank --set ranking='\"lines\"'")
    out = json.dumps(str(survey.folder / "fork"))
    forked = survey.type("fork", "demo", "--at", "rank", "--set", 'ranking="lines"', "--set", f"out={out}", "--json")
    claim(forked.returncode == 0, "the fork failed", forked.stderr)
    by_lines, fork = survey.report("fork")
    scores = [file["lines"] for file in by_lines["files"]]
    claim(survey.parsed() == parsed, "the fork parsed files")
    claim(
        fork != reference and by_lines["totals"] == totals, "the fork's report is not another view of the same survey"
    )
    claim(scores == sorted(scores, reverse=True), "the fork's report is not ranked by lines")
    row("files parsed", str(len(survey.parsed()) - len(parsed)))
    row("first by complexity", ", ".join(file["path"] for file in report["files"][:3]))
    row("first by lines", ", ".join(file["path"] for file in by_lines["files"][:3]))

    say(f"\nEverything held, in {time.monotonic() - began:.0f} s.")


def opening(stderr: str) -> str:
    """What the command line said when the trace began or went on, without the trace's name."""
    found = re.search(r"^(?:resumed \S+: (kept .*)|\S+: (started))$", stderr, re.MULTILINE)
    if not found:
        raise Failed(f"the command line did not say how the trace began\n{stderr}")
    return found[1] or found[2]


def say(text: str) -> None:
    print(text, flush=True)


def row(what: str, value: str) -> None:
    say(f"   {what:<42}  {value}")


def claim(holds: bool, otherwise: str, details: str = "") -> None:
    if not holds:
        raise Failed(f"{otherwise}\n{details}".rstrip())


if __name__ == "__main__":
    main()
