"""Geometry of pictures: scales, round ticks, SVG paths. Knows nothing of what is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean as mean

from crestline.report.words import number

Point = tuple[float, float]
SMALLEST_EXPONENT = -300
"""Steps between ticks below 1e−300 are not told apart."""
ROUNDING = 1e-6
"""Of a logarithm: 0.0999999 counts as a tenth."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A straight map from values [low, high] to places [start, end] in the picture.

    >>> Scale(0, 10, 100, 200)(2.5)
    125.0
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        half = self.high / 2 - self.low / 2 or 1.0  # the whole may be too large for a float
        return round(self.start + (value / 2 - self.low / 2) / half * (self.end - self.start), 1)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values inside [low, high], at most `most` of them; `low` where there is none.

    >>> ticks(0, 420, 6)
    [0.0, 100.0, 200.0, 300.0, 400.0]
    """
    half = high / 2 - low / 2  # the whole may be too large for a float
    if not half > 0:
        return [low]
    exponent = max(math.floor(math.log10(half) + math.log10(2 / most)), SMALLEST_EXPONENT)
    for factor in (1, 2, 5, 10, 20, 50):
        step = float(f"{factor}e{exponent}")
        first, last = math.ceil(low / step), math.floor(high / step)
        if last - first < most:
            break
    found = {float(f"{n * factor}e{exponent}") for n in range(first, last + 1)}
    return sorted(value for value in found if low <= value <= high) or [low]


def tick_labels(values: Sequence[float], scale: float = 1.0, unit: str = "") -> list[str]:
    """The numbers of one axis, rising, with as many decimals as tell each from the next.

    scale: what each is told times, such as 100 for percent.

    >>> tick_labels([12.342, 12.344]), tick_labels([0.0, 0.5], 100, " %"), tick_labels([1e-12, 2e-12])
    (['12.342', '12.344'], ['0 %', '50 %'], ['1e-12', '2e-12'])
    """
    told = [value * scale for value in values]
    largest = max(abs(value) for value in told)
    if len(told) < 2 or not largest > 0:
        return [number(value) + unit for value in told]
    places = math.floor(math.log10(min(b - a for a, b in pairwise(told))) + ROUNDING)
    size = math.floor(math.log10(largest) + ROUNDING)
    if places > -5 and size < 15:
        texts = [f"{value + 0.0:,.{max(-places, 0)}f}" for value in told]
    else:
        texts = [f"{value:.{max(size - places, 0)}e}" if value else "0" for value in told]
    return [text.replace("-", "−", 1 if text.startswith("-") else 0) + unit for text in texts]


def told_ticks(
    place: Scale, values: Sequence[float], scale: float = 1.0, unit: str = ""
) -> list[tuple[float, str]]:
    """Where each tick of an axis stands in the picture, and its number, as `tick_labels` has it."""
    labels = tick_labels(values, scale, unit)
    return [(place(value), label) for value, label in zip(values, labels, strict=True)]


def padded_range(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of values, widened on both sides by a share of itself."""
    low, high = min(values), max(values)
    pad = (high - low) * share or max(abs(high), 1.0) * share
    return low - pad, high + pad


def line(points: Sequence[Point]) -> str:
    """An SVG path through points.

    >>> line([(0, 1), (2, 3)])
    'M0 1L2 3'
    """
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def band(upper: Sequence[Point], lower: Sequence[Point]) -> str:
    """A closed SVG path between two edges."""
    return line([*upper, *reversed(lower)]) + "Z" if upper else ""


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: means of equally many neighbours each."""
    if len(points) <= most:
        return list(points)
    found = []
    for i in range(most):
        part = points[len(points) * i // most : len(points) * (i + 1) // most]
        found.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return found


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels inside [low, high], `gap` apart at least, moved as little as that takes.

    Where there is no room for such gaps they are as wide as there is room for.

    >>> spread([10, 12], 20, 0, 100), spread([95, 95], 20, 0, 100)
    ([1.0, 21.0], [80.0, 100.0])
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    gap = min(gap, (high - low) / max(len(places) - 1, 1))
    groups: list[list[float]] = []  # of labels that touch: where each would have its first one
    for k, i in enumerate(order):
        groups.append([places[i] - k * gap])
        while len(groups) > 1 and mean(groups[-2]) >= mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    starts = [mean(group) for group in groups for _ in group]
    moved = [0.0] * len(places)
    for k, i in enumerate(order):
        start = min(max(starts[k], low), high - (len(places) - 1) * gap)
        moved[i] = float(start + k * gap)
    return moved
