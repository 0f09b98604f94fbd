"""What more data would buy: error against the number of training rows, and how far that carries.

Owns the power law, its fit and the judgement whether it may be extrapolated. Knows nothing of torch,
files or models. Letters: S measured points (a size and a seed each), G test groups, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
Estimate = tuple[float, float, float]
"""A number and the two ends of its interval."""

EXPONENTS = np.geomspace(0.05, 2.0, 120)
"""Exponents that the fit chooses among, 3 % apart; reward models lie between 0.1 and 1."""
ROUNDING = 1e-9
"""A slope per doubling below this is none."""
MIN_SIZES, MIN_SPAN, MAX_REACH = 4, 4.0, 4.0
"""An extrapolation needs so many sizes, the largest so many times the smallest, and goes so many times further."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLaw:
    """error(n) = floor + amplitude · n^(−exponent), all three at least 0.

    >>> round(float(PowerLaw(floor=0.2, amplitude=1.0, exponent=0.5)(100)), 3)
    0.3
    """

    floor: float
    amplitude: float
    exponent: float

    def __call__(self, counts: ArrayLike) -> Array:
        """Errors at these numbers of rows, > 0, any shape."""
        n = np.asarray(counts, dtype=np.float64)
        return np.asarray(self.floor + self.amplitude * n**-self.exponent)


def fit_power_law(counts_S: ArrayLike, errors_S: ArrayLike) -> PowerLaw:
    """Least-squares power law with floor, amplitude and exponent at least 0.

    counts_S: training rows, > 0. errors_S: share of wrong pairs, or nats; ≥ 0. For each of EXPONENTS
    the best floor and amplitude are exact, so there is no start to choose and nothing to diverge.
    Raises: ValueError on unequal lengths, no points, or values out of range.
    Source: Hestness et al. (2017), arXiv 1712.00409 (power law with an irreducible error).

    >>> n = np.array([100, 200, 400, 800])
    >>> round(fit_power_law(n, PowerLaw(floor=0.2, amplitude=1.0, exponent=0.5)(n)).floor, 2)
    0.2
    """
    counts, errors = np.asarray(counts_S, dtype=np.float64), np.asarray(errors_S, dtype=np.float64)
    if counts.ndim != 1 or counts.shape != errors.shape or len(counts) == 0:
        raise ValueError(f"{counts.shape} counts for {errors.shape} errors: one each is needed")
    if not ((counts > 0) & (errors >= 0) & np.isfinite(errors)).all():
        raise ValueError("counts must be above 0, errors 0 or more")
    floor, amplitude, exponent = _fits(counts, errors[None, :])[0]
    return PowerLaw(floor=float(floor), amplitude=float(amplitude), exponent=float(exponent))


def _fits(counts_S: Array, errors_BS: Array) -> Array:
    """(floor, amplitude, exponent) of each row, (B, 3)."""
    num = len(counts_S)
    z_CS = counts_S[None, :] ** -EXPONENTS[:, None]
    z_CS /= z_CS.max(1, keepdims=True)
    sum_z, sum_zz = z_CS.sum(1), (z_CS**2).sum(1)
    sum_y, sum_zy, sum_yy = errors_BS.sum(1), errors_BS @ z_CS.T, (errors_BS**2).sum(1)
    spread = num * sum_zz - sum_z**2
    slope = np.divide(
        num * sum_zy - sum_z * sum_y[:, None],
        spread,
        out=np.zeros_like(sum_zy),
        where=spread > 1e-12,
    )
    floor = (sum_y[:, None] - slope * sum_z) / num
    slope = np.where(floor < 0, sum_zy / sum_zz, slope)  # no floor
    floor = np.where(floor < 0, 0.0, floor)
    floor = np.where(slope < 0, sum_y[:, None] / num, floor)  # flat
    slope = np.where(slope < 0, 0.0, slope)
    misfit = (
        sum_yy[:, None]
        - 2 * floor * sum_y[:, None]
        - 2 * slope * sum_zy
        + num * floor**2
        + 2 * floor * slope * sum_z
        + slope**2 * sum_zz
    )
    best = misfit.argmin(1)
    row = np.arange(len(best))
    exponent = EXPONENTS[best]
    amplitude = slope[row, best] * counts_S.min() ** exponent
    return np.stack([floor[row, best], amplitude, exponent], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningCurve:
    """A fitted curve and what it says of more rows.

    errors: mean measured error of each point. at, fitted, low, high: the curve and its 95 % band, up to
    where it was measured, or to num_now + num_more where it may be extrapolated. per_doubling: change of the error
    each time the rows double, over the measured sizes, with its interval. refused: why nothing is
    said of more rows; empty where gain is told. gain: error at num_now minus error at num_now + num_more,
    with its interval.
    """

    counts: tuple[int, ...]
    errors: tuple[float, ...]
    fit: PowerLaw
    at: tuple[float, ...]
    fitted: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    per_doubling: Estimate
    num_now: int
    num_more: int
    refused: str
    gain: Estimate | None


def learning_curve(
    counts_S: ArrayLike,
    errors_SG: ArrayLike,
    weights_G: ArrayLike | None = None,
    *,
    num_more: int = 1000,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> LearningCurve:
    """Fit the curve and say what `num_more` rows beyond the largest size would buy, with an interval.

    counts_S: training rows of each point; several seeds of one size are several points. errors_SG: mean
    error of each point on each test group (a prompt's pairs), ≥ 0. weights_G: pairs in the group.
    The interval holds what the test set leaves open (groups are resampled, the same for all points) and
    what chance in training does (normal, as large as residuals say, larger where they are few). Nothing
    is extrapolated, and `refused` says why, with fewer than MIN_SIZES sizes, less than MIN_SPAN from
    smallest to largest, more than MAX_REACH times the largest, or no trend beyond chance.
    Raises: ValueError on shapes that do not match and numbers out of range.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 9 (regression).
    """
    counts, errors, weights = _arrays(counts_S, errors_SG, weights_G)
    if num_more < 0 or not 0 < confidence < 1:
        raise ValueError("num_more must be 0 or more, confidence in (0, 1)")
    means = errors @ weights / weights.sum()
    fit = fit_power_law(counts, means)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    resampled = partial(_resampled, errors, weights, means, num_resamples, seed)
    slope = float(_per_doubling(counts, means[None, :])[0])
    line = means.mean() + slope * (np.log2(counts) - np.log2(counts).mean())
    # a bend is no luck: the straight line's residuals hold both, the curve's luck alone
    luck = _luck(means, fit(counts), 3, confidence)
    along_line = resampled(line, min(luck, _luck(means, line, 2, confidence)))
    slopes = np.quantile(_per_doubling(counts, along_line), tails)
    replicates = resampled(fit(counts), luck)
    now = int(counts.max())
    refused = _refusal(counts, num_more, slopes)
    reach = now if refused else now + num_more
    at = np.geomspace(counts.min(), reach, 60) if reach > counts.min() else counts[:1]
    floor, amplitude, exponent = (column[:, None] for column in _fits(counts, replicates).T)
    band = np.quantile(floor + amplitude * at**-exponent, tails, axis=0)
    ends = np.array([now, now + num_more], dtype=np.float64)
    gains = np.quantile((floor + amplitude * ends**-exponent) @ [1.0, -1.0], tails)
    gain = (float(fit(ends) @ [1.0, -1.0]), float(gains[0]), float(gains[1]))
    return LearningCurve(
        counts=tuple(int(n) for n in counts),
        errors=tuple(means.tolist()),
        fit=fit,
        at=tuple(at.tolist()),
        fitted=tuple(fit(at).tolist()),
        low=tuple(band[0].tolist()),
        high=tuple(band[1].tolist()),
        per_doubling=(slope, float(slopes[0]), float(slopes[1])),
        num_now=now,
        num_more=num_more,
        refused=refused,
        gain=None if refused else gain,
    )


def _arrays(
    counts_S: ArrayLike, errors_SG: ArrayLike, weights_G: ArrayLike | None
) -> tuple[Array, Array, Array]:
    counts, errors = np.asarray(counts_S, dtype=np.float64), np.asarray(errors_SG, dtype=np.float64)
    if errors.ndim != 2 or errors.shape[0] != len(counts) or errors.shape[1] == 0:
        raise ValueError(f"{errors.shape} errors for {len(counts)} counts: (points, groups) needed")
    weights = np.ones(errors.shape[1]) if weights_G is None else np.asarray(weights_G, np.float64)
    if weights.shape != errors.shape[1:]:
        raise ValueError(f"{weights.shape} weights for {errors.shape[1]} groups")
    return counts, errors, weights


def _resampled(
    errors_SG: Array,
    weights_G: Array,
    means_S: Array,
    num_resamples: int,
    seed: int,
    fitted_S: Array,
    luck: float,
) -> Array:
    """Mean errors of other test sets and other luck in training, whose standard deviation is told, (B, S)."""
    rng = np.random.default_rng(seed)
    num_points, num_groups = errors_SG.shape
    found = np.empty((num_resamples, num_points))
    for b in range(num_resamples):
        drawn = np.bincount(rng.integers(num_groups, size=num_groups), minlength=num_groups)
        times = drawn * weights_G
        found[b] = fitted_S + (errors_SG @ times / times.sum() - means_S)
    found += luck * rng.standard_normal(found.shape)
    return np.maximum(found, 0.0)


def _luck(means_S: Array, fitted_S: Array, num_fitted: int, confidence: float) -> float:
    """Standard deviation of luck in training by the residuals of a fit of num_fitted numbers.

    Few residuals tell little of it: it is wider by as much as Student's t is than the normal distribution. A fit of
    as many numbers as there are points leaves none: then all that the points differ by may be luck.
    """
    if len(means_S) <= num_fitted:
        fitted_S, num_fitted = np.full_like(means_S, means_S.mean()), 1
    residuals_S = means_S - fitted_S
    num_free = max(len(means_S) - num_fitted, 1)
    tail = (1 + confidence) / 2
    wider = stats.t.ppf(tail, num_free) / stats.norm.ppf(tail)
    return float(np.sqrt(residuals_S @ residuals_S / num_free) * wider)


def _per_doubling(counts_S: Array, errors_BS: Array) -> Array:
    """Slope of the straight line through errors over log2(rows), (B,); 0 for a single size."""
    centred = np.log2(counts_S) - np.log2(counts_S).mean()
    spread = float(centred @ centred)
    return errors_BS @ centred / spread if spread > 0 else np.zeros(len(errors_BS))


def _refusal(counts_S: Array, num_more: int, slopes: Array) -> str:
    """Why the curve says nothing of more rows; empty where it may be asked."""
    sizes = np.unique(counts_S)
    if len(sizes) < MIN_SIZES:
        return f"too few points: {len(sizes)} sizes, at least {MIN_SIZES} are needed"
    if sizes[-1] < MIN_SPAN * sizes[0]:
        return (
            f"too narrow: from {sizes[0]:.0f} to {sizes[-1]:.0f} rows; the largest must be at least "
            f"{MIN_SPAN:.0f} times the smallest"
        )
    if slopes[0] > ROUNDING:
        return "the error rises with more rows: something other than their number is wrong"
    if slopes[1] >= -ROUNDING:
        return "flat: the error does not fall beyond chance over the measured sizes"
    if sizes[-1] + num_more > MAX_REACH * sizes[-1]:
        return (
            f"too far: {sizes[-1]:.0f} rows were measured and {num_more} more would be beyond "
            f"{MAX_REACH:.0f} times as many"
        )
    return ""
