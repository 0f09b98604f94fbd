"""The power law against curves whose truth is known, scipy's own fit, and the promise of its interval."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import curve_fit

from crestline.formulas.learning_curve import (
    LearningCurve,
    PowerLaw,
    fit_power_law,
    learning_curve,
)

SIZES = np.array([100, 200, 400, 800, 1600])
STEEP = PowerLaw(floor=0.2, amplitude=2.0, exponent=0.5)


def measured(
    law: PowerLaw, seed: int, *, num_groups: int = 1000, luck: float = 0.01
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Counts and wrong-or-right of each group: hard groups are hard at every size, training has luck."""
    rng = np.random.default_rng(seed)
    counts = np.repeat(SIZES, 3)
    hardness = rng.random(num_groups)
    rows = []
    for n in counts:
        own = np.where(rng.random(num_groups) < 0.7, hardness, rng.random(num_groups))
        rows.append(own < law(n) + rng.normal(0, luck))
    return counts, np.array(rows, dtype=np.float64)


def curve_of(law: PowerLaw, seed: int, **more: int) -> LearningCurve:
    counts, errors = measured(law, seed)
    return learning_curve(counts, errors, num_resamples=300, seed=seed, **more)


@pytest.mark.parametrize(
    "law",
    [
        STEEP,
        PowerLaw(floor=0.0, amplitude=0.6, exponent=0.12),
        PowerLaw(floor=0.35, amplitude=3.0, exponent=1.1),
    ],
)
def test_exact_points_give_the_law_back(law: PowerLaw) -> None:
    found = fit_power_law(SIZES, law(SIZES))
    assert found(SIZES) == pytest.approx(law(SIZES), abs=2e-3)
    assert float(found(4000)) == pytest.approx(float(law(4000)), abs=4e-3)
    assert found.exponent == pytest.approx(law.exponent, rel=0.05)


def test_noisy_points_are_fitted_as_well_as_scipy_does() -> None:
    rng = np.random.default_rng(1)
    errors = STEEP(SIZES) + rng.normal(0, 0.01, len(SIZES))
    ours = fit_power_law(SIZES, errors)
    (floor, amplitude, exponent), _ = curve_fit(
        lambda n, a, b, c: a + b * n**-c, SIZES, errors, p0=(0.2, 2.0, 0.5)
    )
    theirs = floor + amplitude * SIZES**-exponent
    squares = [float(((line - errors) ** 2).sum()) for line in (ours(SIZES), theirs)]
    assert squares[0] <= squares[1] * 1.02 + 1e-9


def test_errors_that_rise_or_stand_still_give_a_flat_law() -> None:
    for errors in (np.full(5, 0.3), np.array([0.1, 0.2, 0.3, 0.4, 0.5])):
        found = fit_power_law(SIZES, errors)
        assert found.amplitude == pytest.approx(0, abs=1e-9)
        assert found.floor == pytest.approx(errors.mean())
    assert fit_power_law([50], [0.4])(50) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("law", "least"), [(STEEP, 36), (PowerLaw(floor=0.0, amplitude=0.6, exponent=0.12), 32)]
)
def test_the_interval_of_the_gain_holds_the_truth(law: PowerLaw, least: int) -> None:
    """40 worlds each; 38 expected of a 95 % interval, and a slow law without a floor is a little worse."""
    truth = float(law(1600) - law(2600))
    held = 0
    for seed in range(40):
        curve = curve_of(law, seed)
        assert curve.refused == "" and curve.gain is not None
        gain, low, high = curve.gain
        assert low <= gain <= high
        held += low <= truth <= high
    assert held >= least


def test_the_band_reaches_as_far_as_is_told() -> None:
    curve = curve_of(STEEP, 0)
    assert curve.at[0] == pytest.approx(100) and curve.at[-1] == pytest.approx(2600)
    assert (curve.num_now, curve.num_more) == (1600, 1000)
    assert all(a <= b <= c for a, b, c in zip(curve.low, curve.fitted, curve.high, strict=True))
    assert curve.low[-1] < STEEP(2600) < curve.high[-1]
    slope, slope_low, slope_high = curve.per_doubling
    assert slope_low < slope < slope_high < 0
    assert curve == curve_of(STEEP, 0)


def test_what_cannot_be_told_is_refused() -> None:
    flat = curve_of(PowerLaw(floor=0.3, amplitude=0.0, exponent=0.5), 3)
    assert "flat" in flat.refused
    assert flat.gain is None
    assert flat.at[-1] == pytest.approx(1600)  # the band ends where it was measured
    counts, errors = measured(STEEP, 0)
    three = counts <= 400
    assert "too few points: 3 sizes" in learning_curve(counts[three], errors[three]).refused
    assert "too narrow" in learning_curve(1000 + counts / 10, errors).refused
    assert "rises" in learning_curve(counts, errors[::-1]).refused
    assert "flat" in learning_curve(counts, np.tile(errors[:1], (len(counts), 1))).refused
    assert "too far" in learning_curve(counts, errors, num_more=5000).refused
    one = learning_curve(counts[:1], errors[:1])
    assert "too few points: 1 sizes" in one.refused and len(one.at) == 1


def test_weights_count_the_pairs_of_a_group() -> None:
    counts, errors = measured(STEEP, 5, num_groups=60)
    weights = np.random.default_rng(0).integers(1, 6, 60)
    curve = learning_curve(counts, errors, weights, num_resamples=20)
    assert curve.errors == pytest.approx(np.average(errors, axis=1, weights=weights))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="one each"):
        fit_power_law([1, 2], [0.1])
    with pytest.raises(ValueError, match="above 0"):
        fit_power_law([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="points, groups"):
        learning_curve([1, 2], [[0.1], [0.2], [0.3]])
    with pytest.raises(ValueError, match="weights"):
        learning_curve([1, 2], [[0.1], [0.2]], [1.0, 2.0])
