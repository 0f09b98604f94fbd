"""Intervals against hand numbers and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from crestline.formulas.intervals import (
    bootstrap_interval,
    bootstrap_replicates,
    normal_quantile,
    simultaneous_lower,
    wilson,
)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (8, 10), (10, 10), (71, 150), (1, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_agrees_with_scipy(k: int, n: int, confidence: float) -> None:
    expected = binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_by_hand() -> None:
    # n=100, k=50, z=1.959964: centre 1/2, half width z/(1+z²/n)·sqrt(1/400 + z²/40000) = 0.096168
    low, high = wilson(50, 100)
    assert (low, high) == pytest.approx((0.5 - 0.096168, 0.5 + 0.096168), abs=1e-6)


def test_wilson_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(2.5, 5)[0] < 0.5 < wilson(2.5, 5)[1]
    for bad in [(-1, 5), (6, 5)]:
        with pytest.raises(ValueError, match="0 <= k <= n"):
            wilson(*bad)
    with pytest.raises(ValueError, match="probability"):
        wilson(1, 2, confidence=1.0)


def test_normal_quantile() -> None:
    assert normal_quantile(0.95) == pytest.approx(1.644854, abs=1e-6)


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap_interval(values, confidence=0.9, seed=3)
    half = 1.645 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_bootstrap_is_seeded_and_takes_any_statistic() -> None:
    values = np.arange(50.0)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    low, high = bootstrap_interval(values, lambda rows: float(np.median(rows)))
    assert low < 24.5 < high


def test_groups_stay_together() -> None:
    # 20 groups of 25 equal values: the cluster interval is sqrt(25) = 5 times as wide.
    centres = np.random.default_rng(0).normal(size=20)
    values = np.repeat(centres, 25)
    groups = np.repeat(np.arange(20), 25).tolist()
    low, high = bootstrap_interval(values)
    cluster_low, cluster_high = bootstrap_interval(values, groups=groups)
    assert (cluster_high - cluster_low) / (high - low) == pytest.approx(5.0, rel=0.1)


def test_bootstrap_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="group labels"):
        bootstrap_interval([1.0, 2.0], groups=["a"])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0], confidence=1.5)


def test_simultaneous_bounds_hold_together() -> None:
    """Means of correlated columns: the bound of the largest holds in about 95 of 100 worlds, alone it would not."""
    num_worlds, held, alone = 150, 0, 0
    for seed in range(num_worlds):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(60, 8)) + 0.5 * rng.normal(size=(60, 1))
        replicates = bootstrap_replicates(
            lambda times, rows=rows: times @ rows / times.sum(),
            range(60),
            num_resamples=200,
            seed=seed,
        )
        means = rows.mean(0)
        held += bool((simultaneous_lower(means, replicates) <= 0).all())
        alone += bool((means - 1.645 * replicates.std(0) <= 0).all())
    assert held >= 0.88 * num_worlds > alone


def test_simultaneous_bounds_of_what_does_not_vary() -> None:
    draws = np.zeros((10, 2))
    draws[:, 1] = np.arange(10) - 4.5
    bounds = simultaneous_lower(np.array([2.0, 0.0]), draws + np.array([2.0, 0.0]))
    assert bounds[0] == 2.0 and bounds[1] < -3
    assert simultaneous_lower(np.array([1.0]), np.ones((5, 1))).tolist() == [1.0]
    with pytest.raises(ValueError, match="replicates"):
        simultaneous_lower(np.zeros(3), draws)
    with pytest.raises(ValueError, match="confidence"):
        simultaneous_lower(np.zeros(2), draws, 1.0)
