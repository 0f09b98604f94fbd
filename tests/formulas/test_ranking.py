import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crestline.formulas.ranking import bradley_terry_loss, plackett_luce_loss, untied_pairs

SCORES = [0.7, -1.2, 0.1, 2.0]


def plackett_luce(scores: list[float], ranks: list[int | None]) -> float:
    """The loss of one ranking, None for "not ranked"."""
    found = plackett_luce_loss(
        torch.tensor([scores], dtype=torch.float64),
        torch.tensor([[0 if rank is None else rank for rank in ranks]]),
        torch.tensor([[rank is not None for rank in ranks]]),
    )
    return float(found)


def log_probability(scores: list[float], order: tuple[int, ...]) -> float:
    """Of drawing the completions in this order, one after the other, without putting them back."""
    weights = [math.exp(scores[k]) for k in order]
    return sum(math.log(weights[i] / sum(weights[i:])) for i in range(len(order)))


def test_bradley_terry_by_hand() -> None:
    found = bradley_terry_loss(torch.tensor([1.0, 0.0, -3.0]), torch.tensor([0.0, 1.0, 0.0]))
    assert found.tolist() == pytest.approx(
        [math.log1p(math.exp(-1)), math.log1p(math.exp(1)), math.log1p(math.exp(3))]
    )


def test_bradley_terry_of_far_scores_is_finite() -> None:
    found = bradley_terry_loss(torch.tensor([-500.0, 500.0]), torch.tensor([500.0, -500.0]))
    assert found.tolist() == [1000.0, 0.0]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_probabilities_of_all_orders_sum_to_one(count) -> None:
    scores = SCORES[:count]
    total = 0.0
    for order in itertools.permutations(range(count)):
        ranks: list[int | None] = [order.index(k) for k in range(count)]
        loss = plackett_luce(scores, ranks)
        assert loss == pytest.approx(-log_probability(scores, order), abs=1e-12)
        total += math.exp(-loss)
    assert total == pytest.approx(1.0, abs=1e-12)


def test_what_was_not_ranked_is_left_out() -> None:
    expected = -log_probability(SCORES, (3, 0))
    assert plackett_luce(SCORES, [1, None, None, 0]) == pytest.approx(expected, abs=1e-12)
    assert plackett_luce([0.7, 99.0, -99.0, 2.0], [1, None, None, 0]) == pytest.approx(expected)
    assert plackett_luce(SCORES, [None, 0, None, None]) == 0.0


def test_what_was_not_ranked_gets_no_gradient() -> None:
    scores = torch.tensor([SCORES], requires_grad=True)
    ranked = torch.tensor([[True, False, True, False]])
    plackett_luce_loss(scores, torch.tensor([[1, 0, 0, 5]]), ranked).sum().backward()
    assert scores.grad[0, [1, 3]].tolist() == [0.0, 0.0]
    assert scores.grad[0, 0] > 0 > scores.grad[0, 2]


def test_only_the_order_of_ranks_counts() -> None:
    assert plackett_luce(SCORES, [0, 1, 2, 3]) == plackett_luce(SCORES, [2, 5, 7, 100])


def test_ties_are_breslow() -> None:
    a, b, c, d = (math.exp(score) for score in SCORES)
    # d first, then a and b tied (each drawn from the same pool), then c
    expected = -math.log(d / (a + b + c + d)) - math.log(a * b / (a + b + c) ** 2) - math.log(c / c)
    assert plackett_luce(SCORES, [1, 1, 2, 0]) == pytest.approx(expected, abs=1e-12)
    # the two best tied
    expected = -math.log(a * d / (a + b + c + d) ** 2) - math.log(b / (b + c))
    assert plackett_luce(SCORES, [0, 1, 2, 0]) == pytest.approx(expected, abs=1e-12)


def test_two_completions_are_bradley_terry() -> None:
    scores = torch.tensor([[0.3, -1.0], [2.0, 2.5]])
    both = torch.ones(2, 2, dtype=torch.bool)
    found = plackett_luce_loss(scores, torch.tensor([[0, 1], [1, 0]]), both)
    expected = bradley_terry_loss(torch.tensor([0.3, 2.5]), torch.tensor([-1.0, 2.0]))
    torch.testing.assert_close(found, expected)


def test_gradient_against_finite_differences() -> None:
    scores = torch.tensor([SCORES, SCORES[::-1]], dtype=torch.float64, requires_grad=True)
    ranks = torch.tensor([[1, 1, 2, 0], [0, 3, 1, 2]])
    ranked = torch.tensor([[True, True, True, True], [True, True, False, True]])

    def total(values: Tensor) -> Tensor:
        return plackett_luce_loss(values, ranks, ranked).sum()

    assert torch.autograd.gradcheck(total, (scores,))
    (gradient,) = torch.autograd.grad(total(scores), scores)
    for place in itertools.product(range(2), range(4)):
        step = torch.zeros(2, 4, dtype=torch.float64)
        step[place] = 1e-6
        slope = (total(scores.detach() + step) - total(scores.detach() - step)) / 2e-6
        assert float(gradient[place]) == pytest.approx(float(slope), abs=1e-8)


finite = st.floats(-20, 20)
rankings = st.integers(2, 5).flatmap(
    lambda count: st.tuples(
        st.lists(finite, min_size=count, max_size=count),
        st.lists(st.none() | st.integers(0, 3), min_size=count, max_size=count),
        st.permutations(range(count)),
    )
)


@settings(max_examples=80, deadline=None)
@given(ranking=rankings, shift=finite)
def test_order_on_the_page_and_a_constant_change_nothing(ranking, shift) -> None:
    scores, ranks, order = ranking
    before = plackett_luce(scores, ranks)
    moved = plackett_luce([scores[k] + shift for k in order], [ranks[k] for k in order])
    assert moved == pytest.approx(before, abs=1e-9)
    assert before >= -1e-12


def test_untied_pairs_by_hand() -> None:
    ranks = torch.tensor([[1, 0, 1, 0]])
    ranked = torch.tensor([[True, True, True, False]])
    better = untied_pairs(ranks, ranked)[0]
    assert better.nonzero().tolist() == [[1, 0], [1, 2]]
