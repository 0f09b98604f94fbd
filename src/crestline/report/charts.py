"""Geometry of pictures: scales, round ticks, SVG paths. Knows nothing of what is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Point = tuple[float, float]


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
        width = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / width * (self.end - self.start), 1)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values inside [low, high], at most `most` of them.

    >>> ticks(0, 420, 6)
    [0.0, 100.0, 200.0, 300.0, 400.0]
    """
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        first, last = math.ceil(low / (step * factor)), math.floor(high / (step * factor))
        if last - first < most:
            break
    return [round(n * step * factor, 10) for n in range(first, last + 1)]


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
    """Places for labels, moved apart until neighbours are `gap` away, inside [low, high].

    >>> spread([10, 12], 20, 0, 100)
    [1.0, 21.0]
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [float(place) for place in places]
    for before, after in pairwise(order):
        lack = gap - (moved[after] - moved[before])
        if lack > 0:
            moved[before] -= lack / 2
            moved[after] += lack / 2
    return [min(max(place, low), high) for place in moved]
