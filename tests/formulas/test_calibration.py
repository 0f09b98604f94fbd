"""Figures of forecasts against hand numbers, enumeration of every outcome, and scipy's rank statistics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from crestline.formulas.calibration import (
    auroc,
    brier,
    calibration_floor,
    equal_mass_bins,
    expected_calibration_error,
    fit_logistic,
    fit_temperature,
    log_loss,
    preference_probability,
    reliability,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("right", "of"), [(3, 4), (51, 100), (99, 100)])
@pytest.mark.parametrize("size", [0.002, 1.0, 5e4])
def test_temperature_of_equal_margins_has_a_closed_form(right: int, of: int, size: float) -> None:
    """All margins are ±c: σ(c/T) is the share that is right, half a right and half a wrong one added."""
    differences = np.where(np.arange(of) < right, size, -size)
    expected = size / math.log((right + 0.5) / (of - right + 0.5))
    assert fit_temperature(differences) == pytest.approx(expected, rel=1e-5)


def test_temperature_is_where_the_slope_vanishes_and_knows_weights() -> None:
    differences = RNG.normal(0.6, 2.0, 500)
    found = fit_temperature(differences)
    size = np.sqrt(np.mean(differences**2))  # the prior: half a right and half a wrong one of it
    seen = np.concatenate([differences, [size, -size]])
    counts = np.append(np.ones(500), [0.5, 0.5])
    slope = np.average(seen * (1 - preference_probability(seen, found)), weights=counts)
    assert slope == pytest.approx(0, abs=1e-6)
    weights = RNG.integers(0, 4, 500)
    assert fit_temperature(differences, weights) == pytest.approx(
        fit_temperature(np.repeat(differences, weights)), rel=1e-5
    )


def test_temperature_is_recovered() -> None:
    differences = RNG.normal(0, 3.0, 40_000)
    wins = RNG.random(40_000) < preference_probability(differences, 1.7)
    assert fit_temperature(np.where(wins, differences, -differences)) == pytest.approx(
        1.7, rel=0.05
    )


@pytest.mark.parametrize("num", [1, 5, 15, 1000])
def test_pairs_that_are_all_right_give_a_temperature_of_their_size(num: int) -> None:
    """By hand: σ(c/T) = (n + ½) / (n + 1), so T = c / ln(2n + 1)."""
    assert fit_temperature([3.0] * num) == pytest.approx(3.0 / math.log(2 * num + 1), rel=1e-5)
    sizes = np.abs(RNG.normal(1, 0.6, num)) + 0.1
    root_mean_square = np.sqrt(np.mean(sizes**2))
    assert 0.03 < fit_temperature(sizes) / root_mean_square < 1


def test_the_prior_vanishes_among_many_comparisons() -> None:
    """Against the likelihood alone, maximised on a grid: a thousand are moved by less than half a percent."""
    differences = RNG.normal(0, 2.0, 1000)
    wins = RNG.random(1000) < preference_probability(differences, 1.5)
    seen = np.where(wins, differences, -differences)
    grid = np.linspace(1.0, 2.5, 3001)
    losses = np.logaddexp(0, -seen[:, None] / grid).sum(0)
    assert fit_temperature(seen) == pytest.approx(grid[losses.argmin()], rel=5e-3)


def test_temperature_at_the_ends() -> None:
    assert fit_temperature([0.0, 0.0]) == 1.0
    assert fit_temperature([-1.0, -2.0]) > 100  # all wrong: as unsure as allowed
    with pytest.raises(ValueError, match="no pairs"):
        fit_temperature([])
    with pytest.raises(ValueError, match="finite"):
        fit_temperature([1.0, math.nan])
    with pytest.raises(ValueError, match="weights"):
        fit_temperature([1.0], [0.0])


def test_proper_scores_by_hand() -> None:
    p, y = [0.8, 0.4, 0.5], [1, 0, 0.5]
    expected = -(math.log(0.8) + math.log(0.6) + 0.5 * math.log(0.5) + 0.5 * math.log(0.5)) / 3
    assert log_loss(p, y) == pytest.approx(expected)
    assert brier(p, y) == pytest.approx((0.04 + 0.16 + 0) / 3)
    assert log_loss([0.5] * 9, [1, 0, 1] * 3) == pytest.approx(math.log(2))
    assert brier([0.5] * 9, [1, 0, 1] * 3) == 0.25
    weights = [3, 0, 1]
    assert brier(p, y, weights) == pytest.approx(
        brier(np.repeat(p, weights), np.repeat(y, weights))
    )
    assert log_loss([1.0, 0.0], [0, 1]) == pytest.approx(27.6, abs=0.1)  # finite where it was sure


@pytest.mark.parametrize("levels", [3, 1000])
def test_auroc_is_the_share_of_pairs_in_order(levels: int) -> None:
    scores, positive = RNG.integers(0, levels, 60), RNG.random(60) < 0.4
    pairs = list(itertools.product(scores[positive], scores[~positive]))
    expected = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])
    assert auroc(scores, positive) == pytest.approx(expected)
    u = mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert auroc(scores, positive) == pytest.approx(u / len(pairs))
    assert auroc(-scores, positive) == pytest.approx(1 - expected)


def test_auroc_without_two_kinds_is_not_a_number() -> None:
    assert math.isnan(auroc([1.0, 2.0], [True, True]))
    with pytest.raises(ValueError, match="outcomes"):
        auroc([1.0], [True, False])


def test_logistic_regression_where_it_has_a_closed_form() -> None:
    """One yes-or-no feature: each group's share of yes comes out exactly."""
    feature = np.repeat([0.0, 1.0], [40, 60])
    outcomes = np.concatenate([np.arange(40) < 10, np.arange(60) < 45])
    slope, constant = fit_logistic(feature[:, None], outcomes, ridge=0.0)
    assert constant == pytest.approx(math.log(10 / 30), abs=1e-5)
    assert slope == pytest.approx(math.log(45 / 15) - math.log(10 / 30), abs=1e-5)
    apart = fit_logistic([[-1.0], [1.0]], [0, 1])
    assert np.isfinite(apart).all() and apart[0] > 1
    with pytest.raises(ValueError, match="one row each"):
        fit_logistic([[1.0]], [1, 0])


@pytest.mark.parametrize(("num", "num_bins"), [(1000, 10), (1003, 10), (7, 10), (25, 10), (1, 1)])
def test_bins_have_equal_mass_and_keep_the_order(num: int, num_bins: int) -> None:
    values = RNG.permutation(num) / num
    bins = equal_mass_bins(values, num_bins)
    sizes = np.bincount(bins)
    assert len(sizes) == min(num, num_bins) and sizes.max() - sizes.min() <= 1
    assert (np.diff(bins[np.argsort(values)]) >= 0).all()


def test_equal_values_share_a_bin_whatever_the_order() -> None:
    values = np.repeat([0.1, 0.5, 0.9], [70, 20, 10])
    bins = equal_mass_bins(values, 10)
    assert [len(set(bins[values == v])) for v in (0.1, 0.5, 0.9)] == [1, 1, 1]
    order = RNG.permutation(100)
    assert (equal_mass_bins(values[order], 10) == bins[order]).all()
    assert set(equal_mass_bins(np.full(50, 0.5), 10)) == {0}
    with pytest.raises(ValueError, match="bin"):
        equal_mass_bins([0.5], 0)


def test_calibration_error_by_hand() -> None:
    # two bins of four: |0.25 − 2/4| and |0.75 − 3/4|, half of the rows each
    p = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]
    y = [0, 1, 0, 1, 1, 0, 1, 1]
    assert expected_calibration_error(p, y, num_bins=2) == pytest.approx(0.125)
    first, last = reliability(p, y, num_bins=2)
    assert (first.from_, first.to, first.num) == (0.1, 0.4, 4)
    assert (first.probability, first.share) == pytest.approx((0.25, 0.5))
    assert first.low < 0.5 < first.high
    assert (last.probability, last.share) == pytest.approx((0.75, 0.75))
    # a constant forecast is one bin: its error is the distance to the base rate
    assert expected_calibration_error([0.5] * 8, y) == pytest.approx(abs(0.5 - 5 / 8))


def test_weights_are_repeated_rows_in_the_same_bins() -> None:
    p, y = RNG.random(40), RNG.random(40) < 0.5
    weights = RNG.integers(0, 3, 40)
    bins = equal_mass_bins(p, 10)
    rows = np.repeat(np.arange(40), weights)
    expected = sum(
        abs((p[rows[bins[rows] == b]] - y[rows[bins[rows] == b]]).sum()) for b in range(10)
    ) / len(rows)
    assert expected_calibration_error(p, y, weights) == pytest.approx(expected)


def test_the_floor_is_the_expectation_over_all_outcomes() -> None:
    p = np.array([0.05, 0.2, 0.35, 0.5, 0.5, 0.7, 0.8, 0.95])
    expected, errors, chances = 0.0, [], []
    for outcome in itertools.product([0, 1], repeat=len(p)):
        chance = float(np.prod(np.where(outcome, p, 1 - p)))
        error = expected_calibration_error(p, outcome, num_bins=3)
        expected += chance * error
        errors.append(error)
        chances.append(chance)
    mean, low, high = calibration_floor(p, num_bins=3, num_simulations=20_000)
    assert mean == pytest.approx(expected, abs=0.002)
    order = np.argsort(errors)
    reached = np.cumsum(np.array(chances)[order])
    ends = [np.array(errors)[order][np.searchsorted(reached, at)] for at in (0.025, 0.975)]
    assert (low, high) == pytest.approx(ends, abs=0.02)


def test_a_perfect_forecast_lies_within_its_floor_and_a_proud_one_above() -> None:
    inside = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        p = preference_probability(rng.normal(0, 1.5, 400), 1.0)
        y = rng.random(400) < p
        _, low, high = calibration_floor(p, num_simulations=400, seed=trial)
        inside += low <= expected_calibration_error(p, y) <= high
    assert inside >= 88  # 95 expected; P(fewer than 88 of 100) < 0.3 %
    proud = preference_probability(np.log(p / (1 - p)), 0.25)
    assert expected_calibration_error(proud, y) > calibration_floor(proud)[2]


def test_floor_shrinks_with_the_root_of_the_rows() -> None:
    few, many = (calibration_floor(RNG.random(n), num_simulations=500)[0] for n in (250, 4000))
    assert few / many == pytest.approx(4, rel=0.15)


def test_bad_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="one row each"):
        log_loss([0.5], [1, 0])
    with pytest.raises(ValueError, match="one row each"):
        brier([], [])
    for bad in (1.2, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"not in \[0, 1\]"):
            expected_calibration_error([bad], [1])
    with pytest.raises(ValueError, match="confidence"):
        calibration_floor([0.5], confidence=1.0)
