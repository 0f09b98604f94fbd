"""The estimate of reliability against hand numbers, its own likelihood written out, and simulated people."""

import doctest
import math

import numpy as np
import pytest
from scipy.optimize import brentq

from crestline.formulas import annotators, ranking
from crestline.formulas.annotators import NEVER_CERTAIN, PRIOR, annotator_reliability


@pytest.mark.parametrize("module", [annotators, ranking])
def test_doctests(module) -> None:
    assert doctest.testmod(module).failed == 0


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_two_who_always_agree_by_hand() -> None:
    """Ten comparisons of two people: p = (10 q + 7) / 18, where q = σ(2 logit p) is that they are right."""
    who, what = [0, 1] * 10, [n // 2 for n in range(20)]
    found = annotator_reliability(who, what, [n // 2 % 3 == 0 for n in range(20)])

    def off(p: float) -> float:
        return (10 / (1 + math.exp(-2 * logit(p))) + 7) / 18 - p

    expected = brentq(off, 0.8, 0.999)
    assert found.reliability_A.tolist() == pytest.approx([expected, expected], abs=1e-7)
    assert found.num_shared_A.tolist() == [10, 10]
    right = 1 / (1 + math.exp(-2 * logit(expected)))
    assert found.first_is_better_C[0] == pytest.approx(right, abs=1e-6)
    assert found.first_is_better_C[1] == pytest.approx(1 - right, abs=1e-6)


def people(seed: int, truth: np.ndarray, comparisons: int, answers_each: int):
    """(who, what, first won) of people who are right with these probabilities."""
    generator = np.random.default_rng(seed)
    better = generator.random(comparisons) < 0.5
    who = np.concatenate(
        [generator.permutation(len(truth))[:answers_each] for _ in range(comparisons)]
    )
    what = np.repeat(np.arange(comparisons), answers_each)
    right = generator.random(len(who)) < truth[who]
    return who, what, better[what] == right


def test_simulated_people_are_told_apart() -> None:
    truth = np.linspace(0.55, 0.97, 12)
    errors = []
    for seed in range(3):
        found = annotator_reliability(*people(seed, truth, 2500, 3))
        errors.append(found.reliability_A - truth)
        assert (np.abs(errors[-1]) < 0.06).all()
    assert abs(np.mean(errors)) < 0.01


def log_posterior(reliability, who, what, won) -> float:
    """Of the answers to shared comparisons, both truths summed over, and of the prior."""
    total = sum(
        (PRIOR[0] - 1) * math.log(p) + (PRIOR[1] - 1) * math.log(1 - p) for p in reliability
    )
    for c in set(what.tolist()):
        answers = [(reliability[a], w) for a, k, w in zip(who, what, won, strict=True) if k == c]
        first, second = (
            math.prod(p if won == first_is_better else 1 - p for p, won in answers)
            for first_is_better in (True, False)
        )
        total += math.log(0.5 * first + 0.5 * second)
    return total


def test_it_is_the_most_probable_one() -> None:
    truth = np.array([0.6, 0.75, 0.9, 0.8])
    answers = people(0, truth, 60, 2)
    best = annotator_reliability(*answers).reliability_A
    top = log_posterior(best, *answers)
    for place in range(4):
        for step in (-0.01, 0.01):
            other = best.copy()
            other[place] += step
            assert log_posterior(other, *answers) < top


def test_which_is_first_changes_nothing_and_who_shares_nothing_keeps_the_prior() -> None:
    who = [0, 1, 2, 0, 1, 2, 3, 3]
    what = [0, 0, 0, 1, 1, 1, 2, 3]
    won = np.array([True, True, False, False, False, False, True, False])
    found = annotator_reliability(who, what, won)
    swapped = annotator_reliability(who, what, ~won)
    assert found.reliability_A.tolist() == pytest.approx(swapped.reliability_A.tolist())
    assert found.reliability_A[3] == pytest.approx(7 / 8) and found.num_shared_A[3] == 0
    assert found.reliability_A[0] == found.reliability_A[1] > found.reliability_A[2]


def test_a_contrarian_is_a_coin_at_worst_and_nobody_is_certain() -> None:
    truth = np.array([1.0, 1.0, 1.0, 0.0])
    found = annotator_reliability(*people(0, truth, 20000, 4)).reliability_A
    assert found.tolist() == pytest.approx([NEVER_CERTAIN[1]] * 3 + [NEVER_CERTAIN[0]])


def test_one_who_answers_the_same_twice_shares_nothing() -> None:
    with pytest.raises(ValueError, match="no comparison was answered by two annotators"):
        annotator_reliability([0, 0, 1], [0, 0, 1], [True, False, True])
