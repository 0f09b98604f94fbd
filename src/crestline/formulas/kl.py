"""KL(policy‖reference): three per-token estimators from samples and the exact value from full distributions.

Letters: N completions, T tokens, V vocabulary, S positions. All in nats.
"""

from __future__ import annotations

import torch
from torch import Tensor


def kl_k1(policy_logprobs_NT: Tensor, reference_logprobs_NT: Tensor) -> Tensor:
    """Log ratio of each sampled token: unbiased when the policy sampled, can be negative.

    Both arguments: log-probabilities of the same sampled tokens, any shape, at most 0. Returns the same shape.
    Source: Schulman 2020, "Approximating KL divergence" (k1).

    >>> kl_k1(torch.tensor([-1.0]), torch.tensor([-1.5])).tolist()
    [0.5]
    """
    return policy_logprobs_NT - reference_logprobs_NT


def kl_k2(policy_logprobs_NT: Tensor, reference_logprobs_NT: Tensor) -> Tensor:
    """Half the squared log ratio: never negative, biased, low variance near the reference.

    Arguments and shape as `kl_k1`. Source: Schulman 2020 (k2).

    >>> kl_k2(torch.tensor([-1.0]), torch.tensor([-1.5])).tolist()
    [0.125]
    """
    return 0.5 * (policy_logprobs_NT - reference_logprobs_NT) ** 2


def kl_k3(policy_logprobs_NT: Tensor, reference_logprobs_NT: Tensor) -> Tensor:
    """r - 1 - log r with r = reference / policy: unbiased when the policy sampled, never negative.

    Arguments and shape as `kl_k1`. Source: Schulman 2020 (k3).

    >>> round(float(kl_k3(torch.tensor([-1.0]), torch.tensor([-1.0]))), 6)
    0.0
    """
    log_ratio = reference_logprobs_NT - policy_logprobs_NT
    return torch.exp(log_ratio) - 1 - log_ratio


def kl_exact(policy_logits_SV: Tensor, reference_logits_SV: Tensor) -> Tensor:
    """KL of the next-token distributions at each position, from full logits.

    Arguments: unnormalised logits over the same vocabulary, [S, V]. Returns nats [S], at least 0 up to rounding.
    Summed over the positions of a sampled completion its mean is KL of whole completions (chain rule).

    >>> kl_exact(torch.zeros(1, 4), torch.zeros(1, 4)).tolist()
    [0.0]
    """
    policy = policy_logits_SV.float().log_softmax(-1)
    reference = reference_logits_SV.float().log_softmax(-1)
    return (policy.exp() * (policy - reference)).sum(-1)


def entropy(logits_SV: Tensor) -> Tensor:
    """Entropy of each next-token distribution in nats: logits [S, V] to [S].

    >>> round(float(entropy(torch.zeros(1, 4))), 4)
    1.3863
    """
    logprobs = logits_SV.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
