"""The record of figures by hand, against scipy, and what it refuses."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from crestline.formulas.intervals import wilson
from crestline.rewards.evaluation import evaluate, spearman
from crestline.rewards.pairs import pairs_of
from crestline.rewards.trust import calibration_figures, cases_of, cross_fitted
from crestline.types import BadInput, Ranking


def ranking(prompt: str, texts: str, *ranks: int | None, **more: Any) -> Ranking:
    return Ranking(prompt=prompt, completions=tuple(texts.split()), ranks=ranks, **more)


HAND = [
    ranking("p", "aaaa b cc", 0, 1, 1),
    ranking("q", "a bbb cc dd", 0, None, 1, 1),
    ranking("r", "aa bb", 0, 1),
    ranking("s", "a bb", 1, 1),
]
LENGTHS = [float(len(text)) for r in HAND for text in r.completions]


def many(num: int = 300, **more: Any) -> tuple[list[Ranking], np.ndarray]:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 2, (num, 3))
    order = np.argsort(-(scores + rng.gumbel(size=scores.shape)), axis=1)
    ranks = np.argsort(order, axis=1)
    words = ["x" * int(n) for n in rng.integers(1, 40, num * 3)]
    rankings = [
        Ranking(
            prompt=f"p{n // 2}",
            completions=tuple(f"{k}{words[3 * n + k]}" for k in range(3)),
            ranks=tuple(ranks[n].tolist()),
            annotator=f"person {n % 3}",
            where=f"test.jsonl:{n + 1}",
            **more,
        )
        for n in range(num)
    ]
    return rankings, scores.ravel()


def test_a_score_that_is_the_length_by_hand() -> None:
    found = evaluate(HAND, LENGTHS)
    # right right / wrong wrong / level; the tie says nothing
    assert found["accuracy"] == found["longer_wins_accuracy"] == 2.5 / 5
    assert (found["num_pairs"], found["num_heldout_rankings"], found["num_clusters"]) == (5, 4, 3)
    assert found["accuracy_low"] < 0.5 < found["accuracy_high"]
    assert found["accuracy_over_longer_wins"] == 0.0
    assert found["mean"] == pytest.approx(np.mean(LENGTHS))
    assert found["calibration"] is None and found["ensemble"] is None  # three cases are too few
    two, three = found["best_of_k"]
    assert (two["num_ranked"], two["num_rankings"], two["hit"], two["chance"]) == (2, 1, 0.5, 0.5)
    # the longest of "aaaa b cc" is the best; of "a cc dd" the best is the shortest
    assert (three["num_ranked"], three["hit"]) == (3, 0.5)
    assert three["chance"] == pytest.approx(1 / 3)
    length = found["length"]["characters"]
    assert length["spearman"] == pytest.approx(1) and length["within_rankings"] == pytest.approx(1)
    assert (length["longer_scores_higher"], length["longer_is_better"]) == (1.0, 0.5)


def test_groups() -> None:
    rankings, scores = many()
    found = evaluate(rankings, scores, num_resamples=50)
    assert {row["name"] for row in found["accuracy_by"]["annotator"]} == {
        "person 0",
        "person 1",
        "person 2",
    }
    assert "source" not in found["accuracy_by"]  # nobody said
    margins = found["accuracy_by"]["score_margin"]
    assert [row["num_pairs"] for row in margins] == [180] * 5
    assert margins[0]["accuracy"] < 0.7 < 0.9 < margins[-1]["accuracy"]
    for row in margins:  # a true forecast: sure where it is right
        assert row["accuracy_low"] - 0.05 < row["probability"] < row["accuracy_high"] + 0.05
    near, far = found["accuracy_by"]["rank_gap"]
    assert near["name"] == "1" and far["name"] == "2" and near["accuracy"] < far["accuracy"]
    sides = {row["name"]: row for row in found["accuracy_by"]["which_is_better"]}
    assert sides["longer is better"]["longer_wins_accuracy"] == 1.0
    assert sides["shorter is better"]["longer_wins_accuracy"] == 0.0
    assert sum(row["num_pairs"] for row in sides.values()) == found["num_pairs"] == 900


def test_stated_margins_and_sources() -> None:
    rankings = [
        ranking(f"p{n}", "a b", 0, 1, margin=float(n % 3 + 1), source=("hh", "shp")[n % 2])
        for n in range(60)
    ]
    found = evaluate(rankings, np.tile([1.0, 0.0], 60), num_resamples=20)["accuracy_by"]
    assert [(row["name"], row["num_pairs"]) for row in found["stated_margin"]] == [
        ("1", 20),
        ("2", 20),
        ("3", 20),
    ]
    assert [row["name"] for row in found["source"]] == ["hh", "shp"]


def test_figures_are_plain_and_repeatable() -> None:
    rankings, scores = many()
    members = np.stack([scores, scores + np.random.default_rng(1).normal(size=len(scores))], axis=1)
    arguments: dict[str, Any] = {"member_scores_NM": members, "num_resamples": 50, "seed": 3}
    found = evaluate(rankings, scores, counts={"num_truncated": 7}, **arguments)
    assert found["num_truncated"] == 7
    assert json.loads(json.dumps(found)) == found
    assert evaluate(rankings, scores, counts={"num_truncated": 7}, **arguments) == found
    assert found["ensemble"]["num_members"] == 2
    moved = evaluate(rankings, scores + 100.0, **arguments)
    assert moved["mean"] == pytest.approx(found["mean"] + 100)
    for key in ("accuracy", "temperature"):
        assert moved[key] == pytest.approx(found[key])
    assert moved["calibration"]["ece"] == pytest.approx(found["calibration"]["ece"])


def test_temperature_of_the_model_or_of_the_other_half() -> None:
    rankings, scores = many()
    own = evaluate(rankings, scores * 4, num_resamples=50)
    assert own["temperature"] == own["temperature_refitted"] == pytest.approx(4, rel=0.3)
    assert own["calibration"]["temperature_from"] == "the other half"
    given = evaluate(rankings, scores * 4, temperature=1.0, mean=2.0, num_resamples=50)
    assert (given["temperature"], given["mean"]) == (1.0, 2.0)
    assert given["temperature_refitted"] == own["temperature"]
    assert given["calibration"]["temperature_from"] == "the model"
    assert given["calibration"]["log_loss"] == given["calibration"]["log_loss_uncalibrated"]
    assert given["calibration"]["log_loss"] > own["calibration"]["log_loss"]


def test_probabilities_are_those_of_the_other_half() -> None:
    rankings, scores = many(80)
    pairs = pairs_of(rankings)
    cases = cases_of(pairs, seed=3)
    differences = scores[cases.first_C] - scores[cases.second_C]
    found = evaluate(rankings, scores, num_resamples=20, seed=3)
    other = cross_fitted(pairs, scores, cases.cluster_C, seed=3)
    own = np.full(len(cases), found["temperature"])
    losses = [
        calibration_figures(cases, differences, temperature_C, num_resamples=20, seed=3)["log_loss"]
        for temperature_C in (other, own)
    ]
    assert found["calibration"]["log_loss"] == losses[0] != pytest.approx(losses[1], rel=1e-4)


def all_alike(num: int, *, right: bool, repeated: int = 1) -> dict[str, Any]:
    """The best of three of `num` prompts, each asked about `repeated` times, always scored highest or lowest."""
    rankings = [ranking(f"p{n % num}", "a b c", 0, 1, 2) for n in range(num * repeated)]
    found = evaluate(
        rankings,
        [2.0, 1.0, 0.0] * len(rankings) if right else [0.0, 1.0, 2.0] * len(rankings),
        num_resamples=20,
    )
    (row,) = found["best_of_k"]
    return dict(row)


@pytest.mark.parametrize(("num", "repeated"), [(3, 1), (3, 5), (30, 2)])
def test_the_best_of_few_or_of_all_does_not_look_certain(num: int, repeated: int) -> None:
    for right in (False, True):
        row = all_alike(num, right=right, repeated=repeated)
        ends = wilson(num * right, num)
        assert (row["num_ranked"], row["num_rankings"]) == (3, num * repeated)
        assert row["hit"] == float(right) and row["chance"] == pytest.approx(1 / 3)
        assert (row["hit_low"], row["hit_high"]) == pytest.approx(ends)


def by_prompts(seed: int, num_prompts: int) -> tuple[list[Ranking], list[float]]:
    """People of each prompt go by the score or against it, as a coin fell: the score knows nothing."""
    rng = np.random.default_rng(seed)
    rankings, scores = [], []
    for n in range(num_prompts * 8):
        if n % 8 == 0:
            follows = rng.random() < 0.5
        texts = tuple("x" * int(k) + str(side) for side, k in enumerate(rng.integers(1, 30, 2)))
        rankings.append(Ranking(prompt=f"p{n // 8}", completions=texts, ranks=(0, 1)))
        scores += [1.0, 0.0] if follows else [0.0, 1.0]
    return rankings, scores


@pytest.mark.parametrize("num_prompts", [2, 3, 20])
def test_noise_on_few_prompts_is_rarely_called_a_gain(num_prompts: int) -> None:
    """2.5 % of 40 worlds are allowed; resamples of two or three prompts would claim a gain in a third of them."""
    gains = better = 0
    for seed in range(40):
        found = evaluate(*by_prompts(seed, num_prompts), num_resamples=100)
        better += found["accuracy_low"] > 0.5
        if num_prompts < 20:
            assert found["accuracy_over_longer_wins_low"] is None
            assert found["accuracy_over_longer_wins_high"] is None
            assert found["calibration"] is None  # so neither of its gains
        else:
            gains += found["accuracy_over_longer_wins_low"] > 0
            gains += found["calibration"]["log_loss_gain_over_constant_low"] > 0
    assert gains <= 4 and better <= 4


def test_scale_does_not_matter_once_calibrated() -> None:
    rankings, scores = many()
    small, large = (evaluate(rankings, scores * c, num_resamples=20) for c in (1e-3, 1e3))
    for key in ("ece", "log_loss", "brier"):
        assert small["calibration"][key] == pytest.approx(large["calibration"][key], rel=1e-4)


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 50).astype(float), rng.integers(0, 9, 50).astype(float)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert spearman(a, np.ones(50)) is None
    assert spearman(a[:1], b[:1]) is None


def test_lengths_in_tokens_stand_beside() -> None:
    found = evaluate(HAND, LENGTHS, num_tokens_N=[-n for n in LENGTHS])["length"]
    assert found["tokens"]["spearman"] == pytest.approx(-1)
    with pytest.raises(ValueError, match="lengths"):
        evaluate(HAND, LENGTHS, num_tokens_N=[1])


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_correlation_within_rankings_is_the_mean_of_scipys() -> None:
    rng = np.random.default_rng(2)
    rankings, model, people = [], [], []
    scores: list[float] = []
    for n in range(60):
        size = int(rng.integers(2, 6))
        texts = tuple("x" * int(k) for k in rng.integers(1, 5, size))
        ranks = tuple(None if rng.random() < 0.2 else int(k) for k in rng.integers(0, 3, size))
        own = rng.integers(0, 4, size).astype(float).tolist()
        scores += own
        rankings.append(Ranking(prompt=f"p{n}", completions=texts, ranks=ranks))
        model.append(spearmanr(own, [len(text) for text in texts]).statistic)
        ranked = [(-r, len(text)) for r, text in zip(ranks, texts, strict=True) if r is not None]
        people.append(spearmanr(ranked).statistic if len(ranked) > 1 else math.nan)
    found = evaluate(rankings, scores, num_resamples=20)["length"]["characters"]
    assert found["within_rankings"] == pytest.approx(np.nanmean(model))
    assert found["people_within_rankings"] == pytest.approx(np.nanmean(people))


def test_duplicates_are_counted() -> None:
    found = evaluate([*HAND, HAND[0], ranking("p", "cc aaaa b", 1, 0, 1)], [*LENGTHS, *[0.0] * 6])
    assert found["num_duplicate_rankings"] == 2
    same = [ranking("p", "a a b", 0, 1, 1)]
    assert evaluate(same, [1.0, 1.0, 0.0])["num_same_text_pairs"] == 1


def test_histogram_holds_every_ranked_completion() -> None:
    rankings, scores = many()
    found = evaluate(rankings, scores, num_resamples=20)["scores"]
    assert sum(found["best"]) == 300 and sum(found["others"]) == 600
    assert len(found["edges"]) == len(found["best"]) + 1
    flat = evaluate(HAND, [2.0] * len(LENGTHS))["scores"]
    assert sum(flat["best"]) + sum(flat["others"]) == len(LENGTHS) - 1  # one is not ranked


def test_an_ensemble_whose_scores_are_level_has_no_spread_to_tell_of() -> None:
    rankings, scores = many(60)
    level = np.zeros(len(scores))
    found = evaluate(rankings, level, member_scores_NM=np.stack([level, scores], axis=1))
    assert found["ensemble"] is None and found["calibration"]["log_loss"] == pytest.approx(
        math.log(2)
    )


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="scores for 11 completions"):
        evaluate(HAND, [1.0])
    with pytest.raises(BadInput, match="no two completions of which one is better"):
        evaluate([ranking("p", "a b", 0, 0)], [1.0, 2.0])
    with pytest.raises(BadInput, match="no two completions"):
        evaluate([], [])
    rankings, scores = many(30)
    scores[4] = math.nan
    with pytest.raises(BadInput, match=r"test.jsonl:2: the model scores completion 2 as nan"):
        evaluate(rankings, scores)
    with pytest.raises(ValueError, match="member scores"):
        evaluate(*many(60), member_scores_NM=[[1.0]])
