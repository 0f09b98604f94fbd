"""Rankings as pairs of which people preferred one, and how often a score agrees, group by group.

Owns which pairs are counted and what their intervals rest on. Knows nothing of models and files.
Letters: N completions in the order of the rankings, P pairs, C clusters that a resample draws whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from crestline.formulas.calibration import equal_mass_bins
from crestline.formulas.intervals import bootstrap_replicates, percentile_interval, wilson
from crestline.types import Ranking

Array = NDArray[np.float64]
Whole = NDArray[np.int64]
Row = dict[str, Any]
Grouping = tuple[Whole, Sequence[str]]
"""The number of each pair's group, −1 for none, and the names of the groups; none is empty."""

FEW_CLUSTERS = 20
"""With fewer, a bootstrap interval is too narrow; Wilson's for as many trials as clusters stands in."""
MOST_ROWS = 50
"""Annotators or sources that are told one by one; the rest is told together."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Every two completions with different texts that people ranked and did not tie.

    ranking_P: number of the ranking. better_P, worse_P: places among the N completions. rank_gap_P: ranks between
    them, 1 or more. margin_P: how much better people said it was; NaN where nobody did. cluster_P: what a resample
    draws whole, by_prompt: as `clusters_of` gives. num_same_text: pairs left out.
    """

    ranking_P: Whole
    better_P: Whole
    worse_P: Whole
    rank_gap_P: Whole
    margin_P: Array
    cluster_P: Whole
    by_prompt: bool
    num_same_text: int

    def __len__(self) -> int:
        return len(self.ranking_P)

    def interval_rests_on(self, accuracy: float) -> str:
        """What the interval of this accuracy rests on, for people."""
        unit, num_clusters = (
            "prompt" if self.by_prompt else "ranking",
            len(np.unique(self.cluster_P)),
        )
        if num_clusters == len(self):
            return f"Wilson: one pair a {unit}"
        if by_wilson(accuracy, len(self), num_clusters):
            return f"Wilson: as many trials as {unit}s"
        return f"bootstrap by {unit}"


def ranked_pairs(ranking: Ranking) -> list[tuple[int, int]]:
    """Places (better, worse) of every two completions that people ranked and did not tie.

    >>> ranked_pairs(Ranking(prompt="", completions=("a", "b", "c"), ranks=(1, 0, None)))
    [(1, 0)]
    """
    return [
        (i, j)
        for i, rank in enumerate(ranking.ranks)
        for j, other in enumerate(ranking.ranks)
        if rank is not None and other is not None and rank < other
    ]


def clusters_of(rankings: Sequence[Ranking]) -> tuple[Whole, bool]:
    """The cluster of each ranking, (R,), and whether these are its prompts.

    A ranking without a prompt is a cluster of its own, and so is each where all answer one prompt.
    """
    prompts = [
        r.prompt if isinstance(r.prompt, str) else ("chat", json.dumps(r.prompt, sort_keys=True))
        for r in rankings
    ]
    by_prompt = len(set(prompts)) > 1
    numbers: dict[Hashable, int] = {}
    labels = [prompt if prompt and by_prompt else n for n, prompt in enumerate(prompts)]
    return np.array([numbers.setdefault(v, len(numbers)) for v in labels], np.int64), by_prompt


def pairs_of(rankings: Sequence[Ranking]) -> Pairs:
    """All pairs of rankings, in their order."""
    cluster_R, by_prompt = clusters_of(rankings)
    places: list[tuple[int, int, int, int]] = []
    margins: list[float] = []
    first, num_same = 0, 0
    for number, ranking in enumerate(rankings):
        for i, j in ranked_pairs(ranking):
            if ranking.completions[i] == ranking.completions[j]:
                num_same += 1
                continue
            gap = (ranking.ranks[j] or 0) - (ranking.ranks[i] or 0)
            places.append((number, first + i, first + j, gap))
            margins.append(float("nan") if ranking.margin is None else ranking.margin)
        first += len(ranking.completions)
    columns = np.array(places, dtype=np.int64).reshape(-1, 4).T
    return Pairs(
        ranking_P=columns[0],
        better_P=columns[1],
        worse_P=columns[2],
        rank_gap_P=columns[3],
        margin_P=np.array(margins, dtype=np.float64),
        cluster_P=cluster_R[columns[0]],
        by_prompt=by_prompt,
        num_same_text=num_same,
    )


def agreement(differences_P: Array) -> Array:
    """1 where the better completion is ahead, 0 where it is behind, a half where they are level."""
    return np.asarray(0.5 + 0.5 * np.sign(differences_P))


def accuracy_rows(
    pairs: Pairs,
    right_P: Array,
    groupings: Mapping[str, Grouping],
    *,
    beside: Mapping[str, Array],
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, list[Row]]:
    """By grouping a row for each group: accuracy with its 95 % interval, and numbers beside it.

    right_P: as `agreement` gives. groupings: the number of each pair's group, −1 for none, and the groups' names.
    beside: means that are told with each group, such as "longer_wins_accuracy".
    The interval: Wilson's where every cluster holds one pair or all pairs agree; Wilson's for as many trials as
    clusters with fewer than FEW_CLUSTERS; else the percentile bootstrap over clusters.
    """
    names = [name for _, group_names in groupings.values() for name in group_names]
    if not names or not len(pairs):
        return {grouping: [] for grouping in groupings}
    starts = np.cumsum([0, *(len(group_names) for _, group_names in groupings.values())])
    codes = [
        np.where(group_P >= 0, group_P + start, -1)
        for (group_P, _), start in zip(groupings.values(), starts[:-1], strict=True)
    ]
    code = np.concatenate(codes)
    cluster = np.tile(pairs.cluster_P, len(codes))
    shape = (int(pairs.cluster_P.max()) + 1, len(names))

    def per_cluster(values_P: Array) -> csr_array:
        values = np.tile(values_P, len(codes))[code >= 0]
        return csr_array((values, (cluster[code >= 0], code[code >= 0])), shape=shape)

    num = per_cluster(np.ones(len(pairs)))
    means = {"accuracy": right_P, **beside}
    totals = {key: per_cluster(values) for key, values in means.items()}
    once = np.ones(shape[0])
    num_pairs, num_clusters = num.T @ once, (num > 0).sum(0)
    ends = _share_intervals(totals["accuracy"], num, num_resamples=num_resamples, seed=seed)
    rows: list[Row] = []
    for n, name in enumerate(names):
        told = {key: float((total.T @ once)[n] / num_pairs[n]) for key, total in totals.items()}
        low, high = _ends(told["accuracy"], int(num_pairs[n]), int(num_clusters[n]), ends[:, n])
        row = {"name": name, "num_pairs": int(num_pairs[n]), **told}
        rows.append(row | {"accuracy_low": low, "accuracy_high": high})
    return {key: rows[starts[n] : starts[n + 1]] for n, key in enumerate(groupings)}


def _share_intervals(
    right_CG: csr_array, num_CG: csr_array, *, num_resamples: int, seed: int
) -> Array:
    """Bootstrap interval of the accuracy of each group, (2, groups)."""

    def share(times_C: Array) -> Array:
        below = num_CG.T @ times_C
        nothing = np.full(len(below), np.nan)
        return np.asarray(np.divide(right_CG.T @ times_C, below, out=nothing, where=below > 0))

    clusters = range(num_CG.shape[0])
    found = bootstrap_replicates(share, clusters, num_resamples=num_resamples, seed=seed)
    return percentile_interval(found)


def by_wilson(accuracy: float, num_pairs: int, num_clusters: int) -> bool:
    """Whether an interval is Wilson's for as many trials as clusters: a bootstrap of few or of equals is too narrow."""
    return num_clusters == num_pairs or num_clusters < FEW_CLUSTERS or accuracy in (0.0, 1.0)


def _ends(accuracy: float, num_pairs: int, num_clusters: int, ends: Array) -> tuple[float, float]:
    if by_wilson(accuracy, num_pairs, num_clusters):
        return wilson(accuracy * num_clusters, num_clusters)
    return float(ends[0]), float(ends[1])


# ---------------------------------------------------------------- groupings


def named(labels: Sequence[str]) -> tuple[Whole, list[str]]:
    """Groups of equal labels, the commonest first; empty labels belong to none, rare ones share the last group."""
    common = Counter(label for label in labels if label).most_common()
    if len(common) > MOST_ROWS:
        rare = f"{len(common) - MOST_ROWS + 1} others"
        names = [label for label, _ in common[: MOST_ROWS - 1]] + [rare]
    else:
        names = [label for label, _ in common]
    numbers = {label: min(n, len(names) - 1) for n, (label, _) in enumerate(common)}
    return np.array([numbers.get(label, -1) for label in labels], dtype=np.int64), names


def by_size(
    values_P: Array, *, num_bins: int = 5, most_distinct: int = 8
) -> tuple[Whole, list[str]]:
    """Groups of about equal mass in the order of the values, or one for each value if they are few; NaN has none."""
    known = ~np.isnan(values_P)
    group_P = np.full(len(values_P), -1, dtype=np.int64)
    distinct = np.unique(values_P[known])
    if len(distinct) == 0:
        return group_P, []
    if len(distinct) <= most_distinct:
        group_P[known] = np.searchsorted(distinct, values_P[known])
        return group_P, [f"{value:g}" for value in distinct]
    group_P[known] = equal_mass_bins(values_P[known], num_bins)
    ends = [values_P[group_P == n].max() for n in range(group_P.max() + 1)]
    names = [f"up to {ends[0]:.3g}", *(f"{a:.3g}–{b:.3g}" for a, b in pairwise(ends))]
    return group_P, [*names[:-1], f"above {ends[-2]:.3g}"] if len(ends) > 1 else names
