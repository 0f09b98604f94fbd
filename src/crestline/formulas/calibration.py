"""How far probabilities can be believed: calibration error and its floor, log-loss, Brier, AUROC.

Owns the figures of probabilistic forecasts of yes-or-no outcomes and the fit of a temperature, in
float64. Knows nothing of torch, files, rankings or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit
from scipy.stats import rankdata

from crestline.formulas.intervals import wilson

Array = NDArray[np.float64]
Whole = NDArray[np.int64]

SMALLEST = 1e-12
"""Probabilities are kept this far from 0 and 1 in logarithms: one wrong certainty costs 27.6 nats."""
PRIOR_COMPARISONS = 1.0
"""What is believed of a temperature before any comparison was seen is worth so many comparisons."""


# ---------------------------------------------------------------- temperature


def preference_probability(differences: ArrayLike, temperature: float) -> Array:
    """σ(difference / T): the probability that the first of two is preferred.

    differences: raw score of the first minus that of the second, any shape. temperature: > 0, raw
    units. Returns probabilities of the same shape.
    Source: Bradley & Terry (1952); Guo et al. (2017), arXiv 1706.04599, for the temperature.

    >>> round(float(preference_probability(2.0, 2.0)), 4)
    0.7311
    """
    return np.asarray(expit(np.asarray(differences, dtype=np.float64) / temperature))


def fit_temperature(differences_P: ArrayLike, weights_P: ArrayLike | None = None) -> float:
    """The temperature T that makes σ(difference / T) most likely, in raw units.

    differences_P: raw score of the preferred completion minus that of the other. weights_P: how
    many comparisons each stands for, ≥ 0, 1 by default. A prior worth `PRIOR_COMPARISONS`, half of
    them right and half wrong at a difference of one root mean square, keeps T finite where few
    pairs are all right: n right ones of one size give size / ln(2n + 1). It moves T by about 2 / n
    of its value where scores and people disagree now and then. T is at most e⁵ root mean squares,
    which it nears where scores say nothing. 1 if all differences are 0.
    Raises: ValueError if there are no pairs, or a difference is not finite.
    Source: Guo et al. (2017), arXiv 1706.04599, section 4.2; Platt (1999), section 2.2, smooths the
    targets of his sigmoid in the same spirit, as if one more answer of each kind had been seen.

    >>> round(fit_temperature([1.0, 1.0, 1.0, -1.0]), 3)  # σ(1/T) = (3 + ½) / (4 + 1)
    1.18
    """
    differences = np.asarray(differences_P, dtype=np.float64)
    if len(differences) == 0:
        raise ValueError("no pairs to fit the temperature on")
    if not np.isfinite(differences).all():
        raise ValueError("a difference of scores is not a finite number")
    weights = _weights(weights_P, len(differences))
    scale = np.sqrt(np.average(differences**2, weights=weights))
    if scale == 0:
        return 1.0
    scaled = np.append(differences / scale, [1.0, -1.0])
    weights = np.append(weights, [PRIOR_COMPARISONS / 2] * 2)

    def loss(log_temperature: float) -> float:
        return float(weights @ np.logaddexp(0, -scaled / np.exp(log_temperature)))

    found = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8})
    return float(scale * np.exp(found.x))


# ---------------------------------------------------------------- proper scores


def log_loss(
    probabilities_N: ArrayLike, outcomes_N: ArrayLike, weights_N: ArrayLike | None = None
) -> float:
    """Mean negative log-probability of what happened, nats.

    probabilities_N: of a yes, in [0, 1]. outcomes_N: 1 or True for a yes, 0.5 for a tie.
    weights_N: ≥ 0, equal by default. A coin has ln 2 = 0.693.
    Raises: ValueError on unequal lengths, no rows, or a probability outside [0, 1].

    >>> round(log_loss([0.8, 0.4], [1, 0]), 4)
    0.367
    """
    p, y, w = _rows(probabilities_N, outcomes_N, weights_N)
    p = np.clip(p, SMALLEST, 1 - SMALLEST)
    return float(-(w @ (y * np.log(p) + (1 - y) * np.log1p(-p))) / w.sum())


def brier(
    probabilities_N: ArrayLike, outcomes_N: ArrayLike, weights_N: ArrayLike | None = None
) -> float:
    """Mean squared distance between probability and outcome. A coin has 0.25.

    Arguments and errors as in `log_loss`.
    Source: Brier (1950), Monthly Weather Review 78, for two classes, half of his sum.

    >>> round(brier([0.8, 0.4], [1, 0]), 4)
    0.1
    """
    p, y, w = _rows(probabilities_N, outcomes_N, weights_N)
    return float(w @ (p - y) ** 2 / w.sum())


def auroc(scores_N: ArrayLike, positive_N: ArrayLike) -> float:
    """Probability that a random positive scores above a random negative; a tie counts half.

    scores_N: any unit. positive_N: True for positives. Returns NaN where one of the two is missing.
    Raises: ValueError on unequal lengths.
    Source: Mann & Whitney (1947); Hanley & McNeil (1982), Radiology 143.

    >>> auroc([0.1, 0.4, 0.4, 0.8], [False, False, True, True])
    0.875
    """
    scores, positive = np.asarray(scores_N, dtype=np.float64), np.asarray(positive_N, dtype=bool)
    if scores.shape != positive.shape:
        raise ValueError(f"{scores.shape} scores for {positive.shape} outcomes")
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    above = rankdata(scores)[positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def fit_logistic(features_ND: ArrayLike, outcomes_N: ArrayLike, *, ridge: float = 1e-3) -> Array:
    """Weights (D + 1,) of a logistic regression, the last one for the constant.

    features_ND: about unit scale. outcomes_N: 0 or 1. ridge: keeps weights finite where the outcomes can be
    told without error; the constant is free of it. Yes has probability σ(features · w[:-1] + w[-1]).
    Raises: ValueError on unequal lengths.

    >>> [round(float(w), 3) for w in fit_logistic([[0.0]] * 4, [1, 1, 1, 0])]  # ln 3
    [0.0, 1.099]
    """
    x, y = np.asarray(features_ND, dtype=np.float64), np.asarray(outcomes_N, dtype=np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or len(y) == 0:
        raise ValueError(f"{x.shape} features for {y.shape} outcomes: one row each is needed")
    x = np.column_stack([x, np.ones(len(x))])
    penalty = np.append(np.full(x.shape[1] - 1, ridge), 1e-9)

    def loss(weights: Array) -> tuple[float, Array]:
        z = x @ weights
        value = np.mean(np.logaddexp(0, z) - y * z) + 0.5 * penalty @ weights**2
        return float(value), x.T @ (expit(z) - y) / len(y) + penalty * weights

    found = minimize(loss, np.zeros(x.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-8})
    return np.asarray(found.x)


# ---------------------------------------------------------------- calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Forecasts of about the same probability: what was said and what happened.

    probability: mean of the forecasts. share: how often it was a yes, with its 95 % Wilson interval.
    from_, to: smallest and largest forecast inside.
    """

    from_: float
    to: float
    probability: float
    share: float
    low: float
    high: float
    num: int


def equal_mass_bins(values_N: ArrayLike, num_bins: int = 10) -> Whole:
    """The number of the bin of each value, from 0, in the order of the values, (N,).

    Bins hold about equally many rows; equal values always share one, so the order of the rows does
    not matter and there may be fewer bins than asked for.
    Raises: ValueError if num_bins is not positive.

    >>> equal_mass_bins([0.9, 0.1, 0.5, 0.6], 2).tolist(), equal_mass_bins([0.5, 0.5], 2).tolist()
    ([1, 0, 0, 1], [0, 0])
    """
    if num_bins < 1:
        raise ValueError(f"at least one bin is needed, not {num_bins}")
    values = np.asarray(values_N, dtype=np.float64)
    _, place_N, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - count / 2
    wanted = np.floor(middle * num_bins / max(len(values), 1))
    numbers = np.unique(wanted, return_inverse=True)[1]
    return np.asarray(numbers[place_N], dtype=np.int64)


def reliability(
    probabilities_N: ArrayLike, outcomes_N: ArrayLike, *, num_bins: int = 10
) -> list[ReliabilityBin]:
    """Bins of equal mass in the order of their probability.

    Arguments and errors as in `log_loss` and `equal_mass_bins`.

    >>> [(b.probability, b.share) for b in reliability([0.2, 0.2, 0.9], [0, 1, 1], num_bins=2)]
    [(0.2, 0.5), (0.9, 1.0)]
    """
    p, y, _ = _rows(probabilities_N, outcomes_N, None)
    bins = equal_mass_bins(p, num_bins)
    found = []
    for number in range(bins.max() + 1):
        inside = bins == number
        num, yes = int(inside.sum()), float(y[inside].sum())
        low, high = wilson(yes, num)
        found.append(
            ReliabilityBin(
                from_=float(p[inside].min()),
                to=float(p[inside].max()),
                probability=float(p[inside].mean()),
                share=yes / num,
                low=low,
                high=high,
                num=num,
            )
        )
    return found


def expected_calibration_error(
    probabilities_N: ArrayLike,
    outcomes_N: ArrayLike,
    weights_N: ArrayLike | None = None,
    *,
    num_bins: int = 10,
) -> float:
    """ECE: mean over rows of |mean probability − share of yes| of the row's bin, bins of equal mass.

    Arguments and errors as in `log_loss` and `equal_mass_bins`. weights_N: counts of a resample; the bins
    stay those of the rows as given. Finite samples keep it above 0 even for perfect forecasts: compare
    it with `calibration_floor`.
    Source: Naeini, Cooper, Hauskrecht (2015), AAAI; Nixon et al. (2019), arXiv 1904.01685, for
    equal mass.

    >>> round(expected_calibration_error([0.2, 0.2, 0.9], [0, 1, 1], num_bins=2), 4)  # (2·0.3 + 0.1)/3
    0.2333
    """
    p, y, w = _rows(probabilities_N, outcomes_N, weights_N)
    gaps = np.bincount(equal_mass_bins(p, num_bins), weights=w * (y - p))
    return float(np.abs(gaps).sum() / w.sum())


def calibration_floor(
    probabilities_N: ArrayLike,
    *,
    num_bins: int = 10,
    num_simulations: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """The ECE that these very probabilities would have if they were true: (mean, low, high).

    Outcomes are drawn from the probabilities again and again; low and high hold the middle
    `confidence` of the draws. An ECE below high is no evidence of miscalibration.
    probabilities_N, num_bins: as in `expected_calibration_error`. The same seed gives the same answer.
    Raises: ValueError if there are no rows or a number is out of range.
    Source: Bröcker & Smith (2007), Weather and Forecasting 22 (consistency resampling).

    >>> calibration_floor([0.0, 1.0, 1.0])
    (0.0, 0.0, 0.0)
    """
    p, _, _ = _rows(probabilities_N, np.zeros(len(np.asarray(probabilities_N))), None)
    if not 0.0 < confidence < 1.0 or num_simulations < 1:
        raise ValueError(f"bad confidence {confidence} or num_simulations {num_simulations}")
    bins = equal_mass_bins(p, num_bins)
    order = np.argsort(bins, kind="stable")
    p, starts = p[order], np.flatnonzero(np.diff(bins[order], prepend=-1))
    rng = np.random.default_rng(seed)
    errors = np.empty(num_simulations)
    for i in range(num_simulations):
        gaps = np.add.reduceat((rng.random(len(p)) < p) - p, starts)
        errors[i] = np.abs(gaps).sum() / len(p)
    tail = (1 - confidence) / 2
    low, high = np.quantile(errors, [tail, 1 - tail])
    return float(errors.mean()), float(low), float(high)


# ---------------------------------------------------------------- rows


def _rows(
    probabilities_N: ArrayLike, outcomes_N: ArrayLike, weights_N: ArrayLike | None
) -> tuple[Array, Array, Array]:
    p = np.asarray(probabilities_N, dtype=np.float64)
    y = np.asarray(outcomes_N, dtype=np.float64)
    if p.ndim != 1 or p.shape != y.shape or len(p) == 0:
        raise ValueError(f"{p.shape} probabilities for {y.shape} outcomes: one row each is needed")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("a probability is not in [0, 1]")
    return p, y, _weights(weights_N, len(p))


def _weights(weights_N: ArrayLike | None, num: int) -> Array:
    if weights_N is None:
        return np.ones(num)
    weights = np.asarray(weights_N, dtype=np.float64)
    if weights.shape != (num,) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(
            f"{weights.shape} weights for {num} rows; they must be 0 or more, not all 0"
        )
    return weights
