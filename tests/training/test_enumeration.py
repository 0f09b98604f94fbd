"""Exact KL and expected gradients against every completion that a tiny policy can write."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crestline.formulas.kl import ESTIMATORS
from crestline.models.critic import Critic
from crestline.models.reference import Reference
from crestline.training import configs, evaluation
from crestline.training.algorithms import PAGES, experience_of
from crestline.training.batches import padded
from crestline.training.evaluation import exact_kl, exact_token_kl
from crestline.training.experience import Rollout, token_rewards
from crestline.training.rl_configs import (
    Algorithm,
    Grpo,
    Kl,
    Ppo,
    Reinforce,
    Rloo,
    in_loss,
    settled,
)
from crestline.training.surrogate import Surrogate
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
    asked = policy, Reference(reference), prompts, completions
    found = exact_kl(*asked, 7, temperature=temperature)
    assert kl > 0.3
    assert np.dot(found[0], weights) == pytest.approx(kl, abs=1e-5)
    assert np.dot(found[1], weights) == pytest.approx(entropy, abs=1e-5)
    assert min(found[0]) > -1e-6
    whole = exact_kl(*asked, 1000, temperature=temperature)
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_exact_kl_takes_no_more_rows_at_once_than_training(
    tiny_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of a checkpoint's answers is bounded as that of an update is: by tokens."""
    policy, shapes = tiny_model(6), list[tuple[int, ...]]()

    def watched(*asked: Any, **others: Any) -> Any:
        shapes.append(tuple(asked[2].shape))
        return exact_token_kl(*asked, **others)

    monkeypatch.setattr(evaluation, "exact_token_kl", watched)
    monkeypatch.setitem(configs.TOKENS_TOGETHER, "cpu", 64)
    rows = [as_completion([1 + n % 4] * 14) for n in range(20)]
    exact_kl(policy, Reference(policy), [[1, 2]] * 20, rows, 128)
    assert shapes == [(4, 16)] * 5


def test_exact_kl_to_itself_is_zero(tiny_model, every_completion) -> None:
    policy = tiny_model(6)
    every = every_completion([1, 2], 6, 2, end=5)
    rows = [as_completion(tokens) for tokens in every.completions]
    kl, _ = exact_kl(policy, Reference(policy), [[1, 2]] * len(rows), rows, 10)
    assert max(map(abs, kl)) < 1e-6


class World:
    """A policy, a reference and every completion of one prompt, each with a score."""

    def __init__(self, policy: Any, reference: Any, every: Any, temperature: float = 1.0) -> None:
        self.policy, self.reference, self.every = policy, reference, every
        self.temperature = temperature
        generator = torch.Generator().manual_seed(3)
        self.scores = torch.randn(len(every.completions), generator=generator) + 2
        with torch.no_grad():
            self.sampled = self.logprobs(policy), self.logprobs(reference)

    def logprobs(self, model: Any) -> list[Tensor]:
        found: list[Tensor] = self.every.logprobs(model, self.temperature)
        return found

    def rollout(self, rows: Sequence[int], kl: Kl, values: Callable[..., Tensor] | None) -> Rollout:
        """What RL would make of these completions; a completion that does not end ran out of room."""
        prompt = self.every.prompt
        completions = [self.every.completions[n] for n in rows]
        tokens, lengths = padded([[*prompt, *completion] for completion in completions])
        sampled = torch.zeros(tokens.shape, dtype=torch.bool)
        own, other = torch.zeros(tokens.shape), torch.zeros(tokens.shape)
        for found, every in zip((own, other), self.sampled, strict=True):
            for row, n in enumerate(rows):
                place = slice(len(prompt), len(prompt) + len(every[n]))
                sampled[row, place] = True
                found[row, place] = every[n]
        charge = torch.zeros(tokens.shape)
        if kl.kl_place == "reward" and kl.kl_estimator == "exact":
            place = tokens, lengths, sampled
            models = self.policy, Reference(self.reference)
            charge = exact_token_kl(*models, *place, temperature=self.temperature)[0]
        elif kl.kl_place == "reward":
            charge = ESTIMATORS[kl.kl_estimator](own, other)
        return Rollout(
            tokens_NT=tokens,
            lengths_N=lengths,
            sampled_NT=sampled,
            old_logprobs_NT=own,
            reference_logprobs_NT=other,
            rewards_NT=token_rewards(self.scores[list(rows)], sampled, kl.beta * charge),
            values_NT=values(tokens) * sampled if values else torch.zeros(tokens.shape),
            truncated_N=torch.tensor([completion[-1] != 2 for completion in completions]),
            group_size=len(rows),
        )

    def loss(
        self,
        algorithm: Algorithm,
        rows: Sequence[int],
        kl: Kl | None = None,
        values: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """The algorithm's loss on a group of these completions, sampled by the policy as it is."""
        kl = settled(kl or Kl(beta=0.0), algorithm)
        rollout = self.rollout(rows, kl, values)
        beta = kl.beta if in_loss(kl) else 0.0
        batch = experience_of(
            algorithm, rollout, beta=beta, temperature=self.temperature, max_completion_length=2
        )
        page = PAGES[type(algorithm)]
        beside = [Critic(self.reference)] if page.returns else []
        surrogate = Surrogate(kl, Reference(self.reference))
        value: Tensor = page.loss(algorithm, surrogate, *beside)(self.policy, batch)[0]
        return value

    def expected_gradient(self, algorithm: Algorithm, group: int, **changes: Any) -> list[Tensor]:
        """Mean gradient of the loss over all groups that the policy could sample."""
        own = torch.stack([row.sum() for row in self.sampled[0]])
        total = torch.zeros(())
        for rows in itertools.product(range(len(own)), repeat=group):
            total = total + self.loss(algorithm, rows, **changes) * float(
                own[list(rows)].sum().exp()
            )
        return self.gradient(total)

    def gradient(self, value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, list(self.policy.parameters())))

    def gradient_of_objective(self, beta: float = 0.0) -> list[Tensor]:
        """Of E[score] - beta KL(policy‖reference), summed over every completion."""
        own = torch.stack([row.sum() for row in self.logprobs(self.policy)])
        other = torch.stack([row.sum() for row in self.sampled[1]])
        return self.gradient((own.exp() * (self.scores - beta * (own - other))).sum())


@pytest.fixture
def world(tiny_model, every_completion) -> Callable[..., World]:
    """(end, temperature): three tokens, at most two of them; end 2 ends early, None never."""

    def build(end: int | None = 2, temperature: float = 1.0) -> World:
        every = every_completion([1, 0], 3, 2, end=end)
        return World(tiny_model(3, seed=1), tiny_model(3, seed=2), every, temperature)

    return build


def check_proportional(
    found: list[Tensor], exact: list[Tensor], factor: float, tolerance: float = 2e-6
) -> None:
    for mine, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, factor * theirs, atol=tolerance, rtol=1e-3)
    assert max(float(gradient.abs().max()) for gradient in exact) > 1e-2


CHARGES = [
    (Kl(beta=0.0), 1.0),
    (Kl(beta=0.3), 1.0),
    (Kl(beta=0.3), 0.7),
    (Kl(beta=0.3, kl_estimator="exact"), 1.0),
    (Kl(beta=0.3, kl_estimator="exact"), 0.7),
]


@pytest.mark.parametrize(("kl", "temperature"), CHARGES)
def test_expected_rloo_gradient_is_the_exact_policy_gradient(world, kl, temperature) -> None:
    little = world(temperature=temperature)
    found = little.expected_gradient(Rloo(), 2, kl=kl)
    check_proportional(found, little.gradient_of_objective(kl.beta), -1.0)


@pytest.mark.parametrize(("kl", "temperature"), CHARGES)
def test_expected_reinforce_gradient_is_the_exact_policy_gradient(world, kl, temperature) -> None:
    little = world(end=None, temperature=temperature)
    found = little.expected_gradient(Reinforce(normalize_advantages=False), 1, kl=kl)
    # it divides by the 2 tokens of each completion
    check_proportional(found, little.gradient_of_objective(kl.beta), -1 / 2)


def test_the_baseline_of_reinforce_shortens_the_gradient_and_nothing_else(world) -> None:
    little, kl = world(end=None), Kl(beta=0.3)
    algorithm = Reinforce(normalize_advantages=False, baseline="group")
    found = little.expected_gradient(algorithm, 2, kl=kl)
    check_proportional(found, little.gradient_of_objective(0.3), -(1 - 1 / 2) / 2)


@pytest.mark.parametrize(("kl", "temperature"), CHARGES)
@pytest.mark.parametrize("expects", [0.0, 5.0])
def test_expected_ppo_gradient_is_the_exact_one_whatever_its_critic(
    world, kl, temperature, expects
) -> None:
    little = world(end=None, temperature=temperature)

    def values(tokens: Tensor) -> Tensor:
        """Of the prompt and the tokens before; a critic cannot see the token itself."""
        before = tokens.cumsum(1) - tokens
        return expects * torch.sin(1.0 + before)

    algorithm = Ppo(lam=1.0, normalize_advantages=False, vf_coef=1e-9)
    found = little.expected_gradient(algorithm, 1, kl=kl, values=values)
    check_proportional(found, little.gradient_of_objective(kl.beta), -1 / 2)


def test_ppo_of_one_epoch_without_clipping_is_reinforce_with_a_baseline(world) -> None:
    little, rows = world(), [0, 2, 5]

    def values(tokens: Tensor) -> Tensor:
        return 0.3 * torch.arange(tokens.shape[1]) - 0.1 * tokens.cumsum(1) + 0.1 * tokens

    algorithm = Ppo(
        num_iterations=1, lam=1.0, epsilon=1e9, epsilon_high=1e9, normalize_advantages=False
    )
    kl = Kl(beta=0.3)
    found = little.gradient(little.loss(replace(algorithm, vf_coef=1e-9), rows, kl, values))
    total, count = torch.zeros(()), 0
    own, other = little.logprobs(little.policy), little.logprobs(little.reference)
    for n in rows:
        completion = little.every.completions[n]
        for t in range(len(completion)):
            seen = torch.tensor([[*little.every.prompt, *completion]])
            value = float(values(seen)[0, 2 + t])
            charged = float((own[n] - other[n])[t:].sum().detach())
            advantage = float(little.scores[n]) - 0.3 * charged - value
            total, count = total - advantage * own[n][t], count + 1
    for mine, theirs in zip(found, little.gradient(total / count), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_expected_grpo_gradient_points_where_the_exact_one_does(world, loss_type) -> None:
    little = world(end=None)
    algorithm = Grpo(scale_rewards="none", loss_type=loss_type)
    found = little.expected_gradient(algorithm, 2)
    # its baseline holds the completion itself: 1 - 1/G; it divides by the 2 tokens of each
    check_proportional(found, little.gradient_of_objective(), -(1 - 1 / 2) / 2)


def direction_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Sine of the angle between two gradients."""
    first, second = (torch.cat([part.flatten() for part in side]) for side in (found, exact))
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=0)
    return float((1 - cosine**2).clamp_min(0).sqrt())


def test_only_dr_grpo_keeps_the_direction_where_lengths_differ(world) -> None:
    little = world(end=2)
    exact = little.gradient_of_objective()
    errors = {
        kind: direction_error(
            little.expected_gradient(Grpo(scale_rewards="none", loss_type=kind), 2), exact
        )
        for kind in ("dapo", "grpo", "bnpo", "dr_grpo")
    }
    assert errors["dr_grpo"] < 1e-3
    assert min(errors[kind] for kind in ("dapo", "grpo", "bnpo")) > 0.02
    found = little.expected_gradient(Grpo(scale_rewards="none", loss_type="dr_grpo"), 2)
    check_proportional(found, exact, -(1 - 1 / 2) / 2)  # max_completion_length is 2


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_scaled_rewards_weigh_a_pair_by_its_order_alone(world, scale) -> None:
    """With two completions, standardised advantages are ±1/√2: the exact gradient of how often the better wins."""
    little = world(end=None)
    found = little.expected_gradient(Grpo(scale_rewards=scale), 2)
    own = torch.stack([row.sum() for row in little.logprobs(little.policy)]).exp()
    with torch.no_grad():
        fixed = own.clone()
    better = torch.sign(little.scores[:, None] - little.scores[None])
    wins = (own[:, None] * fixed[None] * better).sum()
    # within the 1e-4 that is added to a deviation
    check_proportional(found, little.gradient(wins), -(0.5**0.5) / 2, tolerance=2e-4)


def test_truncated_completions_leave_the_loss_and_stay_in_the_mean(world) -> None:
    little = world(end=2)
    rows = [0, 2, 3]  # the ending ones are 0 and those that end with 2
    ended = [little.every.completions[n][-1] == 2 for n in rows]
    assert any(ended) and not all(ended)
    config = Grpo(scale_rewards="none", loss_type="dr_grpo", mask_truncated_completions=True)
    found = little.gradient(little.loss(config, rows))
    scores = little.scores[rows]
    total = torch.zeros(())
    for n, advantage, keeps in zip(rows, scores - scores.mean(), ended, strict=True):
        if keeps:
            total = total - advantage * little.logprobs(little.policy)[n].sum()
    for mine, theirs in zip(found, little.gradient(total / (3 * 2)), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def gradient_of_state_kl(little: World, *, forward: bool) -> list[Tensor]:
    """Of the mean over the policy's samples of the KL at each of their states, states held fixed."""
    own = little.logprobs(little.policy)
    with torch.no_grad():
        weights = [float(row.sum().exp()) for row in own]
    total = torch.zeros(())
    for weight, completion in zip(weights, little.every.completions, strict=True):
        ids = torch.tensor([[*little.every.prompt, *completion]])
        start = len(little.every.prompt) - 1
        mine = (little.policy(ids).logits[0, start:-1] / little.temperature).log_softmax(-1)
        with torch.no_grad():
            theirs = (little.reference(ids).logits[0, start:-1] / little.temperature).log_softmax(
                -1
            )
        pair = (theirs, mine) if forward else (mine, theirs)
        total = total + weight * (pair[0].exp() * (pair[0] - pair[1])).sum()
    return little.gradient(total)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(
    ("estimator", "forward"), [("k2", False), ("exact", False), ("k3", True)], ids=str
)
def test_expected_gradients_of_kl_in_the_loss(world, estimator, forward, temperature) -> None:
    little = world(end=None, temperature=temperature)
    algorithm = Reinforce(normalize_advantages=False)
    plain = little.expected_gradient(algorithm, 1)
    kl = Kl(beta=1.0, kl_estimator=estimator, kl_place="loss")
    charged = little.expected_gradient(algorithm, 1, kl=kl)
    found = [mine - theirs for mine, theirs in zip(charged, plain, strict=True)]
    check_proportional(found, gradient_of_state_kl(little, forward=forward), 1 / 2)


def test_k1_has_no_gradient_in_the_loss(world) -> None:
    little = world(end=None)
    own, other = (little.logprobs(model) for model in (little.policy, little.reference))
    weights = [float(row.sum().exp().detach()) for row in own]
    k1 = sum(
        weight * (mine - theirs.detach()).sum()
        for weight, mine, theirs in zip(weights, own, other, strict=True)
    )
    assert max(float(gradient.abs().max()) for gradient in little.gradient(k1)) < 1e-6
    with pytest.raises(ValueError, match="zero on average"):
        Kl(kl_estimator="k1", kl_place="loss")


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_means_of_the_estimators(world, temperature) -> None:
    little = world(temperature=temperature)
    own, other = (little.logprobs(model) for model in (little.policy, little.reference))
    weights = torch.stack([row.sum() for row in own]).exp()
    exact = float(sum(w * (a - b).sum() for w, a, b in zip(weights, own, other, strict=True)))
    means = {
        name: float(sum(w * k(a, b).sum() for w, a, b in zip(weights, own, other, strict=True)))
        for name, k in ESTIMATORS.items()
    }
    kl = Kl(beta=1.0, kl_estimator="exact", kl_place="reward")
    rollout = little.rollout(range(len(own)), kl, None)
    charged = little.scores - rollout.rewards_N
    assert exact > 0.1
    assert float(weights @ charged) == pytest.approx(exact, abs=1e-5)
    assert means["k1"] == pytest.approx(exact, abs=1e-5)
    assert means["k3"] == pytest.approx(exact, abs=1e-5)
    assert abs(means["k2"] - exact) > 1e-2
