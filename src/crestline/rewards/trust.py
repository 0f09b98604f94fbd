"""How far a score's certainty can be believed: calibration, and whether an ensemble's spread knows better.

Owns the figures on one random pair of each ranking, shown on a random side. Knows nothing of models and
files. Letters: N completions, P pairs, M ensemble members, C cases: one pair of each ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crestline.formulas.calibration import (
    auroc,
    brier,
    calibration_floor,
    expected_calibration_error,
    fit_logistic,
    fit_temperature,
    log_loss,
    preference_probability,
    reliability,
)
from crestline.formulas.intervals import bootstrap_replicates, percentile_interval
from crestline.rewards.pairs import Array, Pairs, Whole

NUM_BINS, NUM_FOLDS = 10, 5
FEWEST = 20
"""With fewer cases nothing is said of calibration and spread."""


@dataclass(frozen=True, slots=True)
class Cases:
    """One random pair of each ranking, on a random side: what calibration is measured on.

    first_C, second_C: places among the N completions. first_wins_C: whether people preferred the first.
    cluster_C: what a resample draws whole, as in `Pairs`.
    """

    first_C: Whole
    second_C: Whole
    first_wins_C: NDArray[np.bool_]
    cluster_C: Whole

    def __len__(self) -> int:
        return len(self.first_C)


def cases_of(pairs: Pairs, *, seed: int) -> Cases:
    """Draw the cases; the same pairs and seed give the same."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(pairs))
    _, place = np.unique(pairs.ranking_P[order], return_index=True)
    chosen = order[place]
    wins = rng.random(len(chosen)) < 0.5
    better, worse = pairs.better_P[chosen], pairs.worse_P[chosen]
    return Cases(
        first_C=np.where(wins, better, worse),
        second_C=np.where(wins, worse, better),
        first_wins_C=wins,
        cluster_C=pairs.cluster_P[chosen],
    )


def temperature_of(
    pairs: Pairs, scores_N: Array, chosen_P: NDArray[np.bool_] | None = None
) -> float:
    """The temperature that makes pairs most likely, each ranking counting once; 1 where there are none.

    chosen_P: True for the pairs to fit on; all by default.
    """
    weights = 1.0 / np.bincount(pairs.ranking_P)[pairs.ranking_P] if len(pairs) else np.ones(0)
    weights = weights if chosen_P is None else weights * chosen_P
    if not weights.any():
        return 1.0
    return fit_temperature(scores_N[pairs.better_P] - scores_N[pairs.worse_P], weights)


def cross_fitted(pairs: Pairs, scores_N: Array, cluster_C: Whole, *, seed: int) -> Array:
    """For each case, told by its cluster, the temperature of the half of the clusters that it is not in, (C,)."""
    num_clusters = int(pairs.cluster_P.max()) + 1
    half = np.random.default_rng([seed, 2]).permutation(num_clusters) % 2
    fitted = [temperature_of(pairs, scores_N, half[pairs.cluster_P] != side) for side in (0, 1)]
    return np.asarray(np.array(fitted)[half[cluster_C]])


def calibration_figures(
    cases: Cases,
    differences_C: Array,
    temperature_C: Array,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """ECE beside its floor, log-loss and Brier beside those of raw differences (T = 1) and of a coin.

    differences_C: raw score of the first minus that of the second. temperature_C: of each case. The `gain_over`
    figures are paired differences, above 0 where the calibrated probability is better.
    """
    wins = cases.first_wins_C.astype(np.float64)
    calibrated = preference_probability(differences_C / temperature_C, 1.0)
    raw, coin = preference_probability(differences_C, 1.0), np.full(len(cases), 0.5)

    def figures(times_C: Array) -> dict[str, float]:
        found = {}
        for name, figure in (("log_loss", log_loss), ("brier", brier)):
            found[name] = figure(calibrated, wins, times_C)
            found[f"{name}_gain_over_uncalibrated"] = figure(raw, wins, times_C) - found[name]
            found[f"{name}_gain_over_constant"] = figure(coin, wins, times_C) - found[name]
        ece = expected_calibration_error(calibrated, wins, times_C, num_bins=NUM_BINS)
        return {**found, "ece": ece}

    floor, low, high = calibration_floor(calibrated, num_bins=NUM_BINS, seed=seed)
    return {
        "num_rankings": len(cases),
        **with_intervals(figures, cases.cluster_C, centred=("ece",), num=num_resamples, seed=seed),
        "ece_floor": floor,
        "ece_floor_low": low,
        "ece_floor_high": high,
        "ece_uncalibrated": expected_calibration_error(raw, wins, num_bins=NUM_BINS),
        "log_loss_uncalibrated": log_loss(raw, wins),
        "brier_uncalibrated": brier(raw, wins),
        "log_loss_constant": log_loss(coin, wins),
        "brier_constant": brier(coin, wins),
        "bins": [asdict(part) for part in reliability(calibrated, wins, num_bins=NUM_BINS)],
    }


def spread_figures(
    cases: Cases,
    differences_C: Array,
    member_differences_CM: Array,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Whether the members' spread tells wrong from right, by itself and beside the margin, as AUROC.

    differences_C: aggregated score of the first minus that of the second. member_differences_CM: the same of each
    member; members are put on one scale by the root mean square of their differences, which looks at no answer.
    margin: |difference|. spread: standard deviation over members, small where they agree. both: a logistic
    regression on the logarithms of the two, fitted on other clusters than it is asked of. An AUROC of a half knows
    nothing. Cases with no difference at all are left out.
    """
    told = differences_C != 0
    right = (differences_C > 0)[told] == cases.first_wins_C[told]
    cluster = cases.cluster_C[told]
    scale_M = np.sqrt((member_differences_CM**2).mean(0))
    members = member_differences_CM[told] / np.where(scale_M > 0, scale_M, 1.0)
    margin, spread = np.abs(differences_C[told]), members.std(1, ddof=1)
    both = _out_of_fold(
        np.column_stack([_logarithm(margin), _logarithm(spread)]), right, cluster, seed
    )

    def figures(times_C: Array) -> dict[str, float]:
        rows = np.repeat(np.arange(len(right)), times_C.astype(np.int64))
        found = {
            name: auroc(value[rows], right[rows])
            for name, value in (("margin", margin), ("spread", -spread), ("both", both))
        }
        return {f"auroc_{name}": value for name, value in found.items()} | {
            f"auroc_{name}_over_margin": found[name] - found["margin"]
            for name in ("spread", "both")
        }

    accuracy_M = ((member_differences_CM > 0) == cases.first_wins_C[:, None]).mean(0)
    return {
        "num_members": member_differences_CM.shape[1],
        "num_rankings": len(right),
        "num_wrong": int((~right).sum()),
        **with_intervals(figures, cluster, num=num_resamples, seed=seed),
        "member_accuracies": accuracy_M.tolist(),
    }


def _logarithm(values_C: Array) -> Array:
    """Logarithms in units of their standard deviation; equal values become 0."""
    logs = np.log(np.maximum(values_C, 1e-12))
    deviation = logs.std()
    return np.asarray((logs - logs.mean()) / (deviation if deviation > 1e-9 else 1.0))


def _out_of_fold(
    features_CD: Array, right_C: NDArray[np.bool_], cluster_C: Whole, seed: int
) -> Array:
    """Log-odds of being right, each by a regression on the other folds of clusters."""
    numbers = np.unique(cluster_C, return_inverse=True)[1]
    shuffled = np.random.default_rng([seed, 3]).permutation(numbers.max() + 1)
    fold_C = shuffled[numbers] % NUM_FOLDS
    found = np.zeros(len(right_C))
    for fold in range(NUM_FOLDS):
        here = fold_C == fold
        if here.any() and not here.all():
            weights = fit_logistic(features_CD[~here], right_C[~here])
            found[here] = features_CD[here] @ weights[:-1] + weights[-1]
    return found


def with_intervals(
    figures: Callable[[Array], Mapping[str, float]],
    cluster_C: Whole,
    *,
    centred: Collection[str] = (),
    num: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Each figure with `_low` and `_high`, its 95 % percentile bootstrap interval over clusters.

    figures: by name, given how often each case is drawn. centred: figures at least 0 that a resample pushes up,
    as it adds noise of its own; their replicates are moved back to lie around the figure.
    """
    values = figures(np.ones(len(cluster_C)))
    names = list(values)
    replicates = bootstrap_replicates(
        lambda times: list(figures(times).values()),
        cluster_C.tolist(),
        num_resamples=num,
        seed=seed,
    )
    for name in centred:
        column = replicates[:, names.index(name)]
        column += values[name] - column.mean()
        np.maximum(column, 0.0, out=column)
    low, high = percentile_interval(replicates)
    found: dict[str, float] = {}
    for n, name in enumerate(names):
        found |= {
            name: float(values[name]),
            f"{name}_low": float(low[n]),
            f"{name}_high": float(high[n]),
        }
    return found
