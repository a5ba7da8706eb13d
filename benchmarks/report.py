"""What was measured, written three times: as JSON with every round, as tables in Markdown, and as a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plot
from common import Figures
from plan import TITLES, Variant
from targets import Results, Verdict

COLUMNS: dict[str, tuple[str, float]] = {
    "us_per_node": ("us/node", 1),
    "us_per_commit": ("us/commit", 1),
    "us_per_row": ("us/row", 1),
    "us_per_hop": ("us/hop", 1),
    "steps_per_second": ("steps/s", 1),
    "us_per_step_first": ("us/step, first 1,000", 1),
    "us_per_step": ("us/step, later", 1),
    "first_node_ms": ("first node, ms", 1),
    "all_read_ms": ("all read, ms", 1),
    "stall_p50_ms": ("stall p50, ms", 1),
    "stall_p99_ms": ("stall p99, ms", 1),
    "stall_max_ms": ("stall max, ms", 1),
    "p99_over_p50": ("p99/p50", 1),
    "prune_debt": ("prune debt", 1),
    "prune_share": ("pruning, %", 0.01),
    "payload_bytes": ("payload, MiB", 2**20),
    "disk_bytes": ("disk, MiB", 2**20),
    "disk_over_payload": ("disk/payload", 1),
    "peak_rss_bytes": ("peak RSS, MiB", 2**20),
}
"""Which figures the tables show, in this order: a heading, and by what the figure is divided."""


TARGETS = """\
What the project set itself before it was built, in part from a prototype on a faster machine; a **no** is what is left
to do. They say how far tinyllm is from the least that such a design can cost, not whether it is quick enough for you:
for that, look at the other systems below."""

BREAKDOWN = """\
W1 on asyncio, with clocks around the parts of tinyllm. They take their time, too, and the run is slower than W1 above:
what counts are the proportions. What the storage thread does happens beside the loop, but for the interpreter lock."""


def headline(figures: Mapping[str, Any]) -> str:
    """The first figure that the tables would show."""
    for name, (heading, unit) in COLUMNS.items():
        if name in figures:
            return f"{number(figures[name] / unit)} {heading}"
    return "no figure"


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f}" if abs(value) >= 0.1 else f"{value:.2g}"


def write(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results: Results = result["results"]
    runs = [
        asdict(variant) | {"medians": results.medians(variant), "rounds": rounds}
        for variant, rounds in results.rounds.items()
    ]
    facts = result | {"targets": [asdict(verdict) for verdict in result["targets"]], "results": runs}
    (folder / "results.json").write_text(json.dumps(facts, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(result))
    (folder / "results.svg").write_text(plot.draw(results))


def markdown(result: dict[str, Any]) -> str:
    results: Results = result["results"]
    parts = [_head(result), _targets(result["targets"])]
    for workload, title in TITLES.items():
        rows = [variant for variant in results.rounds if variant.workload == workload]
        if rows:
            parts.append(f"## {title}\n\n{_workload(results, rows)}")
    if result["breakdown"]:
        parts.append(f"## Where the time of a node goes\n\n{BREAKDOWN}\n\n{result['breakdown'].rstrip()}")
    parts.append(f"## Versions\n\n{_versions(result['versions'])}")
    return "\n\n".join(parts) + "\n"


def _head(result: dict[str, Any]) -> str:
    commit = result["us_per_commit"]
    probes = " and ".join(
        f"{number(us)} us {'before' if when == 'before' else 'after'} it" for when, us in commit.items() if us
    )
    lines = [
        "# What was measured",
        "",
        f"On {result['when']}, tree `{result['tree']}`; medians of {result['rounds']} alternating rounds"
        + ("; **a quick run with small sizes, which no figure is to be quoted from**." if result["quick"] else "."),
        f"One raw commit (WAL, `synchronous=FULL`) took {probes}."
        + (" **The disk changed its speed meanwhile.**" if _changed(list(commit.values())) else ""),
        "",
        *(f"- {name}: {value}" for name, value in result["machine"].items()),
    ]
    if result["failures"]:
        lines += ["", "Failed:", "", *(f"- {failure}" for failure in result["failures"])]
    return "\n".join(lines) + "\n\n![us per durable node by system; us per step as messages grow](results.svg)"


def _changed(probes: list[float | None]) -> bool:
    known = [us for us in probes if us]
    return bool(known) and max(known) > 1.5 * min(known)


def _targets(verdicts: list[Verdict]) -> str:
    rows = []
    for verdict in verdicts:
        measured = "not measured" if verdict.measured is None else f"{number(verdict.measured)} {verdict.unit}".rstrip()
        met = {True: "yes", False: "**no**", None: "-"}[verdict.met]
        rows.append([verdict.workload.upper(), verdict.text, verdict.must, measured, met])
    return f"## Figures to reach\n\n{TARGETS}\n\n" + _table(["", "figure", "must reach", "measured", "met"], rows)


def _workload(results: Results, variants: list[Variant]) -> str:
    medians = {variant: _with_disk_over_payload(variant, results.medians(variant)) for variant in variants}
    shown = [name for name in COLUMNS if any(name in figures for figures in medians.values())]
    spread = "us_per_node" in shown  # it is the first column then
    rows = []
    for variant, figures in medians.items():
        cells = [number(float(figures[name]) / COLUMNS[name][1]) if name in figures else "" for name in shown]
        if spread:
            cells.insert(1, _spread(results.rounds[variant]))
        pragmas = "/".join(str(figures[name]) for name in ("journal_mode", "synchronous") if name in figures)
        rows.append([variant.system, variant.mode, variant.loop, f"{variant.size:,}", *cells, pragmas])
    headings = [COLUMNS[name][0] for name in shown]
    if spread:
        headings.insert(1, "min to max")
    return _table(["system", "mode", "loop", "n", *headings, "journal/synchronous"], rows)


def _with_disk_over_payload(variant: Variant, figures: Figures) -> Figures:
    """In W2 all of a store but its empty schema is there for the messages; elsewhere that would say little."""
    if variant.workload != "w2" or "disk_bytes" not in figures:
        return figures
    disk, empty, payload = (float(figures[name]) for name in ("disk_bytes", "empty_bytes", "payload_bytes"))
    return figures | {"disk_over_payload": (disk - empty) / payload}


def _spread(rounds: list[Figures]) -> str:
    values = [float(figures["us_per_node"]) for figures in rounds if "us_per_node" in figures]
    return f"{number(min(values))} to {number(max(values))}" if values else ""


def _versions(versions: dict[str, dict[str, str]]) -> str:
    rows = [
        [system, ", ".join(f"{package} {version}" for package, version in sorted(found.items()))]
        for system, found in sorted(versions.items())
    ]
    return _table(["venv", "versions"], rows)


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
