"""The pictures of a reward model's evaluation as plain numbers and paths that the templates draw.

Owns what is drawn and where. Knows nothing of files and HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crestline.report.charts import Scale, band, line, ticks, told_ticks
from crestline.report.pictures import Frame, Picture
from crestline.report.words import percent

SQUARE = Frame(460, 440, 58, 14, 18, 52)
BROAD = Frame(560, 330, 58, 14, 18, 52)
WIDE = Frame(900, 360, 58, 20, 18, 52)
SLIM = Frame(420, 340, 52, 12, 18, 52)

Figures = Mapping[str, Any]
PERCENTS = tuple(t / 4 for t in range(5))
PERCENT = "\u00a0%"


def reliability_picture(bins: Sequence[Figures]) -> Picture:
    """What was said against what happened, with 95 % Wilson bars; perfect probabilities lie on the diagonal."""
    x, y = (
        Scale(0, 1, SQUARE.left, SQUARE.x_end),
        Scale(0, 1, SQUARE.y_end, SQUARE.top),
    )
    return {
        "frame": SQUARE.as_dict(),
        "x_ticks": [(x(t), percent(t)) for t in PERCENTS],
        "y_ticks": [(y(t), percent(t)) for t in PERCENTS],
        "diagonal": line([(x(0), y(0)), (x(1), y(1))]),
        "bars": [
            (x(part["probability"]), y(part["share"]), y(part["low"]), y(part["high"]))
            for part in bins
        ],
        "line": line([(x(part["probability"]), y(part["share"])) for part in bins]),
    }


def margin_picture(rows: Sequence[Figures]) -> Picture:
    """Accuracy by the score's own margin with 95 % bars, beside what it expects of itself."""
    low = min(0.5, *(row["accuracy_low"] for row in rows))
    y = Scale(low, 1, BROAD.y_end, BROAD.top)
    x = Scale(0, len(rows), BROAD.left, BROAD.x_end)
    places = [x(n + 0.5) for n in range(len(rows))]
    return {
        "frame": BROAD.as_dict(),
        "x_ticks": [(at, row["name"]) for at, row in zip(places, rows, strict=True)],
        "y_ticks": told_ticks(y, ticks(low, 1, 6), 100, PERCENT),
        "half": y(0.5),
        "bars": [
            (at, y(row["accuracy"]), y(row["accuracy_low"]), y(row["accuracy_high"]))
            for at, row in zip(places, rows, strict=True)
        ],
        "expected": [
            (at - 13, at + 13, y(row["probability"])) for at, row in zip(places, rows, strict=True)
        ],
    }


def histogram_picture(scores: Figures) -> Picture:
    """How often each raw score is given to completions that people put first, and to the others."""
    edges = scores["edges"]
    x = Scale(edges[0], edges[-1], BROAD.left, BROAD.x_end)
    shares = {
        kind: [count / max(sum(scores[kind]), 1) for count in scores[kind]]
        for kind in ("others", "best")
    }
    y = Scale(0, max(max(values) for values in shares.values()) or 1.0, BROAD.y_end, BROAD.top)
    areas = {}
    for kind, values in shares.items():
        top = [
            (x(edge), y(value))
            for n, value in enumerate(values)
            for edge in (edges[n], edges[n + 1])
        ]
        areas[kind] = band(top, [(x(edges[0]), y(0)), (x(edges[-1]), y(0))])
    return {
        "frame": BROAD.as_dict(),
        "x_ticks": told_ticks(x, ticks(edges[0], edges[-1], 7)),
        "y_ticks": [],
        "areas": areas,
    }


def curve_picture(curve: Figures, points: Sequence[Figures], frame: Frame) -> Picture:
    """Accuracy against rankings: each training, the fit, its 95 % band, and what lies beyond the data dashed."""
    right = [[1 - value for value in curve[name]] for name in ("fitted", "high", "low")]
    values = [*right[1], *right[2], *(point["accuracy"] for point in points)]
    pad = 0.06 * (max(values) - min(values)) or 0.02
    low, high = max(0.0, min(values) - pad), min(1.0, max(values) + pad)
    at, now = curve["at"], curve["num_now"]
    x, y = Scale(0, at[-1], frame.left, frame.x_end), Scale(low, high, frame.y_end, frame.top)
    upper, lower = right[2], right[1]
    path = [(x(n), y(value)) for n, value in zip(at, right[0], strict=True)]
    measured = [place for place, n in zip(path, at, strict=True) if n <= now * 1.0001]
    return {
        "frame": frame.as_dict(),
        "wide": frame is WIDE,
        "x_ticks": told_ticks(x, ticks(0, at[-1], 8 if frame is WIDE else 5)),
        "y_ticks": told_ticks(y, ticks(low, high, 6), 100, PERCENT),
        "band": band(
            [(x(n), y(value)) for n, value in zip(at, upper, strict=True)],
            [(x(n), y(value)) for n, value in zip(at, lower, strict=True)],
        ),
        "line": line(measured),
        "beyond": line(path[len(measured) - 1 :]) if len(measured) < len(path) else "",
        "now": x(now),
        "dots": [(x(point["num_rankings"]), y(point["accuracy"])) for point in points],
    }
