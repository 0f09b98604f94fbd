"""Pairs of rankings by hand, and intervals against scipy and the textbook's cluster-robust error."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from crestline.rewards.pairs import (
    MOST_ROWS,
    accuracy_rows,
    agreement,
    by_size,
    clusters_of,
    named,
    pairs_of,
)
from crestline.types import PromptText, Ranking


def ranking(prompt: PromptText, texts: str, *ranks: int | None, **more: object) -> Ranking:
    return Ranking(prompt=prompt, completions=tuple(texts.split()), ranks=ranks, **more)  # type: ignore[arg-type]


def whole(num: int) -> tuple[np.ndarray, list[str]]:
    return np.zeros(num, dtype=np.int64), ["all"]


def test_pairs_by_hand() -> None:
    pairs = pairs_of(
        [
            ranking("p", "a b c", 1, 0, None),
            ranking("q", "d e", 0, 0),
            ranking("p", "f g g h", 0, 1, 0, 3, margin=None),
            ranking("r", "i j", 1, 0, margin=0.5),
        ]
    )
    # f over g (first), f over h, the first g over h, the second g over h; g and g are one text
    assert pairs.ranking_P.tolist() == [0, 2, 2, 2, 2, 3]
    assert pairs.better_P.tolist() == [1, 5, 5, 6, 7, 10]
    assert pairs.worse_P.tolist() == [0, 6, 8, 8, 8, 9]
    assert pairs.rank_gap_P.tolist() == [1, 1, 3, 2, 3, 1]
    assert pairs.cluster_P.tolist() == [0, 0, 0, 0, 0, 2]
    assert pairs.num_same_text == 1 and pairs.by_prompt
    assert pairs.margin_P[-1] == 0.5 and np.isnan(pairs.margin_P[:-1]).all()
    assert pairs.interval_rests_on(0.6) == "Wilson: as many trials as prompts"  # few prompts


def test_no_pairs_at_all() -> None:
    pairs = pairs_of([ranking("p", "a b", 0, 0)])
    assert len(pairs) == 0
    assert accuracy_rows(pairs, np.zeros(0), {"all": whole(0)}, beside={}) == {"all": []}


def test_what_is_drawn_whole() -> None:
    chat: PromptText = [{"role": "user", "content": "p"}]
    rankings = [ranking(p, "a b", 0, 1) for p in ("p", chat, "p", "", "", chat)]
    cluster_R, by_prompt = clusters_of(rankings)
    assert cluster_R.tolist() == [0, 1, 0, 2, 3, 1] and by_prompt
    # one prompt for all, or none: every ranking for itself
    for prompt in ("Tell a joke", ""):
        cluster_R, by_prompt = clusters_of([ranking(prompt, "a b", 0, 1)] * 3)
        assert cluster_R.tolist() == [0, 1, 2] and not by_prompt


def test_agreement() -> None:
    assert agreement(np.array([0.3, -2.0, 0.0])).tolist() == [1.0, 0.0, 0.5]


def test_independent_pairs_get_wilsons_interval() -> None:
    pairs = pairs_of([ranking(f"p{n}", "a b", 0, 1) for n in range(60)])
    right = (np.arange(60) < 45).astype(float)
    (row,) = accuracy_rows(pairs, right, {"all": whole(60)}, beside={})["all"]
    expected = binomtest(45, 60).proportion_ci(method="wilson")
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(
        (expected.low, expected.high)
    )
    assert (row["accuracy"], row["num_pairs"]) == (0.75, 60)
    assert pairs.interval_rests_on(0.6) == "Wilson: one pair a prompt"


def test_pairs_of_one_prompt_are_resampled_together() -> None:
    """Against the cluster-robust standard error of a mean: sqrt(Σ over clusters of (Σ residuals)²) / P."""
    rng = np.random.default_rng(0)
    pairs = pairs_of([ranking(f"p{n}", "a b c d", 0, 1, 2, 3) for n in range(150)])
    ease = np.repeat(rng.random(150), 6)
    right = (rng.random(900) < ease).astype(float)
    (row,) = accuracy_rows(pairs, right, {"all": whole(900)}, beside={}, num_resamples=4000)["all"]
    sums = (right - right.mean()).reshape(150, 6).sum(1)
    error = math.sqrt(float(sums @ sums)) / 900
    assert row["accuracy_low"] == pytest.approx(right.mean() - 1.96 * error, abs=0.006)
    assert row["accuracy_high"] == pytest.approx(right.mean() + 1.96 * error, abs=0.006)
    naive = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 900)
    assert row["accuracy_high"] - row["accuracy"] > 1.5 * naive


@pytest.mark.parametrize(("num_clusters", "num_right"), [(5, 3), (30, 30), (30, 0)])
def test_few_clusters_or_no_errors_do_not_look_certain(num_clusters: int, num_right: int) -> None:
    """As many trials as clusters, either where these are few or where all pairs agree."""
    pairs = pairs_of([ranking(f"p{n}", "a b c d", 0, 1, 2, 3) for n in range(num_clusters)])
    right = np.repeat(np.arange(num_clusters) < num_right, 6).astype(float)
    (row,) = accuracy_rows(pairs, right, {"all": whole(len(right))}, beside={})["all"]
    expected = binomtest(num_right, num_clusters).proportion_ci(method="wilson")
    assert row["accuracy"] == num_right / num_clusters
    assert row["accuracy_low"] == pytest.approx(expected.low)
    assert row["accuracy_high"] == pytest.approx(expected.high)


def test_groups_and_what_stands_beside() -> None:
    who = ["ann", "bob", "ann", "", "bob", "ann"]
    pairs = pairs_of([ranking(f"p{n}", "a b", 0, 1, annotator=w) for n, w in enumerate(who)])
    groupings = {"annotator": named(who), "none": (np.full(6, -1), [])}
    right = np.array([1.0, 0, 1, 1, 0, 0.5])
    found = accuracy_rows(pairs, right, groupings, beside={"twice": 2 * right})
    assert found["none"] == []
    ann, bob = found["annotator"]
    assert (ann["name"], ann["num_pairs"], ann["accuracy"]) == ("ann", 3, pytest.approx(2.5 / 3))
    assert (bob["name"], bob["accuracy"], bob["twice"]) == ("bob", 0.0, 0.0)
    assert ann["twice"] == pytest.approx(5 / 3)


def test_rare_names_are_told_together() -> None:
    labels = [f"person {n}" for n in range(MOST_ROWS + 10) for _ in range(200 - n)]
    codes, names = named(labels)
    assert len(names) == MOST_ROWS and names[0] == "person 0" and names[-1] == "11 others"
    assert (codes == MOST_ROWS - 1).sum() == sum(
        200 - n for n in range(MOST_ROWS - 1, MOST_ROWS + 10)
    )
    assert named(["", ""]) == (pytest.approx(np.array([-1, -1])), [])


def test_by_size() -> None:
    codes, names = by_size(np.array([2.0, 1.0, np.nan, 2.0]))
    assert codes.tolist() == [1, 0, -1, 1] and names == ["1", "2"]
    codes, names = by_size(np.arange(100.0), num_bins=4)
    assert np.bincount(codes).tolist() == [25] * 4
    assert names == ["up to 24", "24–49", "49–74", "above 74"]
    assert by_size(np.array([np.nan]))[1] == []


def test_what_an_interval_rests_on() -> None:
    rankings = [
        Ranking(prompt=f"p{n}", completions=("a", "b", "c"), ranks=(0, 1, 2)) for n in range(30)
    ]
    pairs = pairs_of(rankings)
    assert pairs.interval_rests_on(0.6) == "bootstrap by prompt"
    assert pairs.interval_rests_on(1.0) == "Wilson: as many trials as prompts"
