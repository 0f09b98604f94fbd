"""What scores are worth on rankings that they were not trained on: one record of figures.

Owns which figures there are and what they are called in evaluation.json. Knows nothing of models and files,
so that any model's scores can be judged alike. Letters: N completions in the order of the rankings, P pairs,
M ensemble members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from crestline.formulas.calibration import preference_probability
from crestline.rewards.pairs import (
    FEW_CLUSTERS,
    Array,
    Grouping,
    Pairs,
    accuracy_rows,
    agreement,
    by_size,
    named,
    pairs_of,
)
from crestline.rewards.trust import (
    FEWEST,
    calibration_figures,
    cases_of,
    cross_fitted,
    spread_figures,
    temperature_of,
    with_intervals,
)
from crestline.types import BadInput, Ranking

Figures = dict[str, Any]
NUM_HISTOGRAM_BINS = 30


def evaluate(
    rankings: Sequence[Ranking],
    scores_N: ArrayLike,
    *,
    temperature: float | None = None,
    mean: float | None = None,
    member_scores_NM: ArrayLike | None = None,
    num_tokens_N: ArrayLike | None = None,
    counts: Mapping[str, int] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Figures:
    """All figures of scores on rankings, as plain values for JSON; docs/reward-eval.md says what each means.

    scores_N: raw score of each completion, in the order of the rankings and of their completions. temperature: of
    the model, fitted elsewhere; None fits it on these rankings, and calibration is then measured with the
    temperature of the other half of the prompts. mean: a typical answer's raw score; None takes the mean of these.
    member_scores_NM: the ensemble's members. num_tokens_N: lengths in tokens. counts: handed through, such as
    num_truncated. The same arguments give the same figures.
    Raises: BadInput where a score is not finite or people preferred nothing; ValueError on unequal lengths.
    """
    scores = _column(scores_N, rankings)
    pairs = pairs_of(rankings)
    if not len(pairs):
        raise BadInput("the held-out rankings hold no two completions of which one is better")
    fitted = temperature_of(pairs, scores)
    used = fitted if temperature is None else temperature
    resampling = {"num_resamples": num_resamples, "seed": seed}
    return {
        **_accuracy(rankings, pairs, scores, used, **resampling),
        "mean": float(scores.mean()) if mean is None else mean,
        "temperature": used,
        "temperature_refitted": fitted,
        "best_of_k": _best_of_k(rankings, pairs, scores, **resampling),
        "length": _length(rankings, pairs, scores, num_tokens_N),
        "scores": _histogram(rankings, scores),
        "num_duplicate_rankings": len(rankings) - len({content_of(r) for r in rankings}),
        "num_same_text_pairs": pairs.num_same_text,
        **_trust(pairs, scores, temperature, member_scores_NM, **resampling),
        **(counts or {}),
    }


def _column(scores_N: ArrayLike, rankings: Sequence[Ranking]) -> Array:
    """The scores, one finite number for each completion."""
    scores = np.asarray(scores_N, dtype=np.float64)
    places = [(n, k) for n, r in enumerate(rankings) for k in range(len(r.completions))]
    if scores.shape != (len(places),):
        raise ValueError(f"{scores.shape} scores for {len(places)} completions")
    for at in np.flatnonzero(~np.isfinite(scores)):
        n, k = places[at]
        raise BadInput(
            f"{rankings[n].where or f'ranking {n + 1}'}: the model scores completion {k + 1} as {scores[at]}; "
            "look at its weights and dtype"
        )
    return scores


def content_of(ranking: Ranking) -> str:
    """Equal for rankings that say the same of the same texts."""
    answers = zip(ranking.completions, map(str, ranking.ranks), strict=True)
    return repr((ranking.prompt, sorted(answers)))


# ---------------------------------------------------------------- accuracy


def _accuracy(
    rankings: Sequence[Ranking],
    pairs: Pairs,
    scores_N: Array,
    temperature: float,
    *,
    num_resamples: int,
    seed: int,
) -> Figures:
    """Accuracy over all pairs and group by group, with "the longer wins" beside it."""
    differences_P = scores_N[pairs.better_P] - scores_N[pairs.worse_P]
    lengths_N = np.array([len(text) for r in rankings for text in r.completions], np.float64)
    longer_P = lengths_N[pairs.better_P] - lengths_N[pairs.worse_P]
    right_P, longer_right_P = agreement(differences_P), agreement(longer_P)
    margins_P = np.abs(differences_P) / temperature
    everything = {"all": (np.zeros(len(pairs), dtype=np.int64), ["all"])}
    resampling = {"num_resamples": num_resamples, "seed": seed}
    rows = accuracy_rows(
        pairs,
        right_P,
        everything | _groupings(rankings, pairs, margins_P, longer_P),
        beside={
            "longer_wins_accuracy": longer_right_P,
            "probability": preference_probability(margins_P, 1.0),
        },
        **resampling,
    )
    (whole,) = rows.pop("all")
    (longer,) = accuracy_rows(pairs, longer_right_P, everything, beside={}, **resampling)["all"]

    def over_longer(times_P: Array) -> dict[str, float]:
        gained = float(times_P @ (right_P - longer_right_P) / times_P.sum())
        return {"accuracy_over_longer_wins": gained}

    return {
        **{key: whole[key] for key in ("accuracy", "accuracy_low", "accuracy_high")},
        "interval": pairs.interval_rests_on(whole["accuracy"]),
        "num_pairs": len(pairs),
        "num_heldout_rankings": len(rankings),
        "num_clusters": len(np.unique(pairs.cluster_P)),
        **{f"longer_wins_{key}": longer[key] for key in whole if key.startswith("accuracy")},
        **_unless_few(
            with_intervals(over_longer, pairs.cluster_P, num=num_resamples, seed=seed),
            len(np.unique(pairs.cluster_P)),
        ),
        "accuracy_by": rows,
    }


def _unless_few(figures: Mapping[str, float], num_clusters: int) -> Figures:
    """Figures with their intervals; without, each end None, where too few clusters are resampled to trust them."""
    few = num_clusters < FEW_CLUSTERS
    ends = ("_low", "_high")
    return {key: None if few and key.endswith(ends) else v for key, v in figures.items()}


def _groupings(
    rankings: Sequence[Ranking], pairs: Pairs, margins_P: Array, longer_P: Array
) -> dict[str, Grouping]:
    """What accuracy is told by; groupings with a single group are left out, but for the score's own margin."""
    own = [rankings[n] for n in pairs.ranking_P]
    num_ranked = [sum(rank is not None for rank in r.ranks) for r in own]
    which = [
        ("same length", "longer is better", "shorter is better")[int(s)] for s in np.sign(longer_P)
    ]
    found: dict[str, Grouping] = {
        "stated_margin": by_size(pairs.margin_P),
        "rank_gap": by_size(pairs.rank_gap_P.astype(np.float64)),
        "num_ranked": by_size(np.array(num_ranked, dtype=np.float64)),
        "annotator": named([r.annotator for r in own]),
        "source": named([r.source for r in own]),
        "which_is_better": named(which),
    }
    found = {key: grouping for key, grouping in found.items() if len(grouping[1]) > 1}
    return {"score_margin": by_size(margins_P, most_distinct=1), **found}


def _best_of_k(
    rankings: Sequence[Ranking], pairs: Pairs, scores_N: Array, *, num_resamples: int, seed: int
) -> list[Figures]:
    """By number of ranked completions: how often the highest score is one that people put first, and chance.

    The interval is that of an accuracy, each ranking counting once.
    """
    ends = np.cumsum([len(ranking.completions) for ranking in rankings])
    each = _one_a_ranking(pairs)
    cases = [
        _hit(rankings[n], scores_N[ends[n] - len(rankings[n].completions) : ends[n]])
        for n in each.ranking_P
    ]
    num_ranked_R, hit_R, chance_R = np.array(cases, dtype=np.float64).T
    rows = accuracy_rows(
        each,
        hit_R,
        {"best_of_k": by_size(num_ranked_R, most_distinct=len(each))},
        beside={"chance": chance_R},
        num_resamples=num_resamples,
        seed=seed,
    )
    names = {"hit": "accuracy", "hit_low": "accuracy_low", "hit_high": "accuracy_high"}
    return [
        {"num_ranked": int(row["name"]), "num_rankings": row["num_pairs"]}
        | {name: row[key] for name, key in names.items()}
        | {"chance": row["chance"]}
        for row in rows["best_of_k"]
    ]


def _one_a_ranking(pairs: Pairs) -> Pairs:
    """The first pair of each ranking, so that rankings of any length count alike."""
    _, firsts = np.unique(pairs.ranking_P, return_index=True)
    columns = ("ranking_P", "better_P", "worse_P", "rank_gap_P", "margin_P", "cluster_P")
    return replace(pairs, **{name: getattr(pairs, name)[firsts] for name in columns})


def _hit(ranking: Ranking, scores_K: Array) -> tuple[int, float, float]:
    """(completions that people ranked, share of the highest scored ones that they put first, that share of all)."""
    known = [k for k, rank in enumerate(ranking.ranks) if rank is not None]
    ranks = np.array([ranking.ranks[k] for k in known])
    is_best, scores = ranks == ranks.min(), scores_K[known]
    return len(known), float(is_best[scores == scores.max()].mean()), float(is_best.mean())


# ---------------------------------------------------------------- length and scores


def _length(
    rankings: Sequence[Ranking], pairs: Pairs, scores_N: Array, num_tokens_N: ArrayLike | None
) -> Figures:
    """How far the score follows length, and how far people do, for characters and tokens."""
    lengths = {
        "characters": np.array([len(t) for r in rankings for t in r.completions], np.float64)
    }
    if num_tokens_N is not None:
        lengths["tokens"] = np.asarray(num_tokens_N, dtype=np.float64)
        if lengths["tokens"].shape != scores_N.shape:
            raise ValueError(f"{lengths['tokens'].shape} lengths for {len(scores_N)} completions")
    return {unit: _follows(rankings, pairs, scores_N, values) for unit, values in lengths.items()}


def _follows(
    rankings: Sequence[Ranking], pairs: Pairs, scores_N: Array, lengths_N: Array
) -> Figures:
    """Spearman's correlation of score and length, over all and within rankings, with that of people's order."""
    model: list[tuple[Array, Array]] = []
    people: list[tuple[Array, Array]] = []
    first = 0
    for ranking in rankings:
        here = slice(first, first + len(ranking.completions))
        first = here.stop
        model.append((scores_N[here], lengths_N[here]))
        known = [rank is not None for rank in ranking.ranks]
        order = np.array([-rank for rank in ranking.ranks if rank is not None], dtype=np.float64)
        people.append((order, lengths_N[here][known]))
    longer_P = lengths_N[pairs.better_P] - lengths_N[pairs.worse_P]
    ahead_P = np.sign(longer_P) * (scores_N[pairs.better_P] - scores_N[pairs.worse_P])
    return {
        "spearman": spearman(scores_N, lengths_N),
        "within_rankings": _within(model),
        "people_within_rankings": _within(people),
        "longer_scores_higher": _mean_known(agreement(ahead_P[longer_P != 0]).tolist()),
        "longer_is_better": _mean_known(agreement(longer_P[longer_P != 0]).tolist()),
        "median": float(np.median(lengths_N)),
    }


def spearman(left: Array, right: Array) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank; None where one side has one value only.

    >>> spearman(np.array([1.0, 2.0, 9.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    found = float(_spearmans(left[None, :], right[None, :])[0]) if len(left) > 1 else np.nan
    return None if np.isnan(found) else found


def _spearmans(left_RK: Array, right_RK: Array) -> Array:
    """Spearman's correlation of each row, (R,); NaN where one side has one value only."""
    middle = (left_RK.shape[1] + 1) / 2
    a, b = rankdata(left_RK, axis=1) - middle, rankdata(right_RK, axis=1) - middle
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.asarray(np.divide((a * b).sum(1), size, out=np.full(len(a), np.nan), where=size > 0))


def _within(sides: Sequence[tuple[Array, Array]]) -> float | None:
    """Mean correlation of the two sides over rankings, those where one side has one value only left out."""
    by_length: dict[int, list[tuple[Array, Array]]] = {}
    for left, right in sides:
        by_length.setdefault(len(left), []).append((left, right))
    found = [
        _spearmans(*(np.stack(side) for side in zip(*rows, strict=True)))
        for length, rows in by_length.items()
        if length > 1
    ]
    known = [value for values in found for value in values[~np.isnan(values)].tolist()]
    return _mean_known(known)


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _histogram(rankings: Sequence[Ranking], scores_N: Array) -> Figures:
    """Raw scores of completions that people put first and of the other ranked ones, in shared bins."""
    is_best: list[bool | None] = []
    for ranking in rankings:
        known = [rank for rank in ranking.ranks if rank is not None]
        is_best += [None if rank is None else rank == min(known) for rank in ranking.ranks]
    low, high = np.quantile(scores_N, [0.001, 0.999])
    edges = np.linspace(low, high if high > low else low + 1, NUM_HISTOGRAM_BINS + 1)
    inside = np.clip(scores_N, edges[0], edges[-1])
    best, other = (np.array([b is wanted for b in is_best]) for wanted in (True, False))
    return {
        "edges": edges.tolist(),
        "best": np.histogram(inside[best], edges)[0].tolist(),
        "others": np.histogram(inside[other], edges)[0].tolist(),
        "standard_deviation": float(scores_N.std()),
        "lowest": float(scores_N.min()),
        "highest": float(scores_N.max()),
    }


# ---------------------------------------------------------------- trust


def _trust(
    pairs: Pairs,
    scores_N: Array,
    temperature: float | None,
    member_scores_NM: ArrayLike | None,
    *,
    num_resamples: int,
    seed: int,
) -> Figures:
    """Calibration and, of an ensemble, spread; None where the rankings are of fewer than FEWEST prompts, and of spread
    where all scores are level."""
    cases = cases_of(pairs, seed=seed)
    found: Figures = {"calibration": None, "ensemble": None}
    if len(np.unique(cases.cluster_C)) < FEWEST:
        return found
    resampling = {"num_resamples": num_resamples, "seed": seed}
    differences_C = scores_N[cases.first_C] - scores_N[cases.second_C]
    if temperature is None:
        told, temperature_C = (
            "the other half",
            cross_fitted(pairs, scores_N, cases.cluster_C, seed=seed),
        )
    else:
        told, temperature_C = "the model", np.full(len(cases), temperature)
    found["calibration"] = {
        "temperature_from": told,
        **calibration_figures(cases, differences_C, temperature_C, **resampling),
    }
    if member_scores_NM is not None:
        members = np.asarray(member_scores_NM, dtype=np.float64)
        if members.ndim != 2 or len(members) != len(scores_N):
            raise ValueError(f"member scores {members.shape} for {len(scores_N)} completions")
        if members.shape[1] > 1 and differences_C.any():
            differences_CM = members[cases.first_C] - members[cases.second_C]
            found["ensemble"] = spread_figures(cases, differences_C, differences_CM, **resampling)
    return found
