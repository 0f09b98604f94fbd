"""What a ranking says about scores: likelihoods of pairs and of K-way rankings, and what is added to them.

Owns the losses of reward models as functions of scores and ranks. Knows nothing of texts, models or batches.
Letters: R rankings, K ranked completions, P pairs, G tied groups, Z subsets of a tied group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Ties = Literal["either", "equal"]

MOST_TIED = 10
"""Completions in a tie that stands above others, at most: `either` sums over its 2^m subsets."""


def bradley_terry_loss(
    chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | float = 0.0
) -> Tensor:
    """Negative log-likelihood that the chosen completion beats the rejected one, [P], nats.

    chosen_P, rejected_P: raw scores (logits). margin_P: how much better the chosen one is said to be, raw units.
    Source: Bradley and Terry 1952; the margin as in Touvron et al. 2023 (arXiv 2307.09288), equation 2.

    >>> round(float(bradley_terry_loss(torch.zeros(1), torch.zeros(1))), 4)
    0.6931
    """
    return -F.logsigmoid(chosen_P - rejected_P - margin_P)


def plackett_luce_loss(
    scores_RK: Tensor,
    ranks_RK: Tensor,
    ranked_RK: Tensor,
    *,
    ties: Ties = "either",
    flip_rate_R: Tensor | float = 0.0,
) -> Tensor:
    """Negative log-likelihood of each ranking, [R], nats; one ranking counts once.

    scores_RK: raw scores. ranks_RK: integers, lower is better, equal is a tie. ranked_RK: True where the completion
    was ranked; the others are left out. flip_rate_R: share of pairwise answers that come out the wrong way round, in
    [0, 0.5): with probability 2ε the order is drawn blindly, so that P' = (1 − 2ε) P + 2ε P(equal scores).
    ties: "either" sums the probabilities of all orders that agree, so the lowest tie says nothing within itself and
    "best of K" is softmax cross-entropy; at most MOST_TIED in any other tie, or ValueError. "equal" draws a tie of m
    as m times from the same pool, which pulls tied scores together; it is no probability.
    Two untied completions give Bradley–Terry exactly.
    Source: Plackett 1975, Luce 1959; either: the exact marginal likelihood of ties in Cox regression (Kalbfleisch and
    Prentice 1973); equal: Breslow 1974; flips: contamination as in the smoothed loss of Mitchell 2023 ("cDPO").

    >>> scores, all_of_them = torch.tensor([[2.0, 0.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool)
    >>> best_of_three = plackett_luce_loss(scores, torch.tensor([[0, 1, 1]]), all_of_them)
    >>> round(float(best_of_three), 4) == round(float(F.cross_entropy(scores, torch.tensor([0]))), 4)
    True
    """
    loss_R = (_either if ties == "either" else _equal)(scores_RK, ranks_RK, ranked_RK)
    flip_R = torch.as_tensor(flip_rate_R, dtype=loss_R.dtype, device=loss_R.device)
    if not bool((flip_R > 0).any()):
        return loss_R
    blind_R = blind_log_share(ranks_RK, ranked_RK, ties=ties).to(loss_R.dtype)
    return -torch.logaddexp((1 - 2 * flip_R).log() - loss_R, (2 * flip_R).log() + blind_R)


def pairwise_loss(
    scores_RK: Tensor,
    ranks_RK: Tensor,
    ranked_RK: Tensor,
    *,
    ties: Ties = "either",
    flip_rate_R: Tensor | float = 0.0,
) -> Tensor:
    """Mean Bradley–Terry loss over the pairs of each ranking, [R], nats; one ranking counts once.

    The pairs as if each had been answered by itself: a composite likelihood, which a careless order misleads less than
    Plackett–Luce. Arguments as there. ties: "either" leaves tied pairs out; "equal" takes one as half a win of each.
    flip_rate_R: an answer of each pair is drawn blindly with probability 2ε. 0 where no pair says anything.
    Source: Ouyang et al. 2022 (arXiv 2203.02155), equation 1; the likelihood of Cox and Reid 2004.

    >>> both, scores = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3)
    >>> round(float(pairwise_loss(scores, torch.tensor([[0, 1, 2]]), both)), 4)
    0.6931
    """
    won_RKK = untied_pairs(ranks_RK, ranked_RK).to(scores_RK.dtype)
    if ties == "equal":
        different_KK = ~torch.eye(scores_RK.shape[1], dtype=torch.bool, device=scores_RK.device)
        both_RKK = ranked_RK[:, :, None] & ranked_RK[:, None, :] & different_KK
        won_RKK = won_RKK + 0.5 * (both_RKK & (ranks_RK[:, :, None] == ranks_RK[:, None, :]))
    loss_RKK = bradley_terry_loss(scores_RK[:, :, None], scores_RK[:, None, :])
    flip_R = torch.as_tensor(flip_rate_R, dtype=loss_RKK.dtype, device=loss_RKK.device)
    if bool((flip_R > 0).any()):
        flip_R11 = flip_R.expand(len(scores_RK))[:, None, None]
        loss_RKK = -torch.logaddexp((1 - 2 * flip_R11).log() - loss_RKK, flip_R11.log())
    return (loss_RKK * won_RKK).sum((1, 2)) / won_RKK.sum((1, 2)).clamp_min(1)


def blind_log_share(ranks_RK: Tensor, ranked_RK: Tensor, *, ties: Ties = "either") -> Tensor:
    """Logarithm of the likelihood of each ranking when all scores are equal, [R], float64.

    With `either` that is the share of all orders that agree: the product of the groups' factorials over n!.

    >>> share = blind_log_share(torch.tensor([[0, 1, 1]]), torch.ones(1, 3, dtype=torch.bool)).exp()
    >>> round(float(share), 4)
    0.3333
    """
    same_RKK = (ranks_RK[:, None, :] == ranks_RK[:, :, None]) & ranked_RK[:, None, :]
    lower_RKK = (ranks_RK[:, None, :] > ranks_RK[:, :, None]) & ranked_RK[:, None, :]
    pool_RK = (same_RKK | lower_RKK).sum(-1).clamp_min(1)
    if ties == "equal":
        return -(pool_RK.double().log() * ranked_RK).sum(1)
    size_RK = same_RKK.sum(-1).clamp_min(1).double()
    # Every member of a group of m carries 1 / m of log m!.
    groups_R = ((size_RK + 1).lgamma() / size_RK * ranked_RK).sum(1)
    return groups_R - (ranked_RK.sum(1).double() + 1).lgamma()


def with_margins(
    scores_RK: Tensor, ranks_RK: Tensor, ranked_RK: Tensor, margins_R: Tensor
) -> Tensor:
    """Scores where the best of each ranking gave up its margin, so that Plackett–Luce at K = 2 is Bradley–Terry's.

    margins_R: raw units, 0 where nobody said how much better the best one is.
    """
    worse_RKK = untied_pairs(ranks_RK, ranked_RK)
    best_RK = ranked_RK & ~worse_RKK.any(1) & worse_RKK.any(2)
    return scores_RK - best_RK * margins_R[:, None]


def centring_penalty(scores_RK: Tensor, ranked_RK: Tensor) -> Tensor:
    """Square of twice the mean score of each ranking's completions, [R]; at K = 2 it is (r₁ + r₂)².

    Scores of preferences have no zero; a little of this keeps them around 0.
    Source: Eisenstein et al. 2023, arXiv 2312.09244, section 2, as TRL's center_rewards_coefficient weighs it.

    >>> centring_penalty(torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)).tolist()
    [9.0]
    """
    return (2 * (scores_RK * ranked_RK).sum(1) / ranked_RK.sum(1).clamp_min(1)).square()


def ipo_loss(scores_RK: Tensor, ranks_RK: Tensor, ranked_RK: Tensor, *, beta: float) -> Tensor:
    """Squared distance of the score differences of untied pairs from 1 / (2 β), mean over a ranking's pairs, [R].

    scores_RK: log(policy / reference), nats per token. beta: above 0; the smaller, the further apart they are pulled.
    0 where nothing is preferred.
    Source: Azar et al. 2023, arXiv 2310.12036, equation 17 (β is τ there); per token as TRL's "ipo".

    >>> both = torch.ones(1, 2, dtype=torch.bool)
    >>> ipo_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0, 1]]), both, beta=0.5).tolist()
    [1.0]
    """
    better_RKK = untied_pairs(ranks_RK, ranked_RK)
    apart_RKK = scores_RK[:, :, None] - scores_RK[:, None, :] - 1 / (2 * beta)
    squared_R = (apart_RKK.square() * better_RKK).sum((1, 2))
    return squared_R / better_RKK.sum((1, 2)).clamp_min(1)


def untied_pairs(ranks_RK: Tensor, ranked_RK: Tensor) -> Tensor:
    """[R, K, K]: True at (i, j) where completion i was ranked strictly better than j."""
    both_RKK = ranked_RK[:, :, None] & ranked_RK[:, None, :]
    return both_RKK & (ranks_RK[:, :, None] < ranks_RK[:, None, :])


def largest_upper_tie(ranks: Sequence[int | None]) -> int:
    """Completions in the largest group that stands above others; 0 if there is none.

    >>> largest_upper_tie([0, 0, 1, 1, 1, None])
    2
    """
    given = [rank for rank in ranks if rank is not None]
    return max((given.count(rank) for rank in set(given) - {max(given, default=0)}), default=0)


def _equal(scores_RK: Tensor, ranks_RK: Tensor, ranked_RK: Tensor) -> Tensor:
    not_better_RKK = (ranks_RK[:, None, :] >= ranks_RK[:, :, None]) & ranked_RK[:, None, :]
    loss_RK = _pool(scores_RK, not_better_RKK) - scores_RK
    return (loss_RK * ranked_RK).sum(1)


def _pool(scores_RK: Tensor, inside_RKK: Tensor) -> Tensor:
    """Logarithm of the summed weights of each completion's pool, itself included, [R, K]."""
    itself_KK = torch.eye(scores_RK.shape[1], dtype=torch.bool, device=scores_RK.device)
    outside_RKK = ~(inside_RKK | itself_KK)
    return scores_RK[:, None, :].masked_fill(outside_RKK, float("-inf")).logsumexp(-1)


def _either(scores_RK: Tensor, ranks_RK: Tensor, ranked_RK: Tensor) -> Tensor:
    """Group after group from the best: that its members are drawn before all lower ones, in whatever order."""
    same_RKK = (ranks_RK[:, None, :] == ranks_RK[:, :, None]) & ranked_RK[:, None, :]
    lower_RKK = (ranks_RK[:, None, :] > ranks_RK[:, :, None]) & ranked_RK[:, None, :]
    size_RK = same_RKK.sum(-1) * (
        ranked_RK & lower_RKK.any(-1)
    )  # 0: the lowest group, or not ranked
    alone_RK = size_RK == 1
    loss_R = ((_pool(scores_RK, lower_RKK) - scores_RK) * alone_RK).sum(1)
    first_RK = ~(same_RKK & torch.ones_like(same_RKK).tril(-1)).any(-1)  # one place for each group
    for size in range(2, int(size_RK.max()) + 1):
        ranking_G, place_G = ((size_RK == size) & first_RK).nonzero(as_tuple=True)
        if len(ranking_G) == 0:
            continue
        if size > MOST_TIED:
            raise ValueError(
                f"a tie of {size} above others; at most {MOST_TIED} can be summed over"
            )
        scores_GK = scores_RK[ranking_G]
        tied_GM = scores_GK[same_RKK[ranking_G, place_G]].view(len(ranking_G), size)
        below_GK = lower_RKK[ranking_G, place_G]
        below_G = scores_GK.masked_fill(~below_GK, float("-inf")).logsumexp(1)
        loss_R = loss_R.index_add(0, ranking_G, -_drawn_first(tied_GM, below_G))
    return loss_R


def _drawn_first(tied_GM: Tensor, below_G: Tensor) -> Tensor:
    """Log-probability that all M tied completions are drawn before any other, summed over their orders, [G].

    below_G: logarithm of the summed weights of the others. Subset by subset, in the order of size: the probability
    that the first draws are exactly this subset is summed over which of its members came last.
    """
    size = tied_GM.shape[1]
    subsets_Z = torch.arange(1 << size, device=tied_GM.device)
    member_ZM = (subsets_Z[:, None] >> torch.arange(size, device=tied_GM.device)) & 1 == 1
    left_GZM = tied_GM[:, None, :].masked_fill(member_ZM, float("-inf"))
    left_GZ = torch.cat([left_GZM, below_G[:, None, None].expand(-1, 1 << size, 1)], 2).logsumexp(2)
    count_Z = member_ZM.sum(1)
    reached: list[Tensor] = [torch.zeros_like(below_G)[:, None]]  # by size: [G, subsets of it]
    column_Z = torch.zeros_like(subsets_Z)
    for number in range(1, size + 1):
        these = (count_Z == number).nonzero()[:, 0]
        column_Z[these] = torch.arange(len(these), device=tied_GM.device)
        last = member_ZM[these].nonzero()[:, 1].view(-1, number)  # which member came last
        before = these[:, None] ^ (1 << last)
        step = reached[-1][:, column_Z[before]] + tied_GM[:, last] - left_GZ[:, before]
        reached.append(step.logsumexp(-1))
    return reached[-1][:, 0]
