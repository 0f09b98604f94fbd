"""Micro-batches, padding and untrained tokens cannot change an update."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crestline.models.critic import Critic
from crestline.models.packing import RankedTexts
from crestline.models.reward_forward import PLAIN, WAYS, Forward
from crestline.training import grpo, ppo, reinforce, rloo
from crestline.training.batches import (
    Batch,
    CriticExperience,
    Experience,
    Mean,
    TokenBatch,
    attention,
    padded,
    row_slices,
)
from crestline.training.configs import Optimization
from crestline.training.imitation import imitation_loss
from crestline.training.learner import Learner, Loss
from crestline.training.rankings import RankingBatch, ranking_loss
from crestline.training.reward_configs import RankingLoss
from crestline.training.rl_configs import Grpo, Kl, Ppo, Reinforce, Rloo
from crestline.training.surrogate import Surrogate

VOCABULARY = 12
LENGTHS = [9, 3, 5, 12, 4, 7, 3, 10, 6, 4, 11, 5]


def some_tokens(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return padded(
        [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS]
    )


def answered(lengths: Tensor, seed: int) -> Tensor:
    """True from a place inside each row to its end."""
    first = torch.tensor([1 + (n * 7 + seed) % (length - 1) for n, length in enumerate(LENGTHS)])
    place = torch.arange(max(LENGTHS))[None]
    return (place >= first[:, None]) & (place < lengths[:, None])


def token_batch(seed: int) -> TokenBatch:
    tokens, lengths = some_tokens(seed)
    trained = answered(lengths, seed)
    return TokenBatch(tokens, lengths, trained, int(trained.sum()))


def ranking_batch(seed: int) -> RankingBatch:
    tokens, lengths = some_tokens(seed)
    ranks = torch.tensor([[0, 1, 2], [1, 0, 1], [0, 0, 0], [2, 1, 0]])
    ranked = torch.ones(4, 3, dtype=torch.bool)
    ranked[1, 2] = ranked[3, 0] = False
    ids = [np.array(row[:length]) for row, length in zip(tokens.tolist(), lengths, strict=True)]
    for first in (0, 3):  # two rankings begin alike
        beginning = ids[first][:2]
        ids[first : first + 3] = [
            np.concatenate([beginning, own]) for own in ids[first : first + 3]
        ]
    return RankingBatch(
        texts=RankedTexts.of(
            [[ids[3 * n + k] for k in range(3) if ranked[n, k]] for n in range(4)]
        ),
        ranks_RK=ranks,
        ranked_RK=ranked,
        margins_R=torch.zeros(4),
        flips_R=torch.tensor([0.0, 0.1, 0.0, 0.2]),
        taught_RM=torch.tensor([[True], [True], [False], [True]]),
        num_taught_M=torch.tensor([3]),
    )


def experience(seed: int) -> CriticExperience:
    tokens, lengths = some_tokens(seed)
    sampled = answered(lengths, seed)
    generator = torch.Generator().manual_seed(seed)
    old, reference = (
        (-2 * torch.rand(tokens.shape, generator=generator) - 1) * sampled for _ in range(2)
    )
    advantages = torch.randn(tokens.shape, generator=generator) * sampled
    return CriticExperience(
        tokens_NT=tokens,
        lengths_N=lengths,
        trained_NT=sampled,
        old_logprobs_NT=old,
        reference_logprobs_NT=reference,
        advantages_NT=advantages,
        num_trained_tokens=int(sampled.sum()),
        mean_trained_tokens=int(sampled.sum()) + 1,
        num_completions=len(tokens),
        max_completion_length=11,
        beta=0.1,
        temperature=0.8,
        values_NT=0.1 * advantages.flip(0),
        returns_NT=advantages.flip(1) * sampled,
    )


def constant_within_rows(seed: int) -> Experience:
    """What RLOO trains on: one advantage for each completion."""
    batch = experience(seed)
    first = batch.trained_NT.long().argmax(1, keepdim=True)
    return replace(batch, advantages_NT=batch.advantages_NT.gather(1, first) * batch.trained_NT)


def in_loss(estimator: str = "k3") -> Surrogate:
    return Surrogate(Kl(beta=0.1, kl_estimator=estimator, kl_place="loss"))  # type: ignore[arg-type]


IN_REWARD = Surrogate(Kl(kl_estimator="k1", kl_place="reward"))


def ppo_loss(model: Any, part: CriticExperience) -> Any:
    """With a critic whose values are a fixed function of the tokens' embeddings."""
    critic = Critic(copy.deepcopy(model))
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(5))
    return ppo.loss(Ppo(), IN_REWARD, critic)(model, part)


BY_NAME = {way.name: way for way in WAYS}
CENTRED = RankingLoss(center_rewards_coefficient=0.1)
CASES: dict[str, tuple[Callable[[int], Batch], Loss]] = {
    "imitation": (token_batch, imitation_loss),
    "ranking padded": (ranking_batch, ranking_loss(CENTRED, PLAIN)),
    "ranking, our Llama": (ranking_batch, ranking_loss(CENTRED, BY_NAME["llama"])),
    "ranking by pairs": (ranking_batch, ranking_loss(RankingLoss(loss_type="pairwise"), PLAIN)),
    "ranking packed": (ranking_batch, ranking_loss(CENTRED, BY_NAME["packed decoder"])),
    "rloo": (constant_within_rows, rloo.loss(Rloo(), IN_REWARD)),
    "rloo with k2": (constant_within_rows, rloo.loss(Rloo(), in_loss("k2"))),
    "reinforce": (experience, reinforce.loss(Reinforce(), IN_REWARD)),
    "ppo": (experience, ppo_loss),
    **{
        f"grpo {kind}": (experience, grpo.loss(Grpo(loss_type=kind), in_loss()))  # type: ignore[arg-type]
        for kind in ("dapo", "grpo", "dr_grpo", "bnpo")
    },
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tiny_model, tiny_scorer) -> tuple[Any, Any, Loss]:
    """(a builder of the model, a builder of batches, the loss)."""
    batches, loss = CASES[request.param]
    build = tiny_scorer if request.param.startswith("ranking") else tiny_model
    return lambda: build(VOCABULARY), batches, loss


def trained(case: Any, size: int, updates: int) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    build, batches, loss = case
    config = Optimization(learning_rate=1e-3, micro_batch_size=size, dtype="float32")
    learner = Learner(build(), config, updates)
    metrics = [learner.update(batches(seed), loss, seed) for seed in range(1, updates + 1)]
    return metrics, learner.state() | dict(learner.model.state_dict())


@pytest.mark.parametrize("size", [1, 3, 7])
def test_micro_batches_change_nothing(case, size: int) -> None:
    metrics, tensors = trained(case, size, updates=2)
    expected_metrics, expected = trained(case, 100, updates=2)
    for found, wanted in zip(metrics, expected_metrics, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5, rel=1e-5)
        assert wanted["grad_norm"] > 0.01
    for name, value in expected.items():
        if not name.startswith("exp_avg"):  # weights: a step of Adam blows rounding up
            torch.testing.assert_close(tensors[name], value, atol=5e-5, rtol=0, msg=name)
        else:
            torch.testing.assert_close(tensors[name], value, atol=1e-6, rtol=1e-3, msg=name)


def gradient(case: Any, batch: Batch) -> tuple[float, list[Tensor]]:
    model = case[0]()
    value, _ = case[2](model, batch)
    value.backward()
    return float(value.detach()), [parameter.grad for parameter in model.parameters()]


# not of rankings: transformers finds the last token of a scored text by the pad id
@pytest.mark.parametrize("case", [name for name in CASES if "ranking" not in name], indirect=True)
def test_what_stands_in_the_padding_changes_nothing(case) -> None:
    batch = case[1](1)
    real = attention(batch.lengths_N, max(LENGTHS)).bool()
    noise = torch.randint_like(batch.tokens_NT, 1, VOCABULARY)
    noisy = replace(batch, tokens_NT=torch.where(real, batch.tokens_NT, noise))
    (value, grads), (again, others) = gradient(case, batch), gradient(case, noisy)
    assert again == pytest.approx(value, abs=1e-6)
    for mine, theirs in zip(grads, others, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def plain_logprobs(model: Any, row: Tensor, temperature: float) -> Tensor:
    """Of each token after the first, from the row alone."""
    logits = model(row[None]).logits[0, :-1] / temperature
    return logits.log_softmax(-1).gather(1, row[1:, None])[:, 0]


@torch.no_grad()
def test_imitation_loss_by_hand(tiny_model) -> None:
    model, batch = tiny_model(VOCABULARY), token_batch(1)
    total = 0.0
    for row, length, trained in zip(
        batch.tokens_NT, batch.lengths_N, batch.trained_NT, strict=True
    ):
        logprobs = plain_logprobs(model, row[:length], 1.0)
        total -= float(logprobs[trained[1:length]].sum())
    value, metrics = imitation_loss(model, batch)
    assert float(value) == pytest.approx(total / batch.num_trained_tokens, abs=1e-5)
    assert metrics["mean_token_accuracy"].count == batch.num_trained_tokens


@torch.no_grad()
def test_rloo_loss_by_hand(tiny_model) -> None:
    model, batch = tiny_model(VOCABULARY), constant_within_rows(1)
    total, low, high = 0.0, 0, 0
    for n, length in enumerate(LENGTHS):
        logprobs = plain_logprobs(model, batch.tokens_NT[n, :length], batch.temperature)
        whole = float(logprobs[batch.trained_NT[n, 1:length]].sum())
        ratio = math.exp(whole - float(batch.old_logprobs_NT[n].sum()))
        advantage = float(batch.advantages_NT[n, batch.trained_NT[n]][0])
        total -= min(ratio * advantage, min(max(ratio, 0.7), 1.2) * advantage)
        low += ratio < 0.7 and advantage < 0
        high += ratio > 1.2 and advantage > 0
    config = Rloo(epsilon=0.3, epsilon_high=0.2)
    value, metrics = rloo.loss(config, IN_REWARD)(model, batch)
    assert float(value) == pytest.approx(total / len(LENGTHS), rel=1e-4)
    assert metrics["clip_ratio/low_mean"].value == low / 12
    assert metrics["clip_ratio/high_mean"].value == high / 12
    assert metrics["clip_ratio/region_mean"].value == (low + high) / 12 > 0


@pytest.mark.parametrize("page", ["rloo", "grpo", "reinforce"])
def test_fresh_samples_are_weighed_alike_whatever_the_samplers_rounding(tiny_model, page) -> None:
    """The gradient is that of advantage times log-probability: nothing is clipped, no ratio is off 1."""
    model, batch = tiny_model(VOCABULARY), constant_within_rows(1)
    losses = {
        "rloo": rloo.loss(Rloo(epsilon=0.01, epsilon_high=0.01), IN_REWARD),
        "grpo": grpo.loss(Grpo(epsilon=0.01, epsilon_high=0.01), IN_REWARD),
        "reinforce": reinforce.loss(Reinforce(epsilon=0.01, epsilon_high=0.01), IN_REWARD),
    }
    value, metrics = losses[page](model, replace(batch, is_fresh=True))
    found = torch.autograd.grad(value, list(model.parameters()))
    assert metrics["clip_ratio/region_mean"].value == 0
    assert metrics["sampling/logprob_difference"].value > 0.05
    divisor = batch.num_completions if page == "rloo" else batch.mean_trained_tokens
    total = torch.zeros(())
    for n, length in enumerate(LENGTHS):
        row = batch.tokens_NT[n, :length]
        logits = model(row[None]).logits[0, :-1] / batch.temperature
        logprobs = logits.log_softmax(-1).gather(1, row[1:, None])[:, 0]
        trained = batch.trained_NT[n, 1:length]
        total = total - (logprobs * batch.advantages_NT[n, 1:length])[trained].sum() / divisor
    expected = torch.autograd.grad(total, list(model.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_a_critics_values_are_float32_under_autocast(tiny_model) -> None:
    critic = Critic(tiny_model(VOCABULARY))
    torch.nn.init.constant_(critic.head.bias, 10.1)
    batch = constant_within_rows(1)
    asked = (batch.tokens_NT, batch.lengths_N, batch.trained_NT)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        values = critic.values_before(*asked)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, torch.full_like(values, 10.1))


@torch.no_grad()
@pytest.mark.parametrize(
    "way", [PLAIN, BY_NAME["llama"], BY_NAME["packed decoder"]], ids=lambda way: way.name
)
def test_ranking_loss_and_metrics_by_hand(tiny_scorer, way) -> None:
    model, batch = tiny_scorer(VOCABULARY), ranking_batch(1)
    a, b, c, d, e, *_, k, m = (
        float(model(torch.tensor(ids)[None]).logits) for ids in batch.texts.ids
    )
    # 0 1 2 | 1 0 and not ranked, flipped in 1 of 10 | teaches nobody | not ranked, 1 0, flipped in 2 of 10
    losses = [
        -math.log(math.exp(a) / sum(map(math.exp, (a, b, c))))
        - math.log(math.exp(b) / (math.exp(b) + math.exp(c))),
        -math.log(0.8 / (1 + math.exp(d - e)) + 0.1),
        -math.log(0.6 / (1 + math.exp(k - m)) + 0.2),
    ]
    value, metrics = ranking_loss(RankingLoss(), way)(model, batch)
    assert float(value) == pytest.approx(sum(losses) / 3, abs=1e-5)
    penalties = [2 * (a + b + c) / 3, d + e, k + m]
    centred = ranking_loss(CENTRED, way)(model, batch)[0] - value
    assert float(centred) == pytest.approx(0.1 * sum(p**2 for p in penalties) / 3, abs=1e-5)
    margins = [a - b, a - c, b - c, e - d, m - k]
    assert metrics["margin"].value == pytest.approx(sum(margins) / 5, abs=1e-5)
    assert metrics["accuracy"].value == sum(margin > 0 for margin in margins) / 5


def test_each_head_learns_from_its_own_rankings() -> None:
    scores = torch.randn(10, 2, requires_grad=True, generator=torch.Generator().manual_seed(0))
    given = Forward("given", lambda model, texts: scores, shares=False)
    taught = torch.tensor([[True, False], [True, True], [False, True], [False, True]])
    batch = replace(
        ranking_batch(1),
        taught_RM=taught,
        num_taught_M=taught.sum(0),
        flips_R=torch.zeros(4),
        margins_R=torch.tensor([0.0, 0.5, 0.0, 0.0]),
    )
    value, _ = ranking_loss(RankingLoss(ties="equal"), given)(None, batch)
    (gradient,) = torch.autograd.grad(value, scores)
    first, second = scores.detach().T
    losses = [
        [
            -first[:3].log_softmax(0)[0] - first[1:3].log_softmax(0)[0],
            -F.logsigmoid(first[4] - first[3] - 0.5),
        ],
        [
            -F.logsigmoid(second[4] - second[3] - 0.5),
            -second[5:8].log_softmax(0).sum(),
            -F.logsigmoid(second[9] - second[8]),
        ],
    ]
    expected = sum(losses[0]) / 2 / 2 + sum(losses[1]) / 3 / 2
    torch.testing.assert_close(value.detach(), expected)
    assert gradient[5:, 0].eq(0).all() and gradient[:3, 1].eq(0).all()


@pytest.mark.parametrize("size", [1, 5, 12])
def test_parts_are_cut_to_their_longest_row_and_keep_the_denominators(size: int) -> None:
    parts = list(experience(2).parts(size))
    whole = experience(2)
    assert sum(len(part.tokens_NT) for part in parts) == len(LENGTHS)
    assert sum(int(part.trained_NT.sum()) for part in parts) == whole.num_trained_tokens
    for part in parts:
        assert part.tokens_NT.shape[1] == int(part.lengths_N.max())
        assert part.num_trained_tokens == whole.num_trained_tokens
        assert (part.num_completions, part.temperature) == (12, 0.8)


@pytest.mark.parametrize(
    ("size", "rows", "groups"),
    [(8, [8, 4], 4), (5, [4, 4, 4], 4), (4, [4] * 3, 4), (3, [2] * 6, 2), (1, [1] * 12, 1)],
)
def test_parts_are_whole_groups_or_even_shares_of_one(size, rows, groups) -> None:
    parts = list(replace(experience(2), group_size=4).parts(size))
    assert [len(part.tokens_NT) for part in parts] == rows
    assert {part.group_size for part in parts} == {groups}


def test_long_rows_go_through_in_smaller_parts_but_groups_stay_together() -> None:
    width = 700
    batch = TokenBatch(
        tokens_NT=torch.zeros(7, width, dtype=torch.long),
        lengths_N=torch.full((7,), width),
        trained_NT=torch.ones(7, width, dtype=torch.bool),
        num_trained_tokens=7 * width,
    )
    assert [len(part.tokens_NT) for part in batch.parts(100)] == [2, 2, 2, 1]
    assert [len(part.tokens_NT) for part in batch.parts(1)] == [1] * 7
    shapes = {"tokens_NT": torch.long, "trained_NT": torch.bool}
    long = replace(
        experience(2),
        **{name: torch.zeros(12, width, dtype=dtype) for name, dtype in shapes.items()},
        lengths_N=torch.full((12,), width),
        group_size=4,
    )
    assert [len(part.tokens_NT) for part in long.parts(100)] == [4, 4, 4]
    assert [len(part.tokens_NT) for part in long.parts(3)] == [2] * 6


def test_rankings_are_never_torn() -> None:
    parts = list(ranking_batch(1).parts(7))
    assert [len(part.ranks_RK) for part in parts] == [2, 2]
    assert sorted(len(part.texts.ids) for part in parts) == [5, 5]
    assert [len(part.ranks_RK) for part in ranking_batch(1).parts(1)] == [1, 1, 1, 1]
    assert sum(part.texts.num_tokens for part in parts) == ranking_batch(1).texts.num_tokens


def test_long_rankings_go_through_in_parts_of_bounded_size() -> None:
    lengths = [(1500, 1500), (10, 20), (2000, 2000), (30, 3000), (6000, 1)]
    batch = RankingBatch(
        texts=RankedTexts.of(
            [[np.zeros(length, dtype=int) for length in pair] for pair in lengths]
        ),
        ranks_RK=torch.tensor([[0, 1]] * 5),
        ranked_RK=torch.ones(5, 2, dtype=torch.bool),
        margins_R=torch.arange(5.0),
        flips_R=torch.zeros(5),
        taught_RM=torch.ones(5, 1, dtype=torch.bool),
        num_taught_M=torch.tensor([5]),
    )
    parts = list(batch.parts(100))
    assert [part.margins_R.tolist() for part in parts] == [[4], [2], [3], [0, 1]]
    assert [part.texts.num_tokens for part in parts] == [6001, 4000, 3030, 3030]
    assert all(part.num_taught_M.tolist() == [5] for part in parts)


def test_means_add_exactly_and_a_mean_of_nothing_is_nan() -> None:
    assert (Mean(3.0, 2) + Mean(1.0, 6)).value == 0.5
    assert (Mean(0.0, 0) + Mean(0.0, 0)).value != Mean(0.0, 0).value


def test_row_slices_cover_every_row_once() -> None:
    assert [list(range(7))[part] for part in row_slices(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(row_slices(0, 3)) == []


def test_padded_and_attention_by_hand() -> None:
    tokens, lengths = padded([[5], [6, 7, 8]], fill=9)
    assert tokens.tolist() == [[5, 9, 9], [6, 7, 8]]
    assert attention(lengths, 3).tolist() == [[1, 0, 0], [1, 1, 1]]
