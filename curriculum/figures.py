"""Figures of a plan as inline SVG: curves with a band, stacked counts, and what is left in the bins."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLOURS = ("#1b6ca8", "#c0504d", "#4f8f3a", "#8064a2", "#d08a1d", "#2a9d8f", "#6d6d6d", "#b5477f", "#77933c", "#31859c")
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 10, 36
LEGEND = 18
MOST_COLUMNS = 200
"""Columns of a figure; of more steps, each column shows the last of several."""


@dataclass(frozen=True)
class Frame:
    """The axes: steps from 0 to `steps` - 1, values from 0 to `high`."""

    steps: int
    high: float
    width: int = 900
    height: int = 280

    def x(self, step: float) -> float:
        return LEFT + step / max(1, self.steps - 1) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - value / self.high * (self.height - BOTTOM - TOP)

    def points(self, values: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in values)

    def axes(self) -> str:
        """Grid lines with their values, and the steps below."""
        parts = []
        for value in ticks(self.high):
            y = self.y(value)
            parts.append(f'<line x1="{LEFT}" x2="{self.width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e5e5e5"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        return "".join(parts) + self.step_axis()

    def step_axis(self) -> str:
        parts = [
            f'<text x="{self.x(step):.1f}" y="{self.height - BOTTOM + 15}" text-anchor="middle">{step:g}</text>'
            for step in ticks(max(1, self.steps - 1))
        ]
        middle = (LEFT + self.width - RIGHT) / 2
        return "".join(parts) + f'<text x="{middle}" y="{self.height - 5}" text-anchor="middle">step</text>'


def ticks(high: float) -> list[float]:
    """Round values from 0 to `high`: steps of 1, 2 or 5 times a power of ten, four to nine of them."""
    power = 10.0 ** math.floor(math.log10(high / 4))
    step = next(power * k for k in (1, 2, 5, 10) if high / (power * k) <= 8)
    return [round(k * step, 10) for k in range(int(high / step + 1e-9) + 1)]


def columns(steps: int) -> list[int]:
    """The steps to show: all, or MOST_COLUMNS of them, the last included."""
    shown = min(steps, MOST_COLUMNS)
    return [(k + 1) * steps // shown - 1 for k in range(shown)]


def legend(names: Sequence[tuple[str, str]], top: int) -> str:
    """Names and their colours, one below the other."""
    return "".join(
        f'<rect x="{LEFT}" y="{top + LEGEND * k}" width="11" height="11" fill="{colour}"/>'
        f'<text x="{LEFT + 17}" y="{top + LEGEND * k + 10}">{html.escape(name)}</text>'
        for k, (name, colour) in enumerate(names)
    )


def svg(frame: Frame, body: str, names: Sequence[tuple[str, str]] = ()) -> str:
    height = frame.height + 6 + LEGEND * len(names)
    return (
        f'<svg viewBox="0 0 {frame.width} {height}" width="{frame.width}" height="{height}" role="img">{body}'
        f"{legend(names, frame.height + 4)}</svg>"
    )


def difficulty(mean: Sequence[float], spread: Sequence[float], target: Sequence[float]) -> str:
    """Figure 6 of the report: the mean pass rate of each batch within one standard deviation, and the Gaussian's mean."""
    frame = Frame(len(mean), 1.0)
    upper = [(step, min(1.0, m + s)) for step, (m, s) in enumerate(zip(mean, spread, strict=True))]
    lower = [(step, max(0.0, m - s)) for step, (m, s) in enumerate(zip(mean, spread, strict=True))]
    body = (
        f'{frame.axes()}<polygon points="{frame.points([*upper, *reversed(lower)])}" fill="{COLOURS[0]}" opacity="0.15"/>'
        f'<polyline points="{frame.points(list(enumerate(mean)))}" fill="none" stroke="{COLOURS[0]}" stroke-width="1.6"/>'
        f'<polyline points="{frame.points(list(enumerate(target)))}" fill="none" stroke="{COLOURS[1]}" stroke-width="1.6" '
        'stroke-dasharray="6 4"/>'
    )
    names = [("mean pass rate of the batch, ± one standard deviation", COLOURS[0]), ("the target's mean", COLOURS[1])]
    return svg(frame, body, names)


def curves(series: Mapping[str, Sequence[float | None]], target: Sequence[float]) -> str:
    """A pass rate per domain over the steps, and the Gaussian's mean."""
    frame = Frame(len(target), 1.0)
    parts, names = [frame.axes()], []
    for k, (name, values) in enumerate(series.items()):
        colour = COLOURS[k % len(COLOURS)]
        points = [(step, value) for step, value in enumerate(values) if value is not None]
        parts.append(f'<polyline points="{frame.points(points)}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
        names.append((name, colour))
    parts.append(
        f'<polyline points="{frame.points(list(enumerate(target)))}" fill="none" stroke="#222" stroke-dasharray="6 4"/>'
    )
    return svg(frame, "".join(parts), [*names, ("the target's mean (dashed)", "#222")])


def stacked(series: Mapping[str, Sequence[int]]) -> str:
    """Tasks per domain in each step, one on the other."""
    steps = len(next(iter(series.values())))
    frame = Frame(steps, max(1, max(sum(values) for values in zip(*series.values(), strict=True))))
    shown = columns(steps)
    width = (frame.width - LEFT - RIGHT) / len(shown)
    parts, names, below = [], [], [0] * len(shown)
    for k, (name, counts) in enumerate(series.items()):
        colour = COLOURS[k % len(COLOURS)]
        names.append((name, colour))
        for column, step in enumerate(shown):
            top, bottom = frame.y(below[column] + counts[step]), frame.y(below[column])
            below[column] += counts[step]
            parts.append(
                f'<rect x="{LEFT + column * width:.2f}" y="{top:.1f}" width="{width + 0.1:.2f}" height="{bottom - top:.1f}" '
                f'fill="{colour}" shape-rendering="crispEdges"/>'
            )
    return svg(frame, frame.axes() + "".join(parts), names)


def left_in_bins(rates: Sequence[float], sizes: Sequence[int], left: Sequence[Sequence[int]]) -> str:
    """A row per bin, the easiest above: the darker, the more of its tasks are left; an empty bin is hatched."""
    steps, row = len(left[0]), 22
    frame = Frame(steps, 1.0, height=TOP + BOTTOM + row * len(rates))
    shown = columns(steps)
    width = (frame.width - LEFT - RIGHT) / len(shown)
    parts = [
        '<defs><pattern id="dry" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="6" height="6" fill="#fff"/><line x1="0" y1="0" x2="0" y2="6" stroke="#c0504d" stroke-width="2"/>'
        "</pattern></defs>"
    ]
    for place, (rate, size, values) in enumerate(reversed(list(zip(rates, sizes, left, strict=True)))):
        y = TOP + row * place
        parts.append(f'<text x="{LEFT - 6}" y="{y + 15}" text-anchor="end">{rate:.3g}</text>')
        start = 0
        while start < len(shown):  # columns of one shade are one rectangle
            shade = _shade(values[shown[start]], size)
            end = start
            while end < len(shown) and _shade(values[shown[end]], size) == shade:
                end += 1
            parts.append(
                f'<rect x="{LEFT + start * width:.2f}" y="{y + 1}" width="{(end - start) * width + 0.1:.2f}" '
                f'height="{row - 2}" fill="{shade}" shape-rendering="crispEdges"/>'
            )
            start = end
    return svg(frame, "".join(parts) + frame.step_axis())


def _shade(left: int, size: int) -> str:
    """From pale (few) to full blue (all) in twenty steps; empty is hatched."""
    if not left:
        return "url(#dry)"
    part = math.ceil(20 * left / size) / 20
    red, green, blue = (round(255 - (255 - full) * (0.12 + 0.88 * part)) for full in (27, 108, 168))
    return f"#{red:02x}{green:02x}{blue:02x}"
