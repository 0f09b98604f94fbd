"""What choosing the best of n buys: expected scores for each n, another judge's view of them, and where that turns.

Owns the figures. Knows nothing of files, models and pages; scores come in as numbers.
Letters: P prompts, N samples of a prompt, G sizes n, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crestline.formulas.best_of_n import best_of_n_kl, doublings, expected_best
from crestline.formulas.intervals import (
    bootstrap_replicates,
    percentile_interval,
    simultaneous_lower,
)
from crestline.rewards.pairs import FEW_CLUSTERS
from crestline.types import PromptText

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The N samples of one prompt and what was said of each, raw; judge_scores is empty where nobody else judged."""

    prompt: PromptText
    completions: tuple[str, ...]
    scores: tuple[float, ...]
    judge_scores: tuple[float, ...] = ()

    @property
    def best(self) -> int:
        """Which sample is chosen: the first of those with the highest score."""
        return int(np.argmax(self.scores))


def best_of_n_figures(
    samples: Sequence[Scored], *, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """The curve over n = 1, 2, 4, … up to the least N among the prompts, and where the judge's scores peak.

    Expected scores are means over prompts of unbiased estimates, intervals (95 %) resample whole prompts, gains are
    over n = 1, turns as `turn` tells them. Intervals are None with one prompt; turns show nothing with fewer than
    FEW_CLUSTERS different ones.
    Raises: ValueError for no samples, and for scores that are not finite.
    """
    if not samples:
        raise ValueError("no samples")
    sizes = doublings(min(len(found.completions) for found in samples))
    names = ["score", "judge"] if samples[0].judge_scores else ["score"]
    estimates_PXG = np.array([_estimates(found, sizes, names) for found in samples])
    mean_XG = estimates_PXG.mean(0)
    replicates_BXG = bootstrap_replicates(
        lambda times: np.tensordot(times / times.sum(), estimates_PXG, 1),
        [str(found.prompt) for found in samples],
        num_resamples=num_resamples,
        seed=seed,
    )
    num_different = len({str(found.prompt) for found in samples})
    several, enough = num_different > 1, num_different >= FEW_CLUSTERS
    curve: list[dict[str, Any]] = [
        {"n": n, "kl_bound": best_of_n_kl(n), "distance_bound": best_of_n_kl(n) ** 0.5}
        for n in sizes
    ]
    for x, name in enumerate(names):
        columns = _columns(name, mean_XG[x], replicates_BXG[:, x], several=several)
        for row, found in zip(curve, columns, strict=True):
            row |= found
    return {
        "num_prompts": len(samples),
        "num_completions": sum(len(found.completions) for found in samples),
        "num_generations": sizes[-1],
        "distinct_fraction": float(
            np.mean([len(set(found.completions)) / len(found.completions) for found in samples])
        ),
        "standard_deviation": {name: _deviation(samples, name) for name in names},
        "interval": f"{num_resamples:,} resamples of whole prompts",
        "curve": curve,
        "score_turn": turn(sizes, mean_XG[0], replicates_BXG[:, 0], enough=enough),
        "judge_turn": turn(sizes, mean_XG[-1], replicates_BXG[:, -1], enough=enough)
        if len(names) > 1
        else None,
    }


def turn(
    sizes: Sequence[int], mean_G: Array, replicates_BG: Array, *, enough: bool = True
) -> dict[str, Any]:
    """Where a curve is highest, whether it was shown to rise at all, and to fall anywhere behind its highest point.

    Returns peak_n; gain: of the peak over n = 1; fall: from the peak to the largest n. gain_low: with 95 % some n gains
    at least this; fall_low: with 95 % some n behind the peak loses at least this, a bound that holds for all pairs of n
    at once, so that looking for the peak does not flatter it. gain_shown, fall_shown: whether these are above 0.
    enough: False where resamples are of too few prompts to trust their spread: nothing is shown then, and the bounds
    are None.
    """
    peak, num = int(np.argmax(mean_G)), len(sizes)
    earlier, later = np.triu_indices(num, 1)
    fall_bounds = simultaneous_lower(
        mean_G[earlier] - mean_G[later], replicates_BG[:, earlier] - replicates_BG[:, later]
    )[earlier == peak]
    gain_bounds = simultaneous_lower(
        mean_G[1:] - mean_G[0], replicates_BG[:, 1:] - replicates_BG[:, :1]
    )
    found: dict[str, Any] = {"peak_n": sizes[peak]}
    for name, size, bounds in (
        ("gain", mean_G[peak] - mean_G[0], gain_bounds),
        ("fall", mean_G[peak] - mean_G[-1], fall_bounds),
    ):
        low = float(bounds.max()) if enough and len(bounds) else None
        found |= {name: float(size), f"{name}_low": low, f"{name}_shown": bool(low and low > 0)}
    return found


def _estimates(found: Scored, sizes: Sequence[int], names: Sequence[str]) -> list[Array]:
    by = {"score": None, "judge": found.judge_scores}
    return [expected_best(found.scores, sizes, by[name]) for name in names]


def _deviation(samples: Sequence[Scored], name: str) -> float:
    """Standard deviation within prompts, pooled, of prompts with two samples or more; 0 where there are none."""
    columns = [found.scores if name == "score" else found.judge_scores for found in samples]
    variances = [float(np.var(column, ddof=1)) for column in columns if len(column) > 1]
    return float(np.mean(variances)) ** 0.5 if variances else 0.0


def _columns(
    name: str, mean_G: Array, replicates_BG: Array, *, several: bool
) -> list[dict[str, float | None]]:
    """For each n: the mean and the gain over n = 1, with the ends of their intervals."""
    ends = percentile_interval(replicates_BG)
    gain_ends = percentile_interval(replicates_BG - replicates_BG[:, :1])
    gain_G = mean_G - mean_G[0]
    rows: list[dict[str, float | None]] = []
    for g in range(len(mean_G)):
        row: dict[str, float | None] = {name: float(mean_G[g]), f"{name}_gain": float(gain_G[g])}
        for key, (low, high) in ((name, ends[:, g]), (f"{name}_gain", gain_ends[:, g])):
            row[f"{key}_low"] = float(low) if several else None
            row[f"{key}_high"] = float(high) if several else None
        rows.append(row)
    return rows
