"""Intervals for proportions and for any statistic of resampled values.

Owns the statistics of uncertainty. Knows nothing of torch, files or checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def normal_quantile(probability: float) -> float:
    """The standard normal value below which `probability` (in (0, 1)) of the mass lies.

    Raises: ValueError outside (0, 1).

    >>> round(normal_quantile(0.975), 3)
    1.96
    """
    if not 0.0 < probability < 1.0:
        raise ValueError(f"probability must lie between 0 and 1, not {probability}")
    return NormalDist().inv_cdf(probability)


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided Wilson score interval of a proportion.

    k: successes, 0 ≤ k ≤ n; a tie counts as half of one, which makes the interval a little wide.
    n: trials; with none the answer is (0, 1). confidence: in (0, 1).
    Returns (low, high), proportions in [0, 1].
    A one-sided bound at level 1 − a is the matching end at confidence 1 − 2a.

    Raises: ValueError if k, n or confidence is out of range.
    Source: Wilson (1927), JASA 22, eq. 9; Brown, Cai, DasGupta (2001), Stat. Sci. 16, eq. 4.

    >>> low, high = wilson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    if not (0.0 <= k <= n):
        raise ValueError(f"need 0 <= k <= n, not k={k}, n={n}")
    z = normal_quantile(0.5 + confidence / 2)
    if n == 0:
        return 0.0, 1.0
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return low, high


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[Array], float] | None = None,
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval; with `groups`, whole groups are drawn (cluster bootstrap).

    values: (N,) or (N, columns), in any unit; rows are resampled with replacement.
    statistic: maps resampled rows to one number in the unit of the answer; the mean of all
    entries by default. groups: (N,) labels, one per row: rows of one label (a prompt, a person, a
    seed) stay together. confidence: in (0, 1). The same seed gives the same interval.
    Returns (low, high). With fewer than about 20 groups the interval is too narrow.

    Raises: ValueError if there are no values, or lengths differ, or a number is out of range.
    Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, ch. 13; Field & Welsh
    (2007), JRSS-B 69 (cluster bootstrap).

    >>> low, high = bootstrap_interval([0.0, 1.0] * 50, seed=1)
    >>> round(low, 1), round(high, 1)
    (0.4, 0.6)
    """
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim == 0 or len(rows) == 0:
        raise ValueError("no values to resample")
    labels = range(len(rows)) if groups is None else groups
    if len(labels) != len(rows):
        raise ValueError(f"{len(labels)} group labels for {len(rows)} values")
    means = rows.reshape(len(rows), -1).mean(1)

    def replicate(times: Array) -> float:
        if statistic is None:
            return float(times @ means / times.sum())
        return statistic(np.repeat(rows, times.astype(np.int64), axis=0))

    replicates = bootstrap_replicates(replicate, labels, num_resamples=num_resamples, seed=seed)
    low, high = percentile_interval(replicates, confidence)
    return float(low), float(high)


def bootstrap_replicates(
    statistic: Callable[[Array], ArrayLike],
    groups: Sequence[Hashable],
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Array:
    """What a statistic gives on each of `num_resamples` resamples of whole groups, (B, ...).

    statistic: given how often each row is drawn, (N,) whole numbers, returns one or several numbers;
    several statistics of the same resamples cost one pass. groups: (N,) labels, one per row.
    Raises: ValueError if there are no rows or resamples.
    Source: Field & Welsh (2007), JRSS-B 69.

    >>> weights = bootstrap_replicates(lambda times: times, ["a", "a", "b"], num_resamples=9)
    >>> weights.shape, bool((weights[:, 0] == weights[:, 1]).all())
    ((9, 3), True)
    """
    if len(groups) == 0 or num_resamples < 1:
        raise ValueError(f"{len(groups)} rows and {num_resamples} resamples: at least one of each")
    numbers: dict[Hashable, int] = {}
    group_N = np.array([numbers.setdefault(label, len(numbers)) for label in groups])
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_resamples):
        drawn = rng.integers(len(numbers), size=len(numbers))
        times = np.bincount(drawn, minlength=len(numbers)).astype(np.float64)
        found.append(np.asarray(statistic(times[group_N]), dtype=np.float64))
    return np.stack(found)


def percentile_interval(replicates: Array, confidence: float = 0.95) -> Array:
    """The middle `confidence` of replicates along the first axis: (2, ...), low then high.

    NaN (a statistic that a resample does not have) is passed over; where all are NaN, so is the answer.
    Raises: ValueError if confidence is not in (0, 1).
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    tail = (1 - confidence) / 2
    ends = np.full((2, *replicates.shape[1:]), np.nan)
    known = ~np.isnan(replicates).all(0)
    if np.any(known):
        ends[:, known] = np.nanquantile(replicates[:, known], [tail, 1 - tail], axis=0)
    return ends


def simultaneous_lower(estimates_M: Array, replicates_BM: Array, confidence: float = 0.95) -> Array:
    """Lower bounds that hold for M estimates at once, [M], so that one may look for the largest and believe its bound.

    estimates_M: each in any unit. replicates_BM: the same of B resamples, as `bootstrap_replicates` gives them. Each
    bound lies the same number of its own standard errors below: the quantile of the largest deviation among the M.
    One without any spread is its own bound.
    Raises: ValueError if shapes differ or confidence is not in (0, 1).
    Source: Romano & Wolf (2005), Econometrica 73 (studentised maximum).

    >>> draws = np.random.default_rng(0).normal(size=(4000, 2))
    >>> bool(abs(simultaneous_lower(np.zeros(2), draws) + 1.955).max() < 0.1)  # alone it would be -1.645
    True
    """
    if replicates_BM.shape[1:] != estimates_M.shape:
        raise ValueError(
            f"{replicates_BM.shape} are no replicates of {estimates_M.shape} estimates"
        )
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    errors_M = replicates_BM.std(0)
    moves = errors_M > 0
    if not moves.any():
        return estimates_M.copy()
    deviations_BM = (replicates_BM - estimates_M)[:, moves] / errors_M[moves]
    most = float(np.quantile(deviations_BM.max(1), confidence))
    bounds_M: Array = estimates_M - most * errors_M
    return bounds_M
