"""The estimator of best-of-n against enumeration, exact integers and exact expectations; KL against exact KL."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, product
from math import comb, log, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crestline.formulas.best_of_n import (
    best_of_n_kl,
    best_of_n_weights,
    doublings,
    expected_best,
)

PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-50, 50)), min_size=1, max_size=8)
"""Scores with many ties, and values."""


def enumerated(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Mean over every set of n of the value of its best, all of the best equally likely."""
    found = []
    for drawn in combinations(range(len(scores)), n):
        top = max(scores[i] for i in drawn)
        best = [values[i] for i in drawn if scores[i] == top]
        found.append(sum(best) / len(best))
    return sum(found) / len(found)


@given(PAIRS)
def test_every_set_of_n_is_counted(pairs: list[tuple[int, int]]) -> None:
    scores, values = [float(s) for s, _ in pairs], [float(v) for _, v in pairs]
    sizes = range(1, len(pairs) + 1)
    own = [enumerated(scores, scores, n) for n in sizes]
    others = [enumerated(scores, values, n) for n in sizes]
    np.testing.assert_allclose(expected_best(scores, sizes), own, atol=1e-12)
    np.testing.assert_allclose(expected_best(scores, sizes, values), others, atol=1e-10)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_ends_are_mean_and_maximum_and_more_never_score_less(scores: list[float]) -> None:
    found = expected_best(scores, range(1, len(scores) + 1))
    assert found[0] == pytest.approx(np.mean(scores), rel=1e-9, abs=1e-6)
    assert found[-1] == max(scores)
    assert (np.diff(found) >= -1e-6).all()


def test_the_order_of_samples_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    scores, values = rng.integers(0, 9, 60).astype(float), rng.normal(size=60)
    order = rng.permutation(60)
    np.testing.assert_allclose(
        expected_best(scores, [1, 3, 60], values),
        expected_best(scores[order], [1, 3, 60], values[order]),
        atol=1e-12,
    )


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_unbiased(n: int) -> None:
    """Over every set of samples that a distribution can give, the estimate is right on average."""
    chances = {(0.0, 5.0): 0.5, (1.0, 7.0): 0.3, (1.0, -1.0): 0.15, (4.0, -9.0): 0.05}
    mean_score, mean_value = 0.0, 0.0
    for drawn in product(chances, repeat=6):
        probability = prod(chances[outcome] for outcome in drawn)
        scores, values = zip(*drawn, strict=True)
        mean_score += probability * expected_best(scores, [n])[0]
        mean_value += probability * expected_best(scores, [n], values)[0]
    true_score, true_value = 0.0, 0.0
    for drawn in product(chances, repeat=n):
        probability = prod(chances[outcome] for outcome in drawn)
        top = max(score for score, _ in drawn)
        best = [value for score, value in drawn if score == top]
        true_score += probability * top
        true_value += probability * sum(best) / len(best)
    assert mean_score == pytest.approx(true_score, abs=1e-12)
    assert mean_value == pytest.approx(true_value, abs=1e-12)


@pytest.mark.parametrize(("num_samples", "num_right"), [(5, 0), (5, 5), (12, 3), (200, 7)])
def test_right_or_wrong_is_pass_at_n(num_samples: int, num_right: int) -> None:
    """Chen et al. (2021): 1 - C(N-c, n) / C(N, n)."""
    scores = [1.0] * num_right + [0.0] * (num_samples - num_right)
    sizes = range(1, num_samples + 1)
    expected = [1 - comb(num_samples - num_right, n) / comb(num_samples, n) for n in sizes]
    np.testing.assert_allclose(expected_best(scores, sizes), expected, atol=1e-12)


@pytest.mark.parametrize("num_samples", [1, 2, 64, 1000, 10_000])
def test_weights_are_the_binomials(num_samples: int) -> None:
    for n in {1, 2, 17, 512, num_samples // 2, num_samples - 1, num_samples}:
        if not 1 <= n <= num_samples:
            continue
        weights = best_of_n_weights(num_samples, n)
        assert weights.sum() == pytest.approx(1.0, abs=1e-11)
        assert (weights[: n - 1] == 0).all() and (np.diff(weights) >= 0).all()
        sets = comb(num_samples, n)
        for place in {n, (n + num_samples) // 2, num_samples - 3, num_samples}:
            if place >= n:
                exact = float(Fraction(comb(place - 1, n - 1), sets))
                assert weights[place - 1] == pytest.approx(exact, rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
@pytest.mark.parametrize("num_answers", [2, 10, 100_000])
def test_kl_is_bounded(n: int, num_answers: int) -> None:
    """A policy that says one of so many different answers, all equally likely: the exact KL of the best of n."""
    edges = (np.arange(num_answers + 1) / num_answers) ** n
    chances = np.diff(edges)
    exact = float(np.sum(chances * np.log(np.maximum(chances * num_answers, 1e-300))))
    assert exact <= best_of_n_kl(n) + 1e-9
    if num_answers > 1000:
        assert exact == pytest.approx(best_of_n_kl(n), abs=2e-3)
    if num_answers == 2:
        assert exact <= log(2)


def test_bad_input() -> None:
    for num_samples, n in ((4, 0), (4, 5), (0, 1)):
        with pytest.raises(ValueError, match="need 1 <= n"):
            best_of_n_weights(num_samples, n)
    with pytest.raises(ValueError, match="as many values"):
        expected_best([1.0, 2.0], [1], [1.0])
    for scores, values in (([1.0, np.nan], None), ([1.0, 2.0], [1.0, np.inf])):
        with pytest.raises(ValueError, match="finite"):
            expected_best(scores, [1], values)
    with pytest.raises(ValueError, match="at least 1"):
        best_of_n_kl(0.5)


def test_doublings() -> None:
    assert doublings(2) == [1, 2]
    assert doublings(100) == [1, 2, 4, 8, 16, 32, 64, 100]
