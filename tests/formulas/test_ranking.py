"""Ranking losses against hand numbers, every order written out, limits and finite differences."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crestline.formulas.ranking import (
    MOST_TIED,
    Ties,
    blind_log_share,
    bradley_terry_loss,
    centring_penalty,
    ipo_loss,
    largest_upper_tie,
    pairwise_loss,
    plackett_luce_loss,
    untied_pairs,
    with_margins,
)

SCORES = [0.7, -1.2, 0.1, 2.0]
Ranks = Sequence[int | None]


def as_tensors(rankings: Sequence[Ranks]) -> tuple[Tensor, Tensor]:
    ranks = torch.tensor([[0 if rank is None else rank for rank in ranks] for ranks in rankings])
    return ranks, torch.tensor([[rank is not None for rank in ranks] for ranks in rankings])


def plackett_luce(scores: Sequence[float], ranks: Ranks, **options) -> float:
    """The loss of one ranking, None for "not ranked"."""
    values = torch.tensor([list(scores)], dtype=torch.float64)
    return float(plackett_luce_loss(values, *as_tensors([ranks]), **options))


def probability(scores: Tensor, order: Sequence[int]) -> Tensor:
    """Of drawing the completions in this order, one after the other, without putting them back."""
    weights = scores[list(order)].exp()
    return math.prod(
        (weights[i] / weights[i:].sum() for i in range(len(order))), start=scores.new_tensor(1.0)
    )


def by_enumeration(scores: Tensor, ranks: Ranks, ties: Ties, flip_rate: float = 0.0) -> Tensor:
    """The loss of one ranking from its definition, order by order."""
    ranked = [k for k, rank in enumerate(ranks) if rank is not None]
    if ties == "equal":
        total = blind = torch.tensor(1.0, dtype=torch.float64)
        for k in ranked:
            pool = [j for j in ranked if ranks[j] >= ranks[k]]
            total = total * scores[k].exp() / scores[pool].exp().sum()
            blind = blind / len(pool)
    else:
        orders = list(itertools.permutations(ranked))
        agreeing = [o for o in orders if [ranks[k] for k in o] == sorted(ranks[k] for k in ranked)]
        total = sum((probability(scores, order) for order in agreeing), torch.tensor(0.0))
        blind = torch.tensor(len(agreeing) / len(orders), dtype=torch.float64)
    return -((1 - 2 * flip_rate) * total + 2 * flip_rate * blind).log()


def patterns(count: int) -> list[Ranks]:
    """Every ranking of so many completions: all ties and all that are not ranked."""
    return list(itertools.product([None, *range(count)], repeat=count))


@pytest.mark.parametrize("flip_rate", [0.0, 0.2])
@pytest.mark.parametrize("ties", ["either", "equal"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_values_and_gradients_against_every_order(count: int, ties: Ties, flip_rate) -> None:
    rankings = patterns(count)
    generator = torch.Generator().manual_seed(count)
    scores = 2 * torch.randn(len(rankings), count, dtype=torch.float64, generator=generator)
    scores.requires_grad_()
    found = plackett_luce_loss(scores, *as_tensors(rankings), ties=ties, flip_rate_R=flip_rate)
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    expected = torch.stack(
        [by_enumeration(row, r, ties, flip_rate) for row, r in zip(scores, rankings, strict=True)]
    )
    (wanted,) = torch.autograd.grad(expected.sum(), scores)
    torch.testing.assert_close(found, expected.double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize("ties", ["either", "equal"])
def test_gradients_against_finite_differences(ties: Ties) -> None:
    ranks, ranked = as_tensors([[1, 1, 1, 2, 0], [0, 3, None, 1, 1], [0, 0, 0, 0, 1]])
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    flips = torch.tensor([0.0, 0.3, 0.1], dtype=torch.float64)
    margins = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)

    def loss(values: Tensor) -> Tensor:
        moved = with_margins(values, ranks, ranked, margins)
        likely = plackett_luce_loss(moved, ranks, ranked, ties=ties, flip_rate_R=flips)
        return likely + 0.3 * centring_penalty(values, ranked)

    assert torch.autograd.gradcheck(loss, (scores,))


@pytest.mark.parametrize("flip_rate", [0.0, 0.2])
@pytest.mark.parametrize("ties", ["either", "equal"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_pairs_of_every_ranking_one_by_one(count: int, ties: Ties, flip_rate: float) -> None:
    """Values and gradients against a loop over the pairs, each as a ranking of two by itself."""
    rankings = patterns(count)
    generator = torch.Generator().manual_seed(count)
    scores = 2 * torch.randn(len(rankings), count, dtype=torch.float64, generator=generator)
    scores.requires_grad_()
    found = pairwise_loss(scores, *as_tensors(rankings), ties=ties, flip_rate_R=flip_rate)
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    expected = []
    for row, ranks in zip(scores, rankings, strict=True):
        losses = []
        for i, j in itertools.combinations(range(count), 2):
            first, second = ranks[i], ranks[j]
            if first is None or second is None or (first == second and ties == "either"):
                continue
            ways = [(i, j)] * (first <= second) + [(j, i)] * (second <= first)
            blind = torch.tensor(flip_rate, dtype=torch.float64)
            said = [
                -((1 - 2 * flip_rate) * torch.sigmoid(row[a] - row[b]) + blind).log()
                for a, b in ways
            ]
            losses.append(sum(said) / len(said))
        expected.append(sum(losses) / len(losses) if losses else row.sum() * 0)
    (wanted,) = torch.autograd.grad(torch.stack(expected).sum(), scores)
    torch.testing.assert_close(found, torch.stack(expected).detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(gradient, wanted, atol=1e-10, rtol=0)


def test_pairs_take_margins_and_flips_of_each_ranking_and_finite_differences_agree() -> None:
    ranks, ranked = as_tensors([[1, 1, 1, 2, 0], [0, 3, None, 1, 1], [0, 1, None, None, None]])
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    flips = torch.tensor([0.0, 0.3, 0.1], dtype=torch.float64)
    margins = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)

    def loss(values: Tensor) -> Tensor:
        moved = with_margins(values, ranks, ranked, margins)
        return pairwise_loss(moved, ranks, ranked, flip_rate_R=flips)

    assert torch.autograd.gradcheck(loss, (scores,))
    likely = (-bradley_terry_loss(scores[2, 0], scores[2, 1], 2.0)).exp().detach()
    assert float(loss(scores.detach())[2]) == pytest.approx(-math.log(0.8 * float(likely) + 0.1))


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
    total = 0.0
    for order in itertools.permutations(range(count)):
        ranks: list[int | None] = [order.index(k) for k in range(count)]
        total += math.exp(-plackett_luce(SCORES[:count], ranks))
    assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("options", [{}, {"flip_rate_R": 0.25}])
def test_two_completions_are_bradley_terry(options: dict) -> None:
    scores = torch.tensor([[0.3, -1.0], [2.0, 2.5]], dtype=torch.float64)
    margins = torch.tensor([0.0, 1.5], dtype=torch.float64)
    ranks, ranked = as_tensors([[0, 1], [4, 2]])
    moved = with_margins(scores, ranks, ranked, margins)
    for ties in ("either", "equal"):
        found = plackett_luce_loss(moved, ranks, ranked, ties=ties, **options)
        likely = (-bradley_terry_loss(*scores.new_tensor([[0.3, 2.5], [-1.0, 2.0]]), margins)).exp()
        flip = options.get("flip_rate_R", 0.0)
        expected = -((1 - flip) * likely + flip * (1 - likely)).log()
        torch.testing.assert_close(found, expected)


def test_best_of_k_is_cross_entropy_and_top_two_are_two_draws() -> None:
    scores = torch.tensor([SCORES], dtype=torch.float64)
    expected = F.cross_entropy(scores, torch.tensor([1]))
    assert plackett_luce(SCORES, [1, 0, 1, 1]) == pytest.approx(float(expected))
    a, b, c, d = (math.exp(score) for score in SCORES)
    expected = -math.log(d / (a + b + c + d) * a / (a + b + c))
    assert plackett_luce(SCORES, [1, 2, 2, 0]) == pytest.approx(expected)
    assert plackett_luce(SCORES, [3, 3, 3, 3]) == 0.0


def test_a_tie_of_two_above_others_by_hand() -> None:
    a, b, c, d = (math.exp(score) for score in SCORES)
    everything = a + b + c + d
    expected = a / everything * b / (b + c + d) + b / everything * a / (a + c + d)
    assert plackett_luce(SCORES, [0, 0, 1, 1]) == pytest.approx(-math.log(expected))


def test_equal_ties_pull_together() -> None:
    scores = torch.tensor([[1.0, -1.0]], requires_grad=True)
    ranks, ranked = as_tensors([[0, 0]])
    plackett_luce_loss(scores, ranks, ranked, ties="equal").sum().backward()
    assert scores.grad[0, 0] > 0 > scores.grad[0, 1]


def test_what_was_not_ranked_gets_no_gradient() -> None:
    for ties in ("either", "equal"):
        scores = torch.tensor([SCORES], requires_grad=True)
        ranks, ranked = as_tensors([[1, None, 0, None]])
        loss = plackett_luce_loss(scores, ranks, ranked, ties=ties) + centring_penalty(
            scores, ranked
        )
        loss.sum().backward()
        assert scores.grad[0, [1, 3]].tolist() == [0.0, 0.0]
        assert 0 not in scores.grad[0, [0, 2]].tolist()
    assert plackett_luce([0.7, 99.0, -99.0, 2.0], [1, None, None, 0]) == pytest.approx(
        plackett_luce([0.7, 2.0], [1, 0])
    )
    assert plackett_luce(SCORES, [None, 0, None, None]) == 0.0


FAR = [
    ([1000.0, -1000.0, 500.0, 0.0], [0, 1, 1, 2], 1000.0),
    ([-1000.0, -1000.0, 500.0, 0.0], [0, 0, 1, 1], 3000.0 - math.log(2)),
    ([1e6, 0.0, 0.0, -1e6], [0, 1, 1, 2], 0.0),
    ([-1e6, 0.0, 0.0, 1e6], [0, 1, 1, 2], 4e6 - math.log(2)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scores", "ranks", "expected"), FAR)
def test_far_scores_stay_finite(scores, ranks, expected, dtype) -> None:
    values = torch.tensor([scores], dtype=dtype, requires_grad=True)
    found = plackett_luce_loss(values, *as_tensors([ranks]))
    (gradient,) = torch.autograd.grad(found.sum(), values)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert gradient.isfinite().all() and float(gradient.sum()) == pytest.approx(0, abs=1e-3)


def test_a_flipped_answer_costs_no_more_than_blindness() -> None:
    found = plackett_luce([-1e6, 1e6, 0.0], [0, 1, 2], flip_rate_R=0.1)
    assert found == pytest.approx(-math.log(0.2 / 6))
    rates = torch.tensor([0.0, 0.1], dtype=torch.float64)
    scores = torch.tensor([[-1e6, 1e6], [-1e6, 1e6]], dtype=torch.float64, requires_grad=True)
    loss = plackett_luce_loss(scores, *as_tensors([[0, 1], [0, 1]]), flip_rate_R=rates)
    assert loss.tolist() == pytest.approx([2e6, -math.log(0.1)])
    assert torch.autograd.grad(loss.sum(), scores)[0].tolist() == [[-1.0, 1.0], [0.0, 0.0]]


def test_large_ties_are_exact_up_to_the_limit() -> None:
    count = MOST_TIED + 1
    ranks = [0] * MOST_TIED + [1]
    # Which of all comes last is a fair draw where all scores are equal.
    assert plackett_luce([0.5] * count, ranks) == pytest.approx(math.log(count))
    # Given weights w and 1 of the last one, it is last with probability Σ (-1)^j C(m, j) / (1 + j w).
    weight = 3.0
    last = sum((-1) ** j * math.comb(MOST_TIED, j) / (1 + j * weight) for j in range(count))
    found = plackett_luce([math.log(weight)] * MOST_TIED + [0.0], ranks)
    assert found == pytest.approx(-math.log(last))
    with pytest.raises(ValueError, match=f"a tie of {count} above others"):
        plackett_luce([0.0] * (count + 1), [0] * count + [1])
    assert plackett_luce([0.0] * (count + 1), [0] + [1] * count) == pytest.approx(math.log(12))


def test_largest_upper_tie_by_hand() -> None:
    assert largest_upper_tie([0, 1, 1, 1]) == 1
    assert largest_upper_tie([None, 5, 2, 2, 5, 7]) == 2
    assert largest_upper_tie([4, 4]) == largest_upper_tie([None]) == 0


def test_blind_share_by_hand() -> None:
    ranks, ranked = as_tensors([[0, 1, 2, None], [0, 0, 1, 1], [0, 0, 0, 0], [None] * 4])
    assert blind_log_share(ranks, ranked).exp().tolist() == pytest.approx([1 / 6, 1 / 6, 1, 1])
    equal = blind_log_share(ranks, ranked, ties="equal").exp()
    assert equal.tolist() == pytest.approx([1 / 6, 1 / 64, 1 / 256, 1])


def test_margin_takes_from_the_best_alone() -> None:
    ranks, ranked = as_tensors([[0, 1, 1], [2, 1, None], [0, 0, None], [0, None, None]])
    moved = with_margins(torch.zeros(4, 3), ranks, ranked, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert moved.tolist() == [[-1, 0, 0], [0, -2, 0], [0, 0, 0], [0, 0, 0]]


def test_centring_by_hand() -> None:
    _, ranked = as_tensors([[0, 1, None], [0, 1, 2], [None, None, None]])
    scores = torch.tensor([[1.0, 2.0, 50.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    assert centring_penalty(scores, ranked).tolist() == [9.0, 16.0, 0.0]


finite = st.floats(-20, 20)
rankings = st.integers(2, 5).flatmap(
    lambda count: st.tuples(
        st.lists(finite, min_size=count, max_size=count),
        st.lists(st.none() | st.integers(0, 3), min_size=count, max_size=count),
        st.permutations(range(count)),
    )
)


@settings(max_examples=60, deadline=None)
@given(ranking=rankings, shift=finite, ties=st.sampled_from(["either", "equal"]))
def test_order_on_the_page_a_constant_and_the_ranks_numbers_change_nothing(
    ranking, shift, ties
) -> None:
    scores, ranks, order = ranking
    before = plackett_luce(scores, ranks, ties=ties)
    renamed = [None if rank is None else 3 * rank + 2 for rank in ranks]
    moved = plackett_luce(
        [scores[k] + shift for k in order], [renamed[k] for k in order], ties=ties
    )
    assert moved == pytest.approx(before, abs=1e-9)
    assert before >= -1e-12


def test_untied_pairs_by_hand() -> None:
    better = untied_pairs(*as_tensors([[1, 0, 1, None]]))[0]
    assert better.nonzero().tolist() == [[1, 0], [1, 2]]


def test_ipo_by_hand() -> None:
    """Differences of 1.5 and −0.5 from a distance of 1 / (2 · 0.25) = 2; ties and the unranked say nothing."""
    ranks, ranked = as_tensors([[0, 1], [1, 0], [0, 0], [0, 1]])
    scores = torch.tensor([[1.5, 0.0], [0.0, -0.5], [3.0, 0.0], [2.0, 0.0]])
    found = ipo_loss(scores, ranks, ranked, beta=0.25)
    assert found.tolist() == pytest.approx([0.5**2, 2.5**2, 0.0, 0.0])
    ranks, ranked = as_tensors([[0, 1, 1, None]])
    scores = torch.tensor([[1.0, 0.0, -1.0, 9.0]])
    assert float(ipo_loss(scores, ranks, ranked, beta=0.25)) == pytest.approx((1 + 0) / 2)
