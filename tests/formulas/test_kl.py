import doctest
import itertools
import math

import pytest
import torch
from torch import Tensor

from crestline.formulas import kl
from crestline.formulas.kl import adapted_beta, entropy, kl_exact, kl_k1, kl_k2, kl_k3

POLICY = torch.tensor([math.log(0.5), math.log(0.3), math.log(0.2)], dtype=torch.float64)
REFERENCE = torch.tensor([math.log(0.2), math.log(0.2), math.log(0.6)], dtype=torch.float64)
# by hand: 0.5 ln 2.5 + 0.3 ln 1.5 + 0.2 ln (1/3)
EXACT = 0.5 * math.log(2.5) + 0.3 * math.log(1.5) - 0.2 * math.log(3)


def logits(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_hand_numbers_of_the_three_estimators() -> None:
    policy, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert kl_k1(policy, reference).tolist() == [0.5, -1.0]
    assert kl_k2(policy, reference).tolist() == [0.125, 0.5]
    # e^-0.5 - 1 + 0.5 and e^1 - 1 - 1
    assert kl_k3(policy, reference).tolist() == pytest.approx([0.1065307, 0.7182818], abs=1e-6)


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_mean_over_the_policy_is_the_exact_kl(estimator) -> None:
    expected = float((POLICY.exp() * estimator(POLICY, REFERENCE)).sum())
    assert expected == pytest.approx(EXACT, abs=1e-12)


def test_k2_is_biased() -> None:
    expected = float((POLICY.exp() * kl_k2(POLICY, REFERENCE)).sum())
    by_hand = 0.25 * math.log(2.5) ** 2 + 0.15 * math.log(1.5) ** 2 + 0.1 * math.log(3) ** 2
    assert expected == pytest.approx(by_hand, abs=1e-12)
    assert abs(expected - EXACT) > 4e-3


def test_k3_and_k2_are_never_negative_and_k1_can_be() -> None:
    policy = logits(200, seed=0).log_softmax(-1)
    reference = logits(200, seed=1).log_softmax(-1)
    assert float(kl_k2(policy, reference).min()) >= 0
    assert float(kl_k3(policy, reference).min()) >= 0
    assert float(kl_k1(policy, reference).min()) < 0


def test_exact_kl_by_hand_is_not_symmetric_and_ignores_the_normaliser() -> None:
    policy, reference = POLICY[None] + 3, REFERENCE[None] - 5
    assert kl_exact(policy, reference).tolist() == pytest.approx([EXACT], abs=1e-6)
    backwards = 0.2 * math.log(0.4) + 0.2 * math.log(2 / 3) + 0.6 * math.log(3)
    assert kl_exact(reference, policy).tolist() == pytest.approx([backwards], abs=1e-6)


def test_exact_kl_and_entropy_agree_with_torch_distributions() -> None:
    policy, reference = logits(20, 11, seed=2), logits(20, 11, seed=3)
    first = torch.distributions.Categorical(logits=policy)
    second = torch.distributions.Categorical(logits=reference)
    expected = torch.distributions.kl_divergence(first, second).float()
    torch.testing.assert_close(kl_exact(policy, reference), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy(policy), first.entropy().float(), atol=1e-5, rtol=1e-5)


def test_exact_kl_of_bfloat16_logits_is_summed_in_float32() -> None:
    policy = logits(4, 500, seed=4, dtype=torch.float32).bfloat16()
    found = kl_exact(policy, policy + 0)
    assert found.dtype == torch.float32
    assert found.abs().max() < 1e-6


def test_chain_rule_sum_over_states_is_kl_of_whole_completions() -> None:
    vocabulary = 3
    starts = [logits(1, vocabulary, seed=seed).float() for seed in (5, 6)]
    after = [logits(vocabulary, vocabulary, seed=seed).float() for seed in (7, 8)]
    per_state = kl_exact(*starts), kl_exact(*after)
    logprob = [
        (start.log_softmax(-1).T + rest.log_softmax(-1)).double()
        for start, rest in zip(starts, after, strict=True)
    ]
    whole = float((logprob[0].exp() * (logprob[0] - logprob[1])).sum())
    summed = sum(
        float(logprob[0][a, b].exp()) * float(per_state[0][0] + per_state[1][a])
        for a, b in itertools.product(range(vocabulary), repeat=2)
    )
    assert summed == pytest.approx(whole, abs=1e-6)
    assert whole > 0.1


def test_the_controller_answers_at_most_a_fifth() -> None:
    assert adapted_beta(0.5, 6.0, 6.0) == 0.5
    assert adapted_beta(0.5, 6.6, 6.0) == pytest.approx(0.5 * 1.01)
    assert adapted_beta(0.5, 5.4, 6.0) == pytest.approx(0.5 * 0.99)
    assert adapted_beta(0.5, 600.0, 6.0) == pytest.approx(0.5 * 1.02)
    assert adapted_beta(0.5, -3.0, 6.0, gain=0.5) == pytest.approx(0.5 * 0.9)
    assert adapted_beta(0.0, 600.0, 6.0) == 0.0


def test_the_controller_finds_the_beta_that_meets_the_target() -> None:
    beta = 5.0
    for _ in range(400):
        beta = adapted_beta(beta, kl=3.0 / (0.1 + beta), target=6.0)
    assert beta == pytest.approx(0.4, rel=0.02)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(kl).failed == 0
