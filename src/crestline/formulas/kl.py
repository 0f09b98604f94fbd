"""KL(policy‖reference): three per-token estimators from samples, the exact value from full distributions, and the
controller that steers it.

An estimator's mean and its gradient are two things. Means over the policy's own samples: k1 and k3 give KL, k2 does
not. In the reward, k1 is what gives the gradient of KL(policy‖reference); k2, k3 and exact values miss how the token
itself changes them, for exact values a term in the loss can add that. In the loss, with the sampled tokens fixed, k1's
gradient is zero on average, k2's and the exact value's is that of KL(policy‖reference) at each token, k3's that of
KL(reference‖policy); none of them sees how a token changes what comes after it.

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


ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
"""Estimators from the sampled tokens alone, by name."""


def adapted_beta(beta: float, kl: float, target: float, *, gain: float = 0.1) -> float:
    """The weight of KL after one look: higher where KL is above the target, lower where below.

    beta: at least 0. kl, target: nats per completion, target above 0. gain: how strongly it answers; the error is
    clipped to ±20 %, so that a look changes beta by at most gain · 20 %.
    Source: Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2 (gain 0.1).

    >>> adapted_beta(0.1, kl=12.0, target=6.0), adapted_beta(0.1, kl=6.0, target=6.0)
    (0.10200000000000001, 0.1)
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return beta * (1.0 + gain * error)


def entropy(logits_SV: Tensor) -> Tensor:
    """Entropy of each next-token distribution in nats: logits [S, V] to [S].

    >>> round(float(entropy(torch.zeros(1, 4))), 4)
    1.3863
    """
    logprobs = logits_SV.float().log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)
