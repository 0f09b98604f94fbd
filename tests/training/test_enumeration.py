"""Exact KL and expected gradients against every completion that a tiny policy can write."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crestline.training import grpo, rloo
from crestline.training.algorithms import PAGES
from crestline.training.batches import Experience, padded
from crestline.training.evaluation import exact_kl
from crestline.training.rl_configs import Grpo, Rloo
from crestline.types import Completion


def as_completion(tokens: Sequence[int]) -> Completion:
    return Completion(text="", tokens=tuple(tokens), logprobs=(0.0,) * len(tokens), stop="length")


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@torch.no_grad()
def test_exact_kl_is_kl_of_whole_completions(tiny_model, every_completion, temperature) -> None:
    policy, reference = tiny_model(6, seed=1), tiny_model(6, seed=2)
    prompts, completions, weights, kl, entropy = [], [], [], 0.0, 0.0
    for prompt in ([1], [0, 2, 4, 1]):
        every = every_completion(prompt, 6, 3, end=5)
        assert len(every.completions) == 1 + 5 + 25 * 6
        own, other = (
            torch.stack([row.sum() for row in every.logprobs(model, temperature)]).double()
            for model in (policy, reference)
        )
        assert float(own.exp().sum()) == pytest.approx(1.0, abs=1e-5)
        kl += float((own.exp() * (own - other)).sum()) / 2
        entropy -= float((own.exp() * own).sum()) / 2
        prompts += [prompt] * len(own)
        completions += [as_completion(tokens) for tokens in every.completions]
        weights += (own.exp() / 2).tolist()
    found = exact_kl(policy, reference, prompts, completions, 7, temperature=temperature)
    assert kl > 0.3
    assert np.dot(found[0], weights) == pytest.approx(kl, abs=1e-5)
    assert np.dot(found[1], weights) == pytest.approx(entropy, abs=1e-5)
    assert min(found[0]) > -1e-6
    whole = exact_kl(policy, reference, prompts, completions, 1000, temperature=temperature)
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_exact_kl_to_itself_is_zero(tiny_model, every_completion) -> None:
    policy = tiny_model(6)
    every = every_completion([1, 2], 6, 2, end=5)
    rows = [as_completion(tokens) for tokens in every.completions]
    kl, _ = exact_kl(policy, policy, [[1, 2]] * len(rows), rows, 10)
    assert max(map(abs, kl)) < 1e-6


def experience(
    prompt: Sequence[int],
    completions: Sequence[Sequence[int]],
    old: Sequence[Tensor],
    reference: Sequence[Tensor],
    advantages: Tensor,
    temperature: float = 1.0,
) -> Experience:
    """The batch that RL would make of these completions."""
    tokens, lengths = padded([[*prompt, *completion] for completion in completions])
    sampled = torch.zeros(tokens.shape, dtype=torch.bool)
    logprobs, references = torch.zeros(tokens.shape), torch.zeros(tokens.shape)
    for row, (mine, theirs) in enumerate(zip(old, reference, strict=True)):
        place = slice(len(prompt), len(prompt) + len(mine))
        sampled[row, place] = True
        logprobs[row, place], references[row, place] = mine.detach(), theirs.detach()
    return Experience(
        tokens_NT=tokens,
        lengths_N=lengths,
        sampled_NT=sampled,
        old_logprobs_NT=logprobs,
        reference_logprobs_NT=references,
        advantages_N=advantages,
        num_sampled_tokens=int(sampled.sum()),
        num_completions=len(completions),
        temperature=temperature,
    )


def expected_gradient(
    config: Rloo | Grpo,
    policy: Any,
    reference: Any,
    every: Any,
    scores: Tensor,
    temperature: float = 1.0,
) -> list[Tensor]:
    """Mean gradient of the loss over all groups of two that the policy could sample."""
    page = PAGES[type(config)]
    with torch.no_grad():
        own, other = every.logprobs(policy, temperature), every.logprobs(reference, temperature)
    total = torch.zeros(())
    for pair in itertools.product(range(len(own)), repeat=2):
        kl = torch.stack([(own[n] - other[n]).sum() for n in pair])
        rewards = page.rewards(config, scores[list(pair)], kl)
        batch = experience(
            every.prompt,
            [every.completions[n] for n in pair],
            [own[n] for n in pair],
            [other[n] for n in pair],
            page.advantages(config, rewards, 2),
            temperature,
        )
        value, _ = page.loss(config)(policy, batch)
        total = total + value * float(sum(own[n].sum() for n in pair).exp())
    return list(torch.autograd.grad(total, list(policy.parameters())))


def gradient_of_objective(
    policy: Any, reference: Any, every: Any, scores: Tensor, beta: float, temperature: float = 1.0
) -> list[Tensor]:
    """Of E[score] - beta KL(policy‖reference), summed over every completion."""
    own = torch.stack([row.sum() for row in every.logprobs(policy, temperature)])
    with torch.no_grad():
        other = torch.stack([row.sum() for row in every.logprobs(reference, temperature)])
    objective = (own.exp() * (scores - beta * (own - other))).sum()
    return list(torch.autograd.grad(objective, list(policy.parameters())))


def check_proportional(found: list[Tensor], exact: list[Tensor], factor: float) -> None:
    for mine, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, factor * theirs, atol=2e-6, rtol=1e-3)
    assert max(float(gradient.abs().max()) for gradient in exact) > 1e-2


@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.3, 1.0), (0.3, 0.7)])
def test_expected_rloo_gradient_is_the_exact_policy_gradient(
    tiny_model, every_completion, beta, temperature
) -> None:
    policy, reference = tiny_model(3, seed=1), tiny_model(3, seed=2)
    every = every_completion([1, 0], 3, 2, end=2)
    scores = torch.randn(len(every.completions), generator=torch.Generator().manual_seed(3)) + 2
    arguments = policy, reference, every, scores
    found = expected_gradient(Rloo(beta=beta), *arguments, temperature)
    exact = gradient_of_objective(*arguments, beta, temperature)
    check_proportional(found, exact, -1.0)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
def test_expected_grpo_gradient_points_where_the_exact_one_does(
    tiny_model, every_completion, loss_type
) -> None:
    policy, reference = tiny_model(3, seed=1), tiny_model(3, seed=2)
    every = every_completion([1, 0], 3, 2, end=None)
    assert len(every.completions) == 9
    scores = torch.randn(9, generator=torch.Generator().manual_seed(3)) + 2
    arguments = policy, reference, every, scores
    found = expected_gradient(Grpo(scale_rewards="none", loss_type=loss_type), *arguments)
    # its baseline holds the completion itself: 1 - 1/G; it divides by the 2 tokens of each
    check_proportional(found, gradient_of_objective(*arguments, 0.0), -(1 - 1 / 2) / 2)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_grpo_loss_by_hand(tiny_model, every_completion, loss_type, beta) -> None:
    policy, sampler, reference = (tiny_model(4, seed=seed) for seed in (1, 2, 3))
    every = every_completion([1], 4, 2, end=3)
    rows = [0, 3, 7, 9]  # lengths 1 and 2
    advantages = torch.tensor([1.0, -2.0, 0.5, -0.3])
    with torch.no_grad():
        new, old, other = (
            [model_rows[n] for n in rows]
            for model_rows in (every.logprobs(m) for m in (policy, sampler, reference))
        )
        batch = experience([1], [every.completions[n] for n in rows], old, other, advantages)
        config = Grpo(beta=beta, epsilon=0.1, epsilon_high=0.3, loss_type=loss_type)
        value, metrics = grpo.loss(config)(policy, batch)
    tokens: list[list[float]] = []
    clipped = 0
    for mine, before, theirs, advantage in zip(new, old, other, advantages.tolist(), strict=True):
        tokens.append([])
        for p, q, r in zip(mine.tolist(), before.tolist(), theirs.tolist(), strict=True):
            ratio = np.exp(p - q)
            clipped += not 0.9 <= ratio <= 1.3
            surrogate = min(ratio * advantage, min(max(ratio, 0.9), 1.3) * advantage)
            tokens[-1].append(-surrogate + beta * (np.exp(r - p) - 1 - (r - p)))
    of_tokens = sum(map(sum, tokens)) / sum(map(len, tokens))
    of_completions = float(np.mean([np.mean(row) for row in tokens]))
    assert abs(of_tokens - of_completions) > 0.01
    expected = of_tokens if loss_type == "dapo" else of_completions
    assert float(value) == pytest.approx(expected, abs=1e-5)
    count = sum(map(len, tokens))
    assert metrics["clip_ratio/region_mean"].value == pytest.approx(clipped / count)
    assert 0 < clipped < count


def test_grpo_standardises_unless_told_not_to() -> None:
    rewards = torch.tensor([0.0, 4.0])
    assert grpo.advantages(Grpo(scale_rewards="none"), rewards, 2).tolist() == [-2.0, 2.0]
    scaled = grpo.advantages(Grpo(), rewards, 2)
    assert scaled.tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=1e-4)
    assert grpo.rewards(Grpo(beta=9.0), rewards, rewards).tolist() == [0.0, 4.0]


def test_rloo_charges_kl_in_the_reward() -> None:
    found = rloo.rewards(Rloo(beta=0.5), torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0]))
    assert found.tolist() == [-1.0, 3.0]
    assert rloo.advantages(Rloo(), found, 2).tolist() == [-4.0, 4.0]
