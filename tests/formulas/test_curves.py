"""Curves against closed forms, numeric search, enumeration and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.stats import norm

from crestline.formulas import curves
from crestline.formulas.curves import (
    fit_gao,
    fit_gao_duels,
    fit_saturating_duels,
    fit_stacked,
    gao,
    gao_peak,
    isotonic,
    saturating,
    unimodal,
    win_rate,
)


@pytest.mark.parametrize(("alpha", "beta"), [(0.35, 0.154), (0.35, 0.104), (1.0, 0.6), (0.1, 0.3)])
def test_peak_agrees_with_a_numeric_search(alpha: float, beta: float) -> None:
    found = minimize_scalar(
        lambda d: -float(gao(d, alpha, beta)), bounds=(1e-6, 100), options={"xatol": 1e-9}
    )
    assert gao_peak(alpha, beta) == pytest.approx((found.x, -found.fun), rel=1e-4)


def test_gao_by_hand() -> None:
    assert gao([0.0, 1.0, np.e], 0.4, 0.1).tolist() == pytest.approx([0.0, 0.4, 0.3 * np.e])
    with pytest.raises(ValueError, match="beta"):
        gao_peak(0.3, 0.0)


def test_saturating_limits() -> None:
    assert saturating([0.0, 1e6], 0.7, 2.0).tolist() == pytest.approx([0.0, 0.7])
    assert float(saturating(1e-9, 0.7, 2.0)) == pytest.approx(1.4e-9)


def test_win_rate_is_the_chance_that_one_normal_utility_beats_another() -> None:
    # P(X > Y), X ~ N(0.8, 1), Y ~ N(0, 1), by integrating over Y; then turned round with e = 0.25.
    clean = quad(lambda y: norm.pdf(y) * norm.sf(y - 0.8), -9, 9)[0]
    assert float(win_rate(0.8)) == pytest.approx(clean)
    assert float(win_rate(0.8, 0.25)) == pytest.approx(0.75 * clean + 0.25 * (1 - clean))


def test_least_squares_fit_matches_the_normal_equations() -> None:
    rng = np.random.default_rng(0)
    d, w = np.linspace(0.3, 5, 20), rng.uniform(0.5, 2, 20)
    r = gao(d, 0.4, 0.2) + rng.normal(0, 0.1, 20)
    x = np.stack([d, -d * np.log(d)], axis=1)
    expected = np.linalg.solve(x.T @ (w[:, None] * x), x.T @ (w * r))
    assert fit_gao(d, r, w) == pytest.approx(tuple(expected))


def test_binomial_fits_recover_what_made_the_duels() -> None:
    d, n = np.linspace(0.25, 5, 20), np.full(20, 4000.0)
    rng = np.random.default_rng(0)
    k = rng.binomial(4000, win_rate(gao(d, 0.5, 0.3), 0.25)).astype(float)
    alpha, beta = fit_gao_duels(d, k, n, flip=0.25)
    assert gao_peak(alpha, beta)[0] == pytest.approx(gao_peak(0.5, 0.3)[0], rel=0.05)
    # Not knowing the flip rate leaves the peak where it is.
    assert gao_peak(*fit_gao_duels(d, k, n))[0] == pytest.approx(gao_peak(alpha, beta)[0], rel=0.05)
    k = rng.binomial(4000, win_rate(saturating(d, 0.9, 0.8))).astype(float)
    assert fit_saturating_duels(d, k, n) == pytest.approx((0.9, 0.8), rel=0.1)


def test_isotonic_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        y, w = rng.normal(size=15), rng.uniform(0.1, 3, 15)
        assert isotonic(y, w) == pytest.approx(isotonic_regression(y, weights=w).x)


def test_unimodal_is_the_best_of_all_modes() -> None:
    rng = np.random.default_rng(2)
    for _ in range(10):
        y = rng.normal(size=8)
        fitted = unimodal(y)
        steps = np.sign(np.round(np.diff(fitted), 12))
        steps = steps[steps != 0]
        assert (np.diff(steps) <= 0).all()  # up, then down
        losses = [
            ((isotonic_regression(y[:m]).x - y[:m]) ** 2).sum()
            + ((isotonic_regression(y[m:], increasing=False).x - y[m:]) ** 2).sum()
            for m in range(1, 8)
        ]
        assert ((y - fitted) ** 2).sum() <= min(losses) + 1e-9


def test_laplace_agrees_with_integration_in_one_dimension() -> None:
    prior, wins, count = 0.8, 33.0, 50.0

    def joint(f: float) -> float:
        log_likelihood = wins * f - count * np.logaddexp(0, f)
        return float(np.exp(log_likelihood + 30) * norm.pdf(f, scale=np.sqrt(prior)))

    mass = quad(joint, -6, 6)[0]
    mean = quad(lambda f: f * joint(f), -6, 6)[0] / mass
    variance = quad(lambda f: (f - mean) ** 2 * joint(f), -6, 6)[0] / mass
    means, covariances, evidence = curves._laplace(
        np.array([[[prior]]]), np.array([wins]), np.array([count])
    )
    assert means[0, 0] == pytest.approx(mean, abs=0.02)
    assert covariances[0, 0, 0] == pytest.approx(variance, rel=0.03)
    assert evidence[0] == pytest.approx(np.log(mass) - 30, abs=0.02)


def test_stacked_fit_finds_a_cliff_and_a_slow_decline() -> None:
    d, n = np.linspace(0.25, 5.5, 22), np.full(22, 500.0)
    cliff = 1 - np.exp(-1.6 * d) - 1.8 / (1 + np.exp(-(d - 3) / 0.2))
    for gold in (cliff, gao(d, 0.8, 0.45)):
        fit = fit_stacked(d, n * win_rate(gold, 0.25), n)
        shipped = gold[int(fit.mean().argmax())]
        assert gold.max() - shipped < 0.06 * gold.max()
    assert fit_stacked(d, n * win_rate(cliff), n).family_weights()["cliff"] > 0.9


def test_stacked_fit_without_duels_is_the_prior() -> None:
    fit = fit_stacked([1.0, 2.0], [0, 0], [0, 0])
    assert fit.mean() == pytest.approx([0.0, 0.0])
    draws = fit.sample(4000, np.random.default_rng(0))
    assert draws.mean(axis=0) == pytest.approx([0.0, 0.0], abs=0.15)


def test_stacked_samples_have_the_mixture_moments() -> None:
    fit = fit_stacked([1.0, 2.0, 3.0], [60, 75, 20], [100, 100, 100])
    draws = fit.sample(20000, np.random.default_rng(0))
    assert draws.mean(axis=0) == pytest.approx(fit.mean(), abs=0.02)
    centred = fit.means_MS - fit.mean()
    variance = fit.weights_M @ (np.diagonal(fit.covariances_MSS, axis1=1, axis2=2) + centred**2)
    assert draws.var(axis=0) == pytest.approx(variance, rel=0.05)


def test_equal_distances_share_their_evidence() -> None:
    fit = fit_stacked([2.0, 2.0, 2.0], [60, 70, 80], [100, 100, 100])
    assert fit.mean() == pytest.approx([np.log(70 / 30)] * 3, abs=0.2)
    assert np.ptp(fit.mean()) < 0.05
    assert np.isfinite(fit_stacked([0.0, 0.0], [5, 5], [10, 10]).mean()).all()


@pytest.mark.parametrize(
    ("d", "k", "n", "words"),
    [
        ([np.nan], [1], [2], "NaN"),
        ([-1.0], [1], [2], "negative"),
        ([1.0], [3], [2], "wins"),
        ([1.0, 2.0], [1], [2], "one length"),
    ],
)
def test_bad_duels_are_refused(d: list[float], k: list[float], n: list[float], words: str) -> None:
    for fit in (fit_gao_duels, fit_saturating_duels, fit_stacked):
        with pytest.raises(ValueError, match=words):
            fit(d, k, n)
