"""How often each person answers as the truth would: estimated from comparisons that several people answered.

Owns the one-coin model of Dawid and Skene with a Beta prior, in float64. Knows nothing of torch, texts or files.
Letters: L answers, A annotators, C comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

Array = NDArray[np.float64]

PRIOR = (8.0, 2.0)
"""Beta prior of a person's reliability: as if 7 of 8 earlier answers had been right (its mode), worth 8 answers."""
NEVER_CERTAIN = (0.5, 0.999)
"""Bounds of an estimate: nobody is trusted wholly, and nobody is taken for someone who lies on purpose."""


@dataclass(frozen=True)
class Reliability:
    """reliability_A: probability that an answer is right, in [0.5, 1). num_shared_A: answers to comparisons that
    somebody else answered too; where it is 0 the prior's mode stands. first_is_better_C: probability that the truth
    of each comparison is "the first"."""

    reliability_A: Array
    num_shared_A: NDArray[np.int64]
    first_is_better_C: Array


def annotator_reliability(
    annotator_L: ArrayLike,
    comparison_L: ArrayLike,
    first_won_L: ArrayLike,
    *,
    num_annotators: int | None = None,
    prior: tuple[float, float] = PRIOR,
    most_steps: int = 1000,
    tolerance: float = 1e-9,
) -> Reliability:
    """The most probable reliability of each annotator, by expectation and maximisation.

    annotator_L, comparison_L: who answered what, numbers from 0. first_won_L: True where the answer was "the first".
    num_annotators: A; None takes the largest of annotator_L plus 1. Who answered nothing has the prior's mode.
    prior: (a, b) of the Beta distribution of reliabilities, both at least 1. A person answers right with one
    probability whatever the comparison (one coin); the truth is a fair coin before anyone answered.
    Raises: ValueError where no comparison was answered by two different annotators.
    Source: Dawid and Skene 1979, with one error rate for each observer; the prior as in Raykar et al. 2010, section 5.

    >>> found = annotator_reliability([0, 1, 2], [0, 0, 0], [True, True, False])  # two against one
    >>> found.reliability_A.round(3).tolist()
    [0.882, 0.882, 0.785]
    """
    annotator, comparison = np.asarray(annotator_L), np.asarray(comparison_L)
    sign = np.where(np.asarray(first_won_L, dtype=bool), 1.0, -1.0)
    num_comparisons = int(comparison.max()) + 1
    if num_annotators is None:
        num_annotators = int(annotator.max()) + 1
    pairs = np.unique(np.stack([comparison, annotator]), axis=1)
    people_C = np.bincount(pairs[0], minlength=num_comparisons)
    shared_L = people_C[comparison] > 1
    if not shared_L.any():
        raise ValueError("no comparison was answered by two annotators")
    num_shared_A = np.bincount(annotator[shared_L], minlength=num_annotators)
    a, b = prior
    reliability_A = np.full(num_annotators, (a - 1) / (a + b - 2))
    for _ in range(most_steps):
        log_odds_A = np.log(reliability_A) - np.log1p(-reliability_A)
        first_C = expit(
            np.bincount(comparison, weights=sign * log_odds_A[annotator], minlength=num_comparisons)
        )
        right_L = np.where(sign > 0, first_C[comparison], 1 - first_C[comparison])
        right_A = np.bincount(annotator, weights=right_L * shared_L, minlength=num_annotators)
        better_A = np.clip((right_A + a - 1) / (num_shared_A + a + b - 2), *NEVER_CERTAIN)
        moved = np.abs(better_A - reliability_A).max()
        reliability_A = better_A
        if moved < tolerance:
            break
    return Reliability(reliability_A, num_shared_A, first_C)
