"""The pictures of the page as plain numbers and paths that the templates draw.

Owns what is drawn and where. Knows nothing of files and HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from crestline.report.charts import (
    Point,
    Scale,
    band,
    line,
    padded_range,
    spread,
    thinned,
    ticks,
    told_ticks,
)
from crestline.report.reading import CheckpointRow, GoldRow, Run
from crestline.report.rewarded import Rewarded
from crestline.report.words import number
from crestline.types import Verdict

Z90 = 1.645
"""Standard errors on each side of a 90 % interval."""

Picture = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Frame:
    """The size of a picture and of the margins around what is plotted."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def x_end(self) -> int:
        return self.width - self.right

    @property
    def y_end(self) -> int:
        return self.height - self.bottom

    def as_dict(self) -> dict[str, int]:
        names = ("width", "height", "left", "right", "top", "bottom", "x_end", "y_end")
        return {name: getattr(self, name) for name in names}


WIDE = Frame(1000, 470, 58, 150, 46, 52)
NARROW = Frame(420, 380, 44, 12, 46, 48)
SMALL = Frame(300, 168, 46, 12, 12, 28)
GOLD = Frame(620, 250, 96, 18, 30, 46)


def place(row: CheckpointRow, axis: str) -> float | None:
    """Where a checkpoint stands on an axis, "update" or "distance"."""
    return float(row.update) if axis == "update" else row.distance


def crest_picture(run: Run, axis: str, frame: Frame) -> Picture | None:
    """Score against preference over updates or distance; None where there is nothing to draw."""
    rows = sorted(
        (row for row in run.checkpoints if place(row, axis) is not None),
        key=lambda row: (place(row, axis), row.update),
    )
    if not any(row.proxy is not None or row.win_rate is not None or row.num_duels for row in rows):
        return None
    high = max(place(row, axis) or 0.0 for row in rows) or 1.0
    x, y = Scale(0, high, frame.left, frame.x_end), Scale(0, 1, frame.y_end, frame.top)
    wide = frame.right > 100
    return {
        "frame": frame.as_dict(),
        "wide": wide,
        "axis": axis,
        "axis_title": "updates" if axis == "update" else "distance from the start, √nats",
        "x_ticks": told_ticks(x, ticks(0, high, 9 if wide else 5)),
        "y_ticks": [(y(t / 4), f"{25 * t} %") for t in range(5)],
        "half": y(0.5),
        "proxy": _proxy(rows, axis, x, y),
        "preference": _preference(rows, axis, x, y, 1.0 if wide else 0.7),
        "crest": _crest(run.verdict, rows, axis, x, frame),
        "cropped_label_y": _between_ends(rows, y),
        "labels": _labels(rows, run.rewarded, y, frame) if wide else [],
        "places": [None if (at := place(row, axis)) is None else x(at) for row in run.checkpoints],
        "proxy_places": [None if row.proxy is None else y(row.proxy) for row in run.checkpoints],
        "preference_places": [
            None if row.win_rate is None else y(row.win_rate) for row in run.checkpoints
        ],
    }


def _proxy(rows: Sequence[CheckpointRow], axis: str, x: Scale, y: Scale) -> Picture:
    known = [(place(r, axis) or 0.0, r.proxy, r.proxy_standard_error or 0.0) for r in rows]
    points = [(at, value, error) for at, value, error in known if value is not None]
    return {
        "line": line([(x(at), y(value)) for at, value, _ in points]),
        "band": band(
            [(x(at), y(min(1.0, value + Z90 * error))) for at, value, error in points],
            [(x(at), y(max(0.0, value - Z90 * error))) for at, value, error in points],
        ),
    }


def _preference(
    rows: Sequence[CheckpointRow], axis: str, x: Scale, y: Scale, size: float
) -> Picture:
    fitted = [(x(place(r, axis) or 0.0), r) for r in rows if r.win_rate is not None]
    most = max((r.num_duels for r in rows), default=0) or 1
    return {
        "line": line([(at, y(r.win_rate or 0.0)) for at, r in fitted]),
        "band": band(
            [(at, y(r.high or 0.0)) for at, r in fitted],
            [(at, y(r.low or 0.0)) for at, r in fitted],
        ),
        "circles": [
            (
                x(place(r, axis) or 0.0),
                y(r.num_wins / r.num_duels),
                round(size * (2 + 7 * math.sqrt(r.num_duels / most)), 1),
            )
            for r in rows
            if r.num_duels
        ],
    }


def _crest(
    verdict: Verdict | None, rows: Sequence[CheckpointRow], axis: str, x: Scale, frame: Frame
) -> Picture | None:
    """The line at what ships, the shaded interval, and what is cropped behind it."""
    if verdict is None or verdict.update is None:
        return None
    places = {row.update: place(row, axis) or 0.0 for row in rows}
    at = float(verdict.update) if axis == "update" else places.get(verdict.update, verdict.distance)
    if at is None:
        return None
    at = x(min(max(at, x.low), x.high))
    low, high = verdict.interval or (verdict.update, verdict.update)
    inside = [x(where) for update, where in places.items() if low <= update <= high] or [at]
    middle = (frame.left + frame.x_end) / 2
    name = "crest" if verdict.kind == "peaked" else "shipped"
    room = frame.x_end - at
    return {
        "x": at,
        "from": min(inside),
        "to": max(inside),
        "label": f"{name}: update {verdict.update}",
        "anchor": "start" if at < middle else "end",
        "label_x": at + (7 if at < middle else -7),
        "cropped": at if room > 4 else None,
        "cropped_label": round(frame.x_end - room / 4, 1) if room > 180 else None,
    }


def _between_ends(rows: Sequence[CheckpointRow], y: Scale) -> float:
    """Half-way between the right ends of the two lines, where there is room for words."""
    proxies = [row.proxy for row in rows if row.proxy is not None]
    rates = [row.win_rate for row in rows if row.win_rate is not None]
    return round((y(proxies[-1]) + y(rates[-1])) / 2, 1) if proxies and rates else y(0.06)


def _labels(
    rows: Sequence[CheckpointRow], reward: Rewarded, y: Scale, frame: Frame
) -> list[Picture]:
    """Names at the right ends of the two lines, apart from each other."""
    ends: list[tuple[str, list[str], float]] = []
    proxies = [row.proxy for row in rows if row.proxy is not None]
    rates = [row.win_rate for row in rows if row.win_rate is not None]
    if proxies:
        ends.append(("proxy", wrap(reward.score, 14), y(proxies[-1])))
    if rates:
        ends.append(("preference", ["preferred over", "the start"], y(rates[-1])))
    places = spread([end for _, _, end in ends], 46, frame.top + 4, frame.y_end - 22)
    return [
        {"kind": kind, "lines": lines, "x": frame.x_end + 12, "y": at}
        for (kind, lines, _), at in zip(ends, places, strict=True)
    ]


def gold_picture(rows: Sequence[GoldRow], verdict: Verdict | None) -> Picture | None:
    """Gold over updates with 90 % bars; None with fewer than two points."""
    if len(rows) < 2:
        return None
    low, high = padded_range(
        [row.gold + sign * Z90 * row.standard_error for row in rows for sign in (-1, 1)]
    )
    x = Scale(0, max(row.update for row in rows), GOLD.left, GOLD.x_end)
    y = Scale(low, high, GOLD.y_end, GOLD.top)
    shipped = verdict.update if verdict and verdict.update is not None else None
    return {
        "frame": GOLD.as_dict(),
        "x_ticks": told_ticks(x, ticks(0, x.high, 7)),
        "y_ticks": told_ticks(y, ticks(low, high, 5)),
        "line": line([(x(row.update), y(row.gold)) for row in rows]),
        "bars": [
            (
                x(row.update),
                y(row.gold),
                y(row.gold - Z90 * row.standard_error),
                y(row.gold + Z90 * row.standard_error),
            )
            for row in rows
        ],
        "shipped": None if shipped is None else x(min(shipped, x.high)),
    }


def small_picture(
    points: Sequence[Point], *, title: str, tells: str, shipped: int | None
) -> Picture | None:
    """One small curve over updates; None with fewer than two points."""
    if len(points) < 2:
        return None
    low, high = padded_range([value for _, value in points], 0.08)
    x = Scale(points[0][0], points[-1][0], SMALL.left, SMALL.x_end)
    y = Scale(low, high, SMALL.y_end, SMALL.top)
    inside = shipped is not None and x.low <= shipped <= x.high
    return {
        "frame": SMALL.as_dict(),
        "title": title,
        "tells": tells,
        "first": number(points[0][1]),
        "last": number(points[-1][1]),
        "x_ticks": told_ticks(x, ticks(x.low, x.high, 4)),
        "y_ticks": told_ticks(y, ticks(low, high, 4)),
        "line": line([(x(at), y(value)) for at, value in thinned(points, 160)]),
        "shipped": x(shipped) if inside and shipped is not None else None,
    }
