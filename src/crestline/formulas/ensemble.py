"""How the members of an ensemble become one score, and how far they are apart. Pure mathematics on arrays.

Letters: N completions, M members. Scores stand on one scale: log-odds of being preferred to a typical completion.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Aggregate = Literal["mean", "min", "uwo"]


def aggregated(scores_NM: ArrayLike, how: Aggregate, uwo_coefficient: float = 0.1) -> Array:
    """One score [N] for each completion.

    scores_NM: the members' scores on one scale. how: mean; min, the most pessimistic member; uwo, the mean minus
    uwo_coefficient times the variance over members (divided by M).
    Raises: ValueError for another word.
    Source: Coste et al. (2024), arXiv 2310.02743, equations 3 to 5.

    >>> [float(aggregated([[1.0, 3.0]], how)[0]) for how in ("mean", "min")]
    [2.0, 1.0]
    >>> float(aggregated([[1.0, 3.0]], "uwo", 0.5)[0])  # 2 - 0.5 * 1
    1.5
    """
    scores = np.asarray(scores_NM, dtype=np.float64)
    if how == "mean":
        return np.asarray(scores.mean(1))
    if how == "min":
        return np.asarray(scores.min(1))
    if how == "uwo":
        return np.asarray(scores.mean(1) - uwo_coefficient * scores.var(1))
    raise ValueError(f"no aggregate {how!r}: mean, min or uwo")


def spread(scores_NM: ArrayLike) -> Array:
    """Standard deviation [N] over the members, in the scores' unit; 0 where there is one member.

    >>> float(spread([[1.0, 3.0]])[0])
    1.0
    """
    return np.asarray(np.asarray(scores_NM, dtype=np.float64).std(1))
