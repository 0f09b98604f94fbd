"""Advantages, loss and gradients beside recordings of TRL, made by bench/peers/record_trl.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from crestline.formulas.kl import ESTIMATORS
from crestline.models.load import load_policy, load_tokenizer
from crestline.models.reference import Reference
from crestline.training.algorithms import PAGES, experience_of
from crestline.training.batches import Experience, padded
from crestline.training.direct_preference import DirectBatch, dpo_loss, encode_rankings
from crestline.training.dpo_configs import DpoLoss
from crestline.training.experience import Rollout, token_rewards
from crestline.training.rl_configs import Algorithm, Grpo, Kl, Rloo, in_loss, settled
from crestline.training.surrogate import Surrogate
from crestline.types import Ranking

RECORDED = Path(__file__).parents[1] / "fixtures" / "trl"
SHARED = json.loads((RECORDED / "recordings.json").read_text())
CASES: list[dict[str, Any]] = SHARED["cases"]
GRADIENTS = load_file(RECORDED / "gradients.safetensors")
DPO: dict[str, Any] = json.loads((RECORDED / "dpo.json").read_text())
DPO_GRADIENTS = load_file(RECORDED / "dpo_gradients.safetensors")
OURS = {"loss_type", "scale_rewards", "epsilon", "epsilon_high"}


def at_completions(values: list[list[float]], shape: torch.Size) -> Tensor:
    """Recorded numbers of completion tokens, put at their places behind the prompts."""
    placed_NT = torch.zeros(shape)
    for row, (prompt, numbers) in enumerate(zip(SHARED["prompts"], values, strict=True)):
        placed_NT[row, len(prompt) : len(prompt) + len(numbers)] = torch.tensor(numbers)
    return placed_NT


class Replay:
    """One recorded case, told to our pages."""

    def __init__(self, case: dict[str, Any]) -> None:
        settings = case["settings"]
        kind = Grpo if case["trainer"] == "grpo" else Rloo
        self.algorithm: Algorithm = kind(**{k: v for k, v in settings.items() if k in OURS})
        self.kl = settled(Kl(beta=settings.get("beta", 0.0)), self.algorithm)
        self.case, self.temperature = case, settings.get("temperature", 1.0)

    def experience(self) -> Experience:
        whole = zip(SHARED["prompts"], SHARED["completions"], strict=True)
        tokens_NT, lengths_N = padded([[*prompt, *completion] for prompt, completion in whole])
        ones = [[1.0] * len(completion) for completion in SHARED["completions"]]
        sampled_NT = at_completions(ones, tokens_NT.shape) > 0
        now_NT, old_NT, reference_NT = (
            at_completions(self.case.get(name, ones), tokens_NT.shape)
            for name in ("logprobs", "old_logprobs", "reference_logprobs")
        )
        charge_NT = torch.zeros(tokens_NT.shape)
        if self.kl.kl_place == "reward" and self.kl.beta:
            charge_NT = self.kl.beta * ESTIMATORS[self.kl.kl_estimator](now_NT, reference_NT)
        rollout = Rollout(
            tokens_NT=tokens_NT,
            lengths_N=lengths_N,
            sampled_NT=sampled_NT,
            old_logprobs_NT=old_NT,
            reference_logprobs_NT=reference_NT,
            rewards_NT=token_rewards(torch.tensor(SHARED["rewards"]), sampled_NT, charge_NT),
            values_NT=torch.zeros(tokens_NT.shape),
            truncated_N=torch.tensor([ids[-1] != 1 for ids in SHARED["completions"]]),
            group_size=SHARED["group_size"],
        )
        return experience_of(
            self.algorithm,
            rollout,
            beta=self.kl.beta if in_loss(self.kl) else 0.0,
            temperature=self.temperature,
            max_completion_length=SHARED["max_completion_length"],
        )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_advantages_loss_and_gradients_are_trls(case: dict[str, Any]) -> None:
    replay = Replay(case)
    experience = replay.experience()
    first = [len(prompt) for prompt in SHARED["prompts"]]
    for row, wanted in enumerate(case["advantages"]):
        found = float(experience.advantages_NT[row, first[row]])
        assert found == pytest.approx(wanted, abs=1e-5)

    model = load_policy(RECORDED / "model").train()
    page = PAGES[type(replay.algorithm)]
    for size in (len(case["advantages"]), SHARED["group_size"]):  # whole, and in micro-batches
        model.zero_grad()
        loss = page.loss(replay.algorithm, Surrogate(replay.kl))
        total = 0.0
        for part in experience.parts(size):
            value, _ = loss(model, part)
            value.backward()
            total += float(value.detach())
        scale = max(1.0, abs(case["loss"]))
        assert total == pytest.approx(case["loss"], abs=1e-5 * scale)
        for name, parameter in model.named_parameters():
            wanted = GRADIENTS[f"{case['case']}.{name}"]
            scale = max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(
                parameter.grad, wanted, atol=1e-5 * scale, rtol=1e-5, msg=name
            )


def test_the_recordings_can_tell_algorithms_apart() -> None:
    """Clips hold, KL is felt, and no two settings have the same gradient."""
    name = "model.embed_tokens.weight"
    found = {case["case"]: GRADIENTS[f"{case['case']}.{name}"] for case in CASES}
    same = [{"grpo_dapo", "grpo_bnpo"}]  # one update, one micro-batch: the same mean
    for left in found:
        for right in found:
            if left != right and {left, right} not in same:
                assert (found[left] - found[right]).abs().max() > 1e-3, (left, right)
    for case in CASES:
        if "stale" in case["case"]:
            now, old = (
                torch.tensor([v for row in case[key] for v in row])
                for key in ("logprobs", "old_logprobs")
            )
            ratio = torch.exp(now - old)
            assert float(ratio.min()) < 0.8 and float(ratio.max()) > 1.28


@pytest.mark.parametrize("case", DPO["cases"], ids=lambda case: case["case"])
def test_dpo_loss_gradients_and_metrics_are_trls(case: dict[str, Any]) -> None:
    texts = [(row["prompt"], row["chosen"], row["rejected"]) for row in DPO["pairs"]]
    rankings = [Ranking(prompt=p, completions=(c, r), ranks=(0, 1)) for p, c, r in texts]
    encoded, _ = encode_rankings(load_tokenizer(RECORDED / "model"), rankings, 16)
    assert [[ranking.prompt, *ranking.completions] for ranking in encoded] == DPO["ids"]

    model = load_policy(RECORDED / "model").train()
    loss = dpo_loss(DpoLoss(**case["settings"]), Reference(load_policy(RECORDED / "reference")))
    for size in (2 * len(encoded), 2):  # whole, and a pair at a time
        model.zero_grad()
        total, told = 0.0, {}
        for part in DirectBatch(encoded, len(encoded), "cpu").parts(size):
            value, metrics = loss(model, part)
            value.backward()
            total += float(value.detach())
            told = {
                name: mean + told[name] if name in told else mean for name, mean in metrics.items()
            }
        scale = max(1.0, abs(case["loss"]))
        assert total == pytest.approx(case["loss"], abs=1e-5 * scale)
        assert {n: mean.value for n, mean in told.items()} == pytest.approx(
            case["metrics"], abs=1e-5
        )
        for name, parameter in model.named_parameters():
            wanted = DPO_GRADIENTS[f"{case['case']}.{name}"]
            scale = max(1.0, float(wanted.abs().max()))
            torch.testing.assert_close(
                parameter.grad, wanted, atol=1e-5 * scale, rtol=1e-5, msg=name
            )
