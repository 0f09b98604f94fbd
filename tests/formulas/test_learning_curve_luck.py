"""How much luck in training the interval of a learning curve leaves open, against Student's interval of a slope."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from crestline.formulas.learning_curve import learning_curve


@pytest.mark.parametrize("num_points", [3, 5, 8])
def test_luck_alone_gives_the_interval_of_least_squares(num_points: int) -> None:
    """One test group, so that nothing but luck is left."""
    counts = 100 * 2.0 ** np.arange(num_points)
    noise = np.random.default_rng(0).normal(0, 0.01, num_points)
    errors = 0.45 - 0.03 * np.arange(num_points) + noise
    found = learning_curve(counts, errors[:, None], num_more=100, num_resamples=4000)
    line = stats.linregress(np.log2(counts), errors)
    half = stats.t.ppf(0.975, num_points - 2) * line.stderr
    slope, low, high = found.per_doubling
    assert slope == pytest.approx(line.slope)
    assert (low, high) == pytest.approx((slope - half, slope + half), abs=0.05 * half)


def test_the_interval_of_a_slope_holds_it_nineteen_times_of_twenty() -> None:
    counts, held = np.repeat([100.0, 200.0, 400.0], 2), 0
    for seed in range(200):
        noise = np.random.default_rng(seed).normal(0, 0.01, 6)
        errors = 0.45 - 0.03 * np.log2(counts / 100) + noise
        _, low, high = learning_curve(
            counts, errors[:, None], num_more=100, num_resamples=300, seed=seed
        ).per_doubling
        held += low <= -0.03 <= high
    assert 183 <= held <= 197


def test_a_bend_is_no_luck() -> None:
    """Without noise a steep law is no straight line in doublings, and falls all the same."""
    counts = 100 * 2.0 ** np.arange(4)
    errors = 0.2 + 0.2 * (counts / 100) ** -1.5
    found = learning_curve(counts, errors[:, None], num_more=100)
    assert not found.refused and found.per_doubling[2] < -0.01


@pytest.mark.parametrize("num_points", [2, 3])
def test_as_many_numbers_as_points_leave_luck_wide(num_points: int) -> None:
    counts, held = 100 * 2.0 ** np.arange(num_points), 0
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(0, 0.02, num_points)
        truth = 0.45 - 0.03 * np.arange(num_points)
        found = learning_curve(counts, (truth + noise)[:, None], num_resamples=200, seed=seed)
        held += found.low[0] <= truth[0] <= found.high[0]
        assert found.refused
    assert held >= 90
