"""Axes and labels of pictures under any values: ticks inside and told apart, labels that do not touch."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crestline.report.charts import Scale, spread, tick_labels, ticks, told_ticks

FINITE = st.floats(-1e308, 1e308)


def read(label: str) -> float:
    return float(label.replace("−", "-").replace(",", ""))


@given(FINITE, FINITE, st.integers(2, 9))
def test_ticks_are_few_inside_and_told_apart(one: float, other: float, most: int) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high, most)
    labels = tick_labels(found)
    assert 1 <= len(found) <= most
    assert all(low <= value <= high for value in found)
    assert len(set(labels)) == len(labels)
    step = min((b - a for a, b in pairwise(found)), default=0.0)
    for value, label in zip(found, labels, strict=True):
        near = step / 2 if step else abs(value) / 100
        assert abs(read(label) / 2 - value / 2) <= near / 2


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(4, 9))
def test_an_axis_has_several_ticks(low: float, width: float, most: int) -> None:
    assert len(ticks(low, low + width, most)) >= 2


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (12.341, 12.349, ["12.342", "12.344", "12.346", "12.348"]),
        (0.9991, 0.9999, ["0.9992", "0.9994", "0.9996", "0.9998"]),
        (1000.1, 1000.9, ["1,000.2", "1,000.4", "1,000.6", "1,000.8"]),
        (1e-12, 5e-12, ["2e-12", "4e-12"]),
        (-0.2, 0.2, ["−0.2", "−0.1", "0.0", "0.1", "0.2"]),
        (0, 2e6, ["0", "500,000", "1,000,000", "1,500,000", "2,000,000"]),
        (-1e308, 1e308, ["−1.0e+308", "−5.0e+307", "0", "5.0e+307", "1.0e+308"]),
    ],
)
def test_decimals_follow_the_step(low: float, high: float, labels: list[str]) -> None:
    assert tick_labels(ticks(low, high, 5 if low <= 0 else 4)) == labels


def test_percents() -> None:
    assert told_ticks(Scale(0, 1, 0, 100), [0.62, 0.625, 0.63], 100, " %") == [
        (62.0, "62.0 %"),
        (62.5, "62.5 %"),
        (63.0, "63.0 %"),
    ]


def test_scales_as_wide_as_numbers_go() -> None:
    assert Scale(-1e308, 1e308, 0, 100)(0) == 50


PLACES = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8)


@given(PLACES, st.floats(0, 100), st.floats(-1e3, 1e3), st.floats(0, 1e3))
def test_labels_keep_apart_inside_the_limits(
    places: list[float], gap: float, low: float, room: float
) -> None:
    moved = spread(places, gap, low, low + room)
    assert all(low - 1e-6 <= place <= low + room + 1e-6 for place in moved)
    fits = min(gap, room / max(len(places) - 1, 1))
    assert all(b - a >= fits - 1e-6 for a, b in pairwise(sorted(moved)))
    order = sorted(range(len(places)), key=lambda i: places[i])
    assert [moved[i] for i in order] == sorted(moved)


@given(st.floats(0, 100), st.floats(0, 100))
def test_labels_with_room_stay(one: float, other: float) -> None:
    gap = abs(one - other)
    assert spread([one, other], gap, 0, 100) == pytest.approx([one, other], abs=1e-6)


@pytest.mark.parametrize(
    ("places", "moved"),
    [
        ([46, 46], [50, 96]),
        ([418, 418], [350, 396]),
        ([60, 75], [50, 96]),
        ([75, 60], [96, 50]),
        ([200, 210, 220], [164, 210, 256]),
        ([60, 300], [60, 300]),
    ],
)
def test_a_group_moves_together(places: list[float], moved: list[float]) -> None:
    assert spread(places, 46, 50, 396) == pytest.approx(moved)
