"""Calibration and spread on made-up worlds in which the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from crestline.formulas.calibration import auroc, fit_temperature, preference_probability
from crestline.rewards.pairs import Pairs, pairs_of
from crestline.rewards.trust import (
    Cases,
    _out_of_fold,
    calibration_figures,
    cases_of,
    cross_fitted,
    spread_figures,
    temperature_of,
    with_intervals,
)
from crestline.types import Ranking

TRUE_TEMPERATURE = 2.5


def world(seed: int, num: int = 1500, size: int = 4) -> tuple[Pairs, np.ndarray]:
    """Rankings by people who follow the scores at TRUE_TEMPERATURE (Plackett–Luce), and the scores."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, (num, size))
    order = np.argsort(-(scores / TRUE_TEMPERATURE + rng.gumbel(size=scores.shape)), axis=1)
    ranks = np.argsort(order, axis=1)
    texts = tuple("abcdefgh"[:size])
    rankings = [
        Ranking(prompt=f"p{n}", completions=texts, ranks=tuple(r.tolist()))
        for n, r in enumerate(ranks)
    ]
    return pairs_of(rankings), scores.ravel()


def differences(cases: Cases, scores: np.ndarray) -> np.ndarray:
    return scores[cases.first_C] - scores[cases.second_C]


def test_one_pair_of_each_ranking_on_a_random_side() -> None:
    pairs, _ = world(0)
    cases = cases_of(pairs, seed=3)
    assert len(cases) == 1500
    assert abs(cases.first_wins_C.mean() - 0.5) < 0.05
    better = np.where(cases.first_wins_C, cases.first_C, cases.second_C)
    worse = np.where(cases.first_wins_C, cases.second_C, cases.first_C)
    there = set(zip(pairs.better_P.tolist(), pairs.worse_P.tolist(), strict=True))
    assert set(zip(better.tolist(), worse.tolist(), strict=True)) <= there
    assert (better // 4 == np.arange(1500)).all()
    again, other = cases_of(pairs, seed=3), cases_of(pairs, seed=4)
    assert (again.first_C == cases.first_C).all() and (other.first_C != cases.first_C).any()
    # every one of the six pairs of a ranking is drawn about equally often
    drawn = np.unique(better % 4 * 4 + worse % 4, return_counts=True)[1]
    assert len(drawn) == 12 and drawn.min() > 60


def test_a_ranking_counts_once_in_the_temperature() -> None:
    pairs = pairs_of(
        [
            Ranking(prompt="p", completions=("a", "b", "c"), ranks=(0, 1, 2)),
            Ranking(prompt="q", completions=("a", "b"), ranks=(1, 0)),
        ]
    )
    scores = np.array([3.0, 1.0, 0.5, 1.0, 0.2])
    expected = fit_temperature([2.0, 2.5, 0.5, -0.8], [1 / 3, 1 / 3, 1 / 3, 1])
    assert temperature_of(pairs, scores) == pytest.approx(expected)
    assert temperature_of(pairs_of([]), np.zeros(0)) == 1.0


def test_calibration_at_the_true_temperature() -> None:
    pairs, scores = world(1)
    cases = cases_of(pairs, seed=0)
    assert temperature_of(pairs, scores) == pytest.approx(TRUE_TEMPERATURE, rel=0.1)
    found = calibration_figures(
        cases, differences(cases, scores), np.full(1500, TRUE_TEMPERATURE), num_resamples=200
    )
    assert found["ece_floor_low"] <= found["ece"] <= found["ece_floor_high"]
    assert found["ece_low"] <= found["ece"] <= found["ece_high"]
    assert found["log_loss_gain_over_uncalibrated_low"] > 0  # raw scores are 2.5 times too sure
    assert found["brier_gain_over_uncalibrated_low"] > 0
    assert found["log_loss_gain_over_constant_low"] > 0
    assert found["ece_uncalibrated"] > 2 * found["ece_floor_high"]
    assert (
        found["log_loss_constant"] == pytest.approx(np.log(2)) and found["brier_constant"] == 0.25
    )
    gained = found["log_loss_uncalibrated"] - found["log_loss"]
    assert found["log_loss_gain_over_uncalibrated"] == pytest.approx(gained)
    assert sum(part["num"] for part in found["bins"]) == 1500 and len(found["bins"]) == 10


def test_the_interval_of_the_error_lies_around_it() -> None:
    """Not above it, where plain percentiles of resamples would lie."""
    above = []
    for seed in range(10):
        pairs, scores = world(seed, num=300, size=2)
        cases = cases_of(pairs, seed=0)
        found = calibration_figures(
            cases, differences(cases, scores), np.full(300, TRUE_TEMPERATURE), num_resamples=100
        )
        above.append(found["ece_high"] + found["ece_low"] - 2 * found["ece"])
    assert abs(np.mean(above)) < 0.01


def test_each_half_is_told_the_temperature_of_the_other() -> None:
    pairs, scores = world(2, num=400)
    cases = cases_of(pairs, seed=0)
    given = cross_fitted(pairs, scores, cases.cluster_C, seed=5)
    values = np.unique(given)
    assert len(values) == 2
    for value in values:  # fitted on exactly the rankings that it is not given to
        elsewhere = set(cases.cluster_C[given != value].tolist())
        chosen = np.array([c in elsewhere for c in pairs.cluster_P])
        assert temperature_of(pairs, scores, chosen) == pytest.approx(value)


def ensemble(seed: int, *, informed: bool, num: int = 1200) -> tuple[Cases, np.ndarray, np.ndarray]:
    """Members whose mean errs most where they disagree if informed, and else errs alike everywhere."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1, num)
    unsure = np.exp(rng.normal(0, 1, num))
    mean = truth + 0.5 * (unsure if informed else np.ones(num)) * rng.normal(0, 1, num)
    apart = rng.normal(0, 1, (num, 5))
    members = mean[:, None] + unsure[:, None] * (apart - apart.mean(1, keepdims=True))
    cases = Cases(
        first_C=np.arange(num) * 2,
        second_C=np.arange(num) * 2 + 1,
        first_wins_C=truth > 0,
        cluster_C=np.arange(num),
    )
    return cases, members.mean(1), members


def test_spread_that_knows_where_the_ensemble_errs() -> None:
    found = spread_figures(*ensemble(0, informed=True), num_resamples=200)
    assert found["num_members"] == 5 and 100 < found["num_wrong"] < 500
    assert found["auroc_spread"] > 0.6
    assert found["auroc_both_over_margin_low"] > 0  # together they know more than the margin
    assert found["auroc_both"] > max(found["auroc_margin"], found["auroc_spread"])
    assert found["auroc_spread_over_margin"] == pytest.approx(
        found["auroc_spread"] - found["auroc_margin"]
    )


def test_spread_that_knows_nothing() -> None:
    found = spread_figures(*ensemble(0, informed=False), num_resamples=200)
    assert found["auroc_spread_low"] < 0.5 < found["auroc_spread_high"]
    assert found["auroc_both_over_margin_high"] < 0.02
    assert found["auroc_spread_over_margin_high"] < 0


@pytest.mark.parametrize("size", [1, 10])
def test_both_are_asked_of_clusters_that_they_were_not_fitted_on(size: int) -> None:
    """Forty features of noise: a regression that had seen the case, or one of its cluster, would know the answer."""
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        cluster = np.repeat(np.arange(200), size)
        features = rng.normal(size=(200, 40))[cluster]
        right = (rng.random(200) < 0.5)[cluster]
        found.append(auroc(_out_of_fold(features, right, cluster, seed), right))
    assert np.mean(found) == pytest.approx(0.5, abs=0.07)


def test_members_scales_do_not_matter() -> None:
    cases, mean, members = ensemble(1, informed=True, num=200)
    found = spread_figures(cases, mean, members, num_resamples=20)
    other = spread_figures(cases, mean, members * [1.0, 50.0, 0.01, 3.0, 1.0], num_resamples=20)
    assert other["auroc_spread"] == pytest.approx(found["auroc_spread"])
    assert other["member_accuracies"] == found["member_accuracies"]


def test_an_ensemble_that_is_never_wrong_has_nothing_to_tell() -> None:
    cases, mean, members = ensemble(1, informed=True, num=60)
    sure = Cases(cases.first_C, cases.second_C, mean > 0, cases.cluster_C)
    found = spread_figures(sure, mean, members, num_resamples=20)
    assert found["num_wrong"] == 0 and np.isnan(found["auroc_margin"])
    assert np.isnan(found["auroc_both_over_margin_low"])


def test_intervals_move_whole_clusters() -> None:
    cluster = np.repeat(np.arange(30), 10)
    values = np.repeat(np.random.default_rng(0).normal(size=30), 10)

    def mean(times: np.ndarray) -> dict[str, float]:
        return {"mean": float(times @ values / times.sum())}

    together = with_intervals(mean, cluster)
    apart = with_intervals(mean, np.arange(300))
    assert together["mean"] == pytest.approx(values.mean())
    width = together["mean_high"] - together["mean_low"]
    assert width > 2 * (apart["mean_high"] - apart["mean_low"])


def test_probabilities_of_both_sides_sum_to_one() -> None:
    assert preference_probability(1.3, 0.7) + preference_probability(-1.3, 0.7) == pytest.approx(1)
