"""Best of n: what the best of n samples is expected to score, from one set of N samples, and how far that moves.

Owns the estimator and the bound on KL. Knows nothing of torch, models and files.
Letters: N samples of one prompt, G sizes n that are asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def best_of_n_weights(num_samples: int, n: int) -> Array:
    """How probable it is that each of N samples, the worst first, is the best of n of them: [N], summing to 1.

    That is C(i-1, n-1) / C(N, n) for the i-th worst: of all sets of n that can be drawn without putting back, those
    in which it is the best. The n-1 worst never are. A product from the best downwards, n/N and then (i-n)/(i-1) on,
    in place of binomials: nothing overflows, however many samples there are.
    Raises: ValueError unless 1 <= n <= num_samples.
    Source: Nakano et al. (2021), WebGPT, appendix I; used by Gao et al. (2023).

    >>> best_of_n_weights(4, 2).round(3).tolist()
    [0.0, 0.167, 0.333, 0.5]
    """
    if not 1 <= n <= num_samples:
        raise ValueError(f"need 1 <= n <= num_samples, not n={n}, num_samples={num_samples}")
    place = np.arange(num_samples, 1, -1, dtype=np.float64)  # the best first
    steps = np.concatenate([[n / num_samples], np.maximum(place - n, 0.0) / (place - 1)])
    return np.cumprod(steps)[::-1]


def expected_best(
    scores_N: ArrayLike, sizes: Sequence[int], values_N: ArrayLike | None = None
) -> Array:
    """The expected value of the best of n fresh samples, for each n of `sizes`: [G]. Unbiased for every n up to N.

    scores_N: finite, by which the best is chosen. values_N: what is then looked at, such as another judge's scores of
    the same samples; the scores themselves where None. Equal scores count as if one of them were drawn at random.
    Raises: ValueError for lengths that differ, for what is not finite, and for an n outside [1, N].
    Source: as `best_of_n_weights`; the second kind is how WebGPT validates one reward model by another.

    >>> expected_best([3.0, 1.0, 2.0], [1, 2, 3]).round(3).tolist()
    [2.0, 2.667, 3.0]
    >>> expected_best([3.0, 1.0, 2.0], [1, 3], values_N=[-5.0, 0.0, 5.0]).tolist()
    [0.0, -5.0]
    """
    scores = np.asarray(scores_N, dtype=np.float64)
    values = scores if values_N is None else np.asarray(values_N, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != values.shape:
        raise ValueError(f"need as many values as scores, not {values.shape} and {scores.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(values).all()):
        raise ValueError("scores and values must be finite")
    order = np.argsort(scores, kind="stable")
    ranked = values[order]
    if values_N is not None:
        _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
        ranked = (np.bincount(group, values) / counts)[group[order]]
    return np.array([best_of_n_weights(len(scores), n) @ ranked for n in sizes])


def best_of_n_kl(n: float) -> float:
    """KL of the best of n from the policy that is sampled, in nats: log n - (n-1)/n, an upper bound.

    n: at least 1. Equal to the KL where no two samples are ever the same or score the same; below it where the policy
    often says the same thing again, and then the bound can be far off.
    Raises: ValueError for n below 1.
    Source: Beirami et al. (2024), Theoretical guarantees on the best-of-n alignment policy, theorem 3.1.

    >>> best_of_n_kl(1), round(best_of_n_kl(64), 3)
    (0.0, 3.175)
    """
    if not n >= 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return log(n) - (n - 1) / n


def doublings(most: int) -> list[int]:
    """1, 2, 4, … up to `most`, which is the last.

    >>> doublings(1), doublings(8), doublings(12)
    ([1], [1, 2, 4, 8], [1, 2, 4, 8, 12])
    """
    return [2**k for k in range(most.bit_length()) if 2**k < most] + [most]
