"""What a ranking says about scores. Letters: R rankings, K ranked completions, P pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry_loss(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """Negative log-likelihood that the chosen completion beats the rejected one, [P], nats.

    chosen_P, rejected_P: raw scores (logits). Source: Bradley and Terry 1952.

    >>> round(float(bradley_terry_loss(torch.zeros(1), torch.zeros(1))), 4)
    0.6931
    """
    return -F.logsigmoid(chosen_P - rejected_P)


def plackett_luce_loss(scores_RK: Tensor, ranks_RK: Tensor, ranked_RK: Tensor) -> Tensor:
    """Negative log-likelihood of each ranking, [R], nats; one ranking counts once.

    scores_RK: raw scores. ranks_RK: integers, lower is better; equal ranks are a tie. ranked_RK: True where the
    completion was ranked; those not ranked are left out. At each level the completions of that level are
    drawn from all that are not better: a tie of m is taken as Breslow's approximation does, the product of m
    draws from the same pool. Two untied completions give Bradley–Terry exactly.
    Source: Plackett 1975, Luce 1959; ties: Breslow 1974.

    >>> scores = torch.tensor([[2.0, 0.0]])
    >>> loss = plackett_luce_loss(scores, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
    >>> round(float(loss), 4) == round(float(bradley_terry_loss(scores[:, 0], scores[:, 1])), 4)
    True
    """
    not_better_RKK = (ranks_RK[:, None, :] >= ranks_RK[:, :, None]) & ranked_RK[:, None, :]
    itself_KK = torch.eye(ranks_RK.shape[1], dtype=torch.bool, device=ranks_RK.device)
    pool_RKK = scores_RK[:, None, :].masked_fill(~(not_better_RKK | itself_KK), float("-inf"))
    loss_RK = pool_RKK.logsumexp(-1) - scores_RK
    return (loss_RK * ranked_RK).sum(1)


def untied_pairs(ranks_RK: Tensor, ranked_RK: Tensor) -> Tensor:
    """[R, K, K]: True at (i, j) where completion i was ranked strictly better than j."""
    both_RKK = ranked_RK[:, :, None] & ranked_RK[:, None, :]
    return both_RKK & (ranks_RK[:, :, None] < ranks_RK[:, None, :])
