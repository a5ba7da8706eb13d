"""The plot of the results, as SVG: what a durable node costs by system, and what a step costs as messages grow."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from targets import Results

WIDTH, LEFT, RIGHT, ROW = 860, 250, 70, 20
COLOURS = {"tinyllm": "#1f6feb", "langgraph": "#d1590a", "dbos": "#6e40c9", "burr": "#8a6d00"}
FLOOR_COLOUR = "#8b949e"
NOT_DURABLE = ("none", "exit", "memory", "interval")

Series = dict[str, list[tuple[float, float]]]


def draw(results: Results) -> str:
    bars = sorted(_durable_nodes(results), key=lambda bar: bar[1])
    series = _growth(results)
    bars_height = 60 + ROW * len(bars) + 30 if bars else 0
    lines_height = 380 if series else 0
    height = bars_height + lines_height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" fill="#1f2328">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    if bars:
        parts += _bars(bars)
    if series:
        parts += _lines(series, bars_height)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _durable_nodes(results: Results) -> Iterable[tuple[str, float]]:
    for variant in results.rounds:
        if variant.workload != "w1" or variant.mode in NOT_DURABLE:
            continue
        figures = results.medians(variant)
        value = figures.get("us_per_node", figures.get("us_per_commit"))
        if isinstance(value, int | float):
            loop = "" if variant.loop == "asyncio" else f" ({variant.loop})"
            yield f"{variant.system} {variant.mode}{loop}", value


def _growth(results: Results) -> Series:
    found: Series = {}
    for variant in results.rounds:
        value = results.medians(variant).get("us_per_node")
        if variant.workload == "w2" and isinstance(value, int | float):
            found.setdefault(f"{variant.system} {variant.mode}", []).append((variant.size, value))
    return {name: sorted(points) for name, points in found.items()}


class _Log:
    """A logarithmic axis over whole decades, from `begin` to `end` in pixels."""

    def __init__(self, values: Iterable[float], begin: float, end: float) -> None:
        logs = [math.log10(value) for value in values]
        self._low = math.floor(min(logs))
        self._high = max(math.ceil(max(logs)), self._low + 1)
        self._begin, self._end = begin, end

    def at(self, value: float) -> float:
        share = (math.log10(value) - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[float]:
        return [10.0**power for power in range(self._low, self._high + 1)]


def _bars(bars: list[tuple[str, float]]) -> list[str]:
    axis = _Log([value for _, value in bars], LEFT, WIDTH - RIGHT)
    bottom = 60 + ROW * len(bars)
    parts = [
        _text(20, 24, "W1: us per node, with a checkpoint after each (logarithmic; shorter is better)", weight="bold")
    ]
    for tick in axis.ticks():
        parts.append(_line(axis.at(tick), 50, axis.at(tick), bottom))
        parts.append(_text(axis.at(tick), 44, f"{tick:g}", anchor="middle"))
    for row, (name, value) in enumerate(bars):
        y = 60 + ROW * row
        parts.append(_text(LEFT - 8, y + 11, name, anchor="end"))
        parts.append(
            f'<rect x="{LEFT}" y="{y}" width="{axis.at(value) - LEFT:.1f}" height="{ROW - 6}" fill="{_colour(name)}"/>'
        )
        parts.append(_text(axis.at(value) + 6, y + 11, f"{value:,.0f}"))
    return parts


def _lines(series: Series, top: int) -> list[str]:
    bottom, right = top + 330, WIDTH - LEFT
    across = _Log([x for points in series.values() for x, _ in points], 70, right)
    up = _Log([y for points in series.values() for _, y in points], bottom, top + 50)
    parts = [_text(20, top + 24, "W2: us per step, by the number of steps (both logarithmic)", weight="bold")]
    for tick in across.ticks():
        parts.append(_line(across.at(tick), top + 50, across.at(tick), bottom))
        parts.append(_text(across.at(tick), bottom + 18, f"{tick:,.0f}", anchor="middle"))
    for tick in up.ticks():
        parts.append(_line(70, up.at(tick), right, up.at(tick)))
        parts.append(_text(62, up.at(tick) + 4, f"{tick:,.0f}", anchor="end"))
    label = top + 50
    for name, points in sorted(series.items(), key=lambda item: -item[1][-1][1]):
        path = " ".join(f"{across.at(x):.1f},{up.at(y):.1f}" for x, y in points)
        dashes = ' stroke-dasharray="5 3"' if name.endswith(("-delta", "walfull")) else ""
        colour = _colour(name)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        parts += [f'<circle cx="{across.at(x):.1f}" cy="{up.at(y):.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(
            f'<line x1="{right + 20}" y1="{label}" x2="{right + 44}" y2="{label}" stroke="{colour}" '
            f'stroke-width="2"{dashes}/>'
        )
        parts.append(_text(right + 50, label + 4, f"{name}: {points[-1][1]:,.0f}"))
        label += 20
    return parts


def _colour(name: str) -> str:
    return COLOURS.get(name.split()[0], FLOOR_COLOUR)


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#d0d7de"/>'
