"""What was measured, and the figures tinyllm is to reach: each a ratio or a difference of medians of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from common import Figures
from plan import Variant

MIB = 2**20


class NotMeasuredError(LookupError):
    """This run has no such figure: its script failed, or its workload was left out."""


@dataclass
class Results:
    """The figures of each round of each variant."""

    rounds: dict[Variant, list[Figures]] = field(default_factory=dict)

    def add(self, variant: Variant, figures: Figures) -> None:
        self.rounds.setdefault(variant, []).append(figures)

    def medians(self, variant: Variant) -> Figures:
        """Each figure's median over the rounds; a text as the last round has it."""
        return summary(self.rounds[variant])

    def get(self, key: str, figure: str, n: int | None = None) -> float:
        """The median of `figure`; `key` is like `w1 tinyllm async` or, on another loop, `w1 tinyllm async trio`. `n` is
        the size in the full benchmark, and may be left out where there is only one."""
        workload, system, mode, loop = (key + " asyncio").split()[:4]
        for variant in self.rounds:
            if (workload, system, mode, loop) == (variant.workload, variant.system, variant.mode, variant.loop) and (
                n in (None, variant.n)
            ):
                value = self.medians(variant).get(figure)
                if isinstance(value, int | float):
                    return value
        raise NotMeasuredError(f"{key}: {figure}")


def summary(rounds: Sequence[Mapping[str, float | str]]) -> Figures:
    found: Figures = {}
    for name, last in rounds[-1].items():
        numbers = [value for figures in rounds if isinstance(value := figures.get(name), int | float)]
        found[name] = last if isinstance(last, str) else median(numbers)
    return found


@dataclass(frozen=True)
class Target:
    """`measured` is to be at most `limit`, or at least if `at_least`."""

    workload: str
    text: str
    limit: float
    unit: str
    measured: Callable[[Results], float]
    at_least: bool = False


@dataclass(frozen=True)
class Verdict:
    workload: str
    text: str
    must: str
    measured: float | None
    unit: str
    met: bool | None


def _us(key: str, n: int | None = None) -> Callable[[Results], float]:
    return lambda results: results.get(key, "us_per_node", n)


def _ratio(over: Callable[[Results], float], under: Callable[[Results], float]) -> Callable[[Results], float]:
    return lambda results: over(results) / under(results)


def _added(key: str, base: str) -> Callable[[Results], float]:
    """Microseconds per node that `key` costs over `base`."""
    return lambda results: _us(key)(results) - _us(base)(results)


def _figure(key: str, figure: str, n: int | None = None, scale: float = 1) -> Callable[[Results], float]:
    return lambda results: results.get(key, figure, n) * scale


def _sync_beyond_a_commit(results: Results) -> float:
    added = _added("w1 tinyllm sync", "w1 tinyllm none")(results)
    return added - results.get("w1 commit sync", "us_per_commit")


def _burr_at_its_best(results: Results) -> float:
    return min(_us("w1 burr shipped")(results), _us("w1 burr shipped-async")(results))


def _constant_adds(results: Results) -> float:
    return results.get("w5 tinyllm async", "us_per_step") - results.get("w5 tinyllm none", "us_per_step")


def _disk_of_messages(results: Results) -> float:
    """The worst of all sizes from 1,000 on."""
    worst = 0.0
    for n in (1000, 2500, 10_000):
        disk, empty, payload = (
            results.get("w2 tinyllm async", figure, n) for figure in ("disk_bytes", "empty_bytes", "payload_bytes")
        )
        worst = max(worst, (disk - empty) / payload)
    return worst


def _disk_of_appended(results: Results) -> float:
    disk, before, payload = (
        results.get("w9 tinyllm async", figure) for figure in ("disk_bytes", "before_bytes", "payload_bytes")
    )
    return (disk - before) / payload


TARGETS = (
    Target(
        "w1",
        "no checkpoint, over the bare prototype",
        2.5,
        "x",
        _ratio(_us("w1 tinyllm none"), _us("w1 prototype none")),
    ),
    Target("w1", "no checkpoint, of LangGraph's", 0.5, "x", _ratio(_us("w1 tinyllm none"), _us("w1 langgraph none"))),
    Target(
        "w1", "LangGraph async, over ours", 12, "x", _ratio(_us("w1 langgraph async"), _us("w1 tinyllm async")), True
    ),
    Target("w1", "Burr as shipped, over our async", 10, "x", _ratio(_burr_at_its_best, _us("w1 tinyllm async")), True),
    Target("w1", "async adds on the path", 40, "us/node", _added("w1 tinyllm async", "w1 tinyllm none")),
    Target("w1", "sync adds, beyond a raw commit of this run", 130, "us/node", _sync_beyond_a_commit),
    Target("w1", "the memory backend adds", 15, "us/node", _added("w1 tinyllm memory", "w1 tinyllm none")),
    Target("w1", "the interval mode (5 s) adds", 3, "us/node", _added("w1 tinyllm interval", "w1 tinyllm none")),
    Target(
        "w2",
        "a step at 10,000, over one at 1,000",
        1.15,
        "x",
        _ratio(_us("w2 tinyllm async", 10_000), _us("w2 tinyllm async", 1000)),
    ),
    Target("w2", "disk beyond the empty schema, over the payload", 1.6, "x", _disk_of_messages),
    Target(
        "w3",
        "steps a second, over LangGraph async",
        10,
        "x",
        _ratio(_us("w3 langgraph async"), _us("w3 tinyllm async")),
        True,
    ),
    Target(
        "w3",
        "steps a second with sync, over LangGraph sync",
        8,
        "x",
        _ratio(_us("w3 langgraph sync"), _us("w3 tinyllm sync")),
        True,
    ),
    Target("w3", "stall of the event loop, p99, async", 5, "ms", _figure("w3 tinyllm async", "stall_p99_ms")),
    Target("w3", "stall of the event loop, p99, sync", 5, "ms", _figure("w3 tinyllm sync", "stall_p99_ms")),
    Target("w4", "first node started, at 10,000 steps", 3, "ms", _figure("w4 tinyllm async", "first_node_ms", 10_000)),
    Target(
        "w4",
        "all messages read, over reading and decoding their bytes",
        1.5,
        "x",
        _ratio(
            _figure("w4 tinyllm async", "all_read_ms", 10_000), _figure("w4 read_decode none", "all_read_ms", 10_000)
        ),
    ),
    Target("w5", "async adds to a step, once the 5 MiB are recorded", 150, "us/step", _constant_adds),
    Target("w5", "disk, over 5 MiB", 1.3, "x", _figure("w5 tinyllm async", "disk_bytes", scale=1 / (5 * MIB))),
    Target("w6", "durable", 120, "us/node", _us("w6 tinyllm async")),
    Target("w7", "durable steps", 10_000, "steps/s", _figure("w7 tinyllm async", "steps_per_second"), True),
    Target("w7", "memory at its peak", 300, "MiB", _figure("w7 tinyllm async", "peak_rss_bytes", scale=1 / MIB)),
    Target("w7", "time of a trace, p99 over p50", 2, "x", _figure("w7 tinyllm async", "p99_over_p50")),
    Target(
        "w8",
        "a step of the last 1,000, over one of the first",
        1.1,
        "x",
        _ratio(_figure("w8 tinyllm async", "us_per_step"), _figure("w8 tinyllm async", "us_per_step_first")),
    ),
    Target(
        "w8",
        "memory at the end, over that at 1,000 steps",
        1.1,
        "x",
        _ratio(_figure("w8 tinyllm async", "rss_bytes"), _figure("w8 tinyllm async", "rss_bytes_first")),
    ),
    Target("w8", "checkpoints left to prune at the end", 0, "", _figure("w8 tinyllm async", "prune_debt")),
    Target("w8", "time that pruning takes", 20, "%", _figure("w8 tinyllm async", "prune_share", scale=100)),
    Target(
        "w8",
        "the file at its largest, over that at 1,000 steps (bounded)",
        2,
        "x",
        _ratio(_figure("w8 tinyllm async", "disk_bytes_most"), _figure("w8 tinyllm async", "disk_bytes_first")),
    ),
    Target("w9", "async adds", 60, "us/step", _added("w9 tinyllm async", "w9 tinyllm none")),
    Target("w9", "disk, over what was appended", 1.6, "x", _disk_of_appended),
    Target("w10", "durable", 120, "us/node", _us("w10 tinyllm async")),
    Target("w10", "longest stall of the event loop", 10, "ms", _figure("w10 tinyllm async", "stall_max_ms")),
)


def verdicts(results: Results, workloads: set[str]) -> list[Verdict]:
    """One for each target of these workloads."""
    return [_verdict(target, results) for target in TARGETS if target.workload in workloads]


def _verdict(target: Target, results: Results) -> Verdict:
    must = f"{'>=' if target.at_least else '<='} {target.limit:g} {target.unit}".rstrip()
    try:
        measured = target.measured(results)
    except NotMeasuredError:
        return Verdict(target.workload, target.text, must, None, target.unit, None)
    met = measured >= target.limit if target.at_least else measured <= target.limit
    return Verdict(target.workload, target.text, must, measured, target.unit, met)
