"""The pages' advantages and losses against numbers worked by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crestline.models.critic import Critic
from crestline.rewards.configs import RewardSources, Shaping
from crestline.training import grpo, ppo, reinforce, rloo
from crestline.training.batches import CriticExperience, padded
from crestline.training.experience import Reuse, Rollout, as_state, from_state, token_rewards
from crestline.training.rl_configs import (
    Grpo,
    Kl,
    Ppo,
    Reinforce,
    RlConfig,
    Rloo,
    resolved,
    settled,
)
from crestline.training.surrogate import Surrogate
from crestline.types import BadInput

IN_LOSS = Surrogate(Kl(kl_estimator="k3", kl_place="loss"))


def rollout(rewards: Sequence[Sequence[float]], group_size: int) -> Rollout:
    """Completions behind a prompt of one token, with these rewards by token."""
    tokens, lengths = padded([[1, *range(len(row))] for row in rewards])
    sampled = (torch.arange(tokens.shape[1])[None] < lengths[:, None]).clone()
    sampled[:, 0] = False
    values = torch.zeros(tokens.shape)
    for row, numbers in enumerate(rewards):
        values[row, 1 : 1 + len(numbers)] = torch.tensor(numbers)
    blank = torch.zeros(tokens.shape)
    return Rollout(
        tokens_NT=tokens,
        lengths_N=lengths,
        sampled_NT=sampled,
        old_logprobs_NT=blank,
        reference_logprobs_NT=blank,
        rewards_NT=values,
        values_NT=blank,
        truncated_N=torch.zeros(len(tokens), dtype=torch.bool),
        group_size=group_size,
    )


def test_rewards_of_tokens_by_hand() -> None:
    sampled = torch.tensor([[False, True, True, False], [False, False, True, True]])
    charge = torch.tensor([[0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 4.0, -8.0]])
    found = token_rewards(torch.tensor([10.0, 20.0]), sampled, 0.5 * charge)
    assert found.tolist() == [[0, -0.5, 9.0, 0], [0, 0, -2.0, 24.0]]


def test_rloo_and_grpo_see_the_sum_of_a_completion() -> None:
    made = rollout([[1.0, -1.0], [4.0], [2.0, 2.0, 2.0], [0.0]], 2)  # 0 and 4, 6 and 0
    found = rloo.advantages(Rloo(), made)
    assert found.tolist() == [[0, -4, -4, 0], [0, 4, 0, 0], [0, 6, 6, 6], [0, -6, 0, 0]]
    none = grpo.advantages(Grpo(scale_rewards="none"), made)
    assert none[:, 1].tolist() == [-2.0, 2.0, 3.0, -3.0]
    scaled = grpo.advantages(Grpo(), made)[:, 1]
    assert scaled.tolist() == pytest.approx(
        [-(0.5**0.5), 0.5**0.5, 0.5**0.5, -(0.5**0.5)], abs=1e-4
    )
    batch = grpo.advantages(Grpo(scale_rewards="batch"), made)[:, 1]
    deviation = np.std([0, 4, 6, 0], ddof=1)
    assert batch.tolist() == pytest.approx([x / deviation for x in (-2, 2, 3, -3)], abs=1e-4)
    normal = rloo.advantages(Rloo(normalize_advantages=True), made)[:, 1]
    assert normal.tolist() == pytest.approx(
        [x / np.std([-4, 4, 6, -6], ddof=1) for x in (-4, 4, 6, -6)], abs=1e-4
    )


def test_reinforce_looks_ahead_and_standardises_over_all_tokens() -> None:
    made = rollout([[1.0, -1.0], [4.0]], 2)
    plain = reinforce.advantages(Reinforce(normalize_advantages=False), made)
    assert plain.tolist() == [[0, 0, -1.0], [0, 4.0, 0]]
    found = reinforce.advantages(Reinforce(), made)
    numbers = np.array([0, -1, 4])
    expected = (numbers - numbers.mean()) / numbers.std(ddof=1)
    assert found[made.sampled_NT].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert float(found[~made.sampled_NT].abs().sum()) == 0
    based = reinforce.advantages(Reinforce(normalize_advantages=False, baseline="group"), made)
    assert based.tolist() == [[0, -2.0, -3.0], [0, 2.0, 0]]  # the mean, 2, comes off the end


def test_ppo_returns_are_what_the_critic_should_have_said() -> None:
    made = rollout([[1.0, 2.0]], 1)
    assert ppo.returns(Ppo(lam=1.0), made).tolist() == [[0, 3.0, 2.0]]
    values = torch.tensor([[9.0, 2.0, 1.0]])
    seen = Rollout(**{**vars(made), "values_NT": values})
    # surprises: 1 + 1 - 2 = 0, 2 - 1 = 1
    assert ppo.returns(Ppo(lam=0.5), seen).tolist() == [[0, 2.5, 2.0]]
    assert ppo.returns(Ppo(lam=0.0), seen).tolist() == [[0, 2.0, 2.0]]
    plain = ppo.advantages(Ppo(lam=0.5, normalize_advantages=False), seen)
    assert plain.tolist() == [[0, 0.5, 1.0]]
    whitened = ppo.advantages(Ppo(lam=0.5), seen)
    assert whitened.tolist()[0] == pytest.approx([0, -(0.5**0.5), 0.5**0.5], abs=1e-3)


def experience(
    tokens: Tensor, lengths: Tensor, logprobs: Sequence[Tensor], references: Sequence[Tensor]
) -> CriticExperience:
    sampled, old, other = (torch.zeros(tokens.shape) for _ in range(3))
    for row, (mine, theirs) in enumerate(zip(logprobs, references, strict=True)):
        place = slice(1, 1 + len(mine))
        sampled[row, place], old[row, place], other[row, place] = 1, mine, theirs
    trained = sampled.bool()
    advantages = torch.tensor([1.0, -2.0, 0.5, -0.3])[:, None] * trained
    return CriticExperience(
        tokens_NT=tokens,
        lengths_N=lengths,
        trained_NT=trained,
        old_logprobs_NT=old,
        reference_logprobs_NT=other,
        advantages_NT=advantages,
        num_trained_tokens=int(trained.sum()),
        mean_trained_tokens=10.0,
        num_completions=4,
        max_completion_length=3,
        beta=0.5,
        values_NT=0.2 * advantages,
        returns_NT=advantages + 1,
    )


@pytest.fixture
def four(tiny_model, every_completion) -> tuple[Any, Any, CriticExperience]:
    """(policy, log-probabilities by completion, the batch): four completions, sampled by another model."""
    policy, sampler, reference = (tiny_model(4, seed=seed) for seed in (1, 2, 3))
    every = every_completion([1], 4, 2, end=3)
    rows = [0, 3, 7, 9]  # lengths 1 and 2
    with torch.no_grad():
        new, old, other = (
            [found[n] for n in rows]
            for found in (every.logprobs(model) for model in (policy, sampler, reference))
        )
    tokens, lengths = padded([[1, *every.completions[n]] for n in rows])
    return policy, (new, old, other), experience(tokens, lengths, old, other)


def by_hand(logprobs: Any, low: float, high: float, beta: float) -> tuple[list[list[float]], int]:
    """Loss of each token, and how many are clipped."""
    tokens: list[list[float]] = []
    clipped = 0
    for mine, before, theirs, a in zip(*logprobs, [1.0, -2.0, 0.5, -0.3], strict=True):
        tokens.append([])
        for p, q, r in zip(mine.tolist(), before.tolist(), theirs.tolist(), strict=True):
            ratio = np.exp(p - q)
            clipped += (ratio > 1 + high and a > 0) or (ratio < 1 - low and a < 0)
            surrogate = min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
            tokens[-1].append(-surrogate + beta * (np.exp(r - p) - 1 - (r - p)))
    return tokens, clipped


@torch.no_grad()
@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo"])
def test_grpo_loss_by_hand(four, loss_type) -> None:
    policy, logprobs, batch = four
    config = Grpo(epsilon=0.1, epsilon_high=0.3, loss_type=loss_type)
    value, metrics = grpo.loss(config, IN_LOSS)(policy, batch)
    tokens, clipped = by_hand(logprobs, 0.1, 0.3, 0.5)
    total, count = sum(map(sum, tokens)), sum(map(len, tokens))
    expected = {
        "dapo": total / 10,
        "bnpo": total / count,
        "dr_grpo": total / (4 * 3),
        "grpo": float(np.mean([np.mean(row) for row in tokens])),
    }
    assert len({round(number, 3) for number in expected.values()}) == 4
    assert float(value) == pytest.approx(expected[loss_type], abs=1e-5)
    assert metrics["clip_ratio/region_mean"].value == pytest.approx(clipped / count)
    assert 0 < clipped < count


@torch.no_grad()
@pytest.mark.parametrize("clip", [0.3, 0.0])
def test_ppo_loss_by_hand(four, clip) -> None:
    policy, logprobs, batch = four
    critic = Critic(policy)
    torch.nn.init.constant_(critic.head.bias, 0.7)
    config = Ppo(epsilon=0.1, epsilon_high=0.3, vf_coef=0.25, cliprange_value=clip)
    value, metrics = ppo.loss(config, IN_LOSS, critic)(policy, batch)
    tokens, _ = by_hand(logprobs, 0.1, 0.3, 0.5)
    errors = []
    for row, a in zip(tokens, [1.0, -2.0, 0.5, -0.3], strict=True):
        kept = 0.7
        if clip:
            kept = 0.2 * a + min(max(0.7 - 0.2 * a, -clip), clip)
        errors += [0.5 * max((0.7 - a - 1) ** 2, (kept - a - 1) ** 2)] * len(row)
    assert metrics["loss/value_avg"].value == pytest.approx(np.mean(errors), abs=1e-5)
    expected = (sum(map(sum, tokens)) + 0.25 * sum(errors)) / 10
    assert float(value) == pytest.approx(expected, abs=1e-5)
    assert metrics["val/mean"].value == pytest.approx(0.7)


def test_reuse_cuts_every_pass_anew_and_keeps_groups_whole() -> None:
    made = rollout([[float(n)] for n in range(12)], 2)
    batch = CriticExperience(
        tokens_NT=torch.arange(12)[:, None].expand(12, 3),
        lengths_N=torch.full((12,), 3),
        trained_NT=torch.ones(12, 3, dtype=torch.bool),
        old_logprobs_NT=torch.zeros(12, 3),
        reference_logprobs_NT=torch.zeros(12, 3),
        advantages_NT=torch.zeros(12, 3),
        num_trained_tokens=36,
        mean_trained_tokens=12.0,
        num_completions=12,
        max_completion_length=2,
        group_size=made.group_size,
        values_NT=torch.zeros(12, 3),
        returns_NT=torch.ones(12, 3),
    )
    reuse = Reuse(num_iterations=2, num_mini_batches=3)
    assert reuse.num_updates == 6
    assert [reuse.place(update) for update in (1, 6, 7, 12)] == [(0, 0), (0, 5), (1, 0), (1, 5)]
    parts = [reuse.batch(batch, number, seed=4) for number in range(6)]
    rows = [part.tokens_NT[:, 0].tolist() for part in parts]
    for passed in (rows[:3], rows[3:]):
        assert sorted(n for row in passed for n in row) == list(range(12))
        assert all(
            b == a + 1 and a % 2 == 0
            for row in passed
            for a, b in zip(row[::2], row[1::2], strict=True)
        )
    assert rows[:3] != rows[3:]
    for part in parts:
        assert (part.num_trained_tokens, part.mean_trained_tokens) == (12, 12.0)
        assert (part.num_completions, part.group_size) == (4, 2)
    again = from_state(as_state(batch), "cpu")
    assert isinstance(again, CriticExperience)
    assert all(
        torch.equal(value, getattr(again, name))
        if isinstance(value, Tensor)
        else value == getattr(again, name)
        for name, value in vars(batch).items()
    )
    assert Reuse(3, 1).batch(batch, 2, seed=0) is batch
    fresh = [Reuse(2, 2).batch(batch, number, seed=0).is_fresh for number in range(4)]
    assert fresh == [True, False, False, False]


def test_kl_is_settled_by_the_algorithm() -> None:
    assert settled(Kl(), Grpo()) == Kl(kl_estimator="k3", kl_place="loss")
    assert settled(Kl(), Rloo()) == Kl(kl_estimator="k1", kl_place="reward")
    assert settled(Kl(kl_place="loss"), Ppo()) == Kl(kl_estimator="k3", kl_place="loss")
    assert settled(Kl(kl_estimator="exact"), Reinforce()) == Kl(
        kl_estimator="exact", kl_place="reward"
    )
    with pytest.raises(ValueError, match="kl_estimator k1 has a gradient of zero"):
        RlConfig(algorithm=Grpo(), kl=Kl(kl_estimator="k1"))
    with pytest.raises(ValueError, match="kl_target needs a beta"):
        Kl(kl_target=3.0, beta=0.0)


def chosen(**settings: Any) -> tuple[str, float | None]:
    found = resolved(RlConfig(**settings))
    return found.shaping.reward_shaping, found.kl.beta


def test_a_reward_model_alone_is_shaped_and_charged_a_little() -> None:
    model = {"reward_model_name_or_path": "reward"}
    assert chosen(**model) == ("par", 0.01)
    assert chosen(**model, shaping=Shaping(reward_shaping="raw")) == ("raw", 0.0)
    assert chosen(**model, kl=Kl(beta=0.0)) == ("par", 0.0)
    assert chosen(**model, kl=Kl(beta=0.2), algorithm=Grpo()) == ("par", 0.2)
    both = RewardSources(reward_funcs="f.py:f")
    assert chosen(**model, reward_sources=both) == ("raw", 0.0)


def test_what_can_be_checked_is_neither_shaped_nor_charged() -> None:
    assert chosen(reward_sources=RewardSources(reward_funcs="f.py:f")) == ("raw", 0.0)
    assert chosen(reward_sources=RewardSources(remote_rm_url="http://a")) == ("raw", 0.0)
    steered = RlConfig(reward_sources=RewardSources(reward_funcs="f.py:f"), kl=Kl(kl_target=2.0))
    with pytest.raises(BadInput, match="give a --beta above 0"):
        resolved(steered)


def test_what_is_resolved_stays() -> None:
    once = resolved(RlConfig(reward_model_name_or_path="reward"))
    assert resolved(once) == once


def test_groups_that_an_algorithm_needs() -> None:
    RlConfig(algorithm=Ppo(), num_generations=1)
    RlConfig(algorithm=Reinforce(), num_generations=1)
    for algorithm in (Rloo(), Grpo(), Reinforce(baseline="group")):
        with pytest.raises(ValueError, match="num_generations must be at least 2"):
            RlConfig(algorithm=algorithm, num_generations=1)
    with pytest.raises(ValueError, match="num_prompts must be a multiple of num_mini_batches, 3"):
        RlConfig(algorithm=Grpo(num_mini_batches=3), num_prompts=4)
