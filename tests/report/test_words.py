"""Doctests of the report package, and the arithmetic of its pictures."""

from __future__ import annotations

import doctest

import pytest

from crestline.report import (
    card,
    charts,
    page,
    reading,
    reward_words,
    rewarded,
    samples,
    words,
)
from crestline.report.charts import Scale, band, padded_range, spread, thinned, ticks
from crestline.types import Verdict


@pytest.mark.parametrize(
    "module", [card, charts, page, reading, reward_words, rewarded, samples, words]
)
def test_doctests(module: object) -> None:
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize(
    ("low", "high", "most"), [(0, 1, 5), (0, 420, 9), (-1.07, 0.72, 5), (0, 1e-6, 4), (3, 3, 4)]
)
def test_ticks_are_few_round_and_inside(low: float, high: float, most: int) -> None:
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    assert all(low <= value <= high for value in found)


def test_geometry() -> None:
    assert Scale(0, 0, 10, 20)(0) == 10
    assert band([], []) == ""
    assert band([(0, 1), (2, 1)], [(0, 3), (2, 3)]) == "M0 1L2 1L2 3L0 3Z"
    assert padded_range([2.0, 2.0])[0] < 2.0 < padded_range([2.0, 2.0])[1]
    assert thinned([(float(i), float(i)) for i in range(100)], 10)[0] == (4.5, 4.5)
    assert spread([50, 400], 40, 0, 500) == [50, 400]


def test_headline_without_a_known_end() -> None:
    verdict = Verdict(
        kind="peaked",
        update=7,
        interval=None,
        distance=None,
        win_rate=None,
        win_rate_interval=None,
        num_labels=0,
        answered_by="people",
        reason="",
    )
    assert words.headline(verdict, None) == (
        "People's preference peaked at update 7. Shipped: checkpoint-7."
    )


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (999.4, "999"),
        (999.6, "1,000"),
        (-999.6, "−1,000"),
        (-0.0, "0"),
        (1234.5, "1,234"),
        (0.00001234, "1.23e-05"),
        (-2.5, "−2.5"),
        (1e30, "1e+30"),
        (float("inf"), "–"),
        (None, "–"),
    ],
)
def test_numbers(value: float | None, told: str) -> None:
    assert words.number(value) == told
