"""Where RL's batches come from: samples, scores and looks at the reference, turned into experience.

Owns one set of samples at a time and what later updates depend on: the weight of KL, the samples in use, the critic.
Which advantages come out is the algorithm's page; when checkpoints are kept is the grid's.

Letters: N completions, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crestline.formulas.kl import ESTIMATORS, adapted_beta, kl_k1
from crestline.models.critic import Critic
from crestline.models.policy import token_logprobs
from crestline.models.reference import Reference
from crestline.rewards.shaped import Shaper
from crestline.rewards.sources import Judgement, Reward
from crestline.runs.folder import RunFolder
from crestline.runs.tables import write_table
from crestline.training.algorithms import PAGES, experience_of, reuse_of
from crestline.training.arithmetic import arithmetic
from crestline.training.batches import Experience, padded, row_slices
from crestline.training.configs import rows_together
from crestline.training.evaluation import exact_token_kl
from crestline.training.experience import Rollout, as_state, from_state, token_rewards
from crestline.training.rl_configs import RlConfig, in_loss
from crestline.training.seeds import Shuffled, stream
from crestline.types import Completion, Prompt, PromptText, Sampler

REFERENCE_EVERY = 2
"""Sets of samples between looks at the reference when nothing needs its KL; the distance grid needs no more."""


@dataclass(frozen=True)
class Cast:
    """Who takes part in RL. critic: None where the algorithm has none.

    reference_sampler: samples from the reference; None where its scores are not needed.
    """

    policy: Any
    reference: Reference
    sampler: Sampler
    reference_sampler: Sampler | None
    reward: Reward
    critic: Critic | None


class RlSource:
    """Samples, scores and values completions: the batches of RL."""

    def __init__(
        self, config: RlConfig, folder: RunFolder, cast: Cast, prompts: Sequence[Prompt]
    ) -> None:
        self.config, self.folder, self.cast, self.prompts = config, folder, cast, prompts
        self.page, self.reuse = PAGES[type(config.algorithm)], reuse_of(config.algorithm)
        self.kl = config.kl
        self.order = Shuffled(len(prompts), stream(config.seed, "prompts"))
        self.shaper = Shaper(config.shaping, cast.reward.calibration.temperature)
        width = config.shaping.num_reference_completions if self.shaper.compares else 0
        self.reference_scores_RM = torch.full((len(prompts), width), float("nan"))
        if self.kl.beta is None:
            raise ValueError("the config is not resolved")
        self.beta = self.kl.beta
        self.held: Experience | None = None  # the samples in use, where several updates share them

    def batch(self, update: int) -> tuple[Experience, dict[str, float]]:
        """What this update trains on; the first update of a set of samples makes it."""
        number, piece = self.reuse.place(update)
        metrics: dict[str, float] = {}
        if piece == 0 or self.held is None:
            self.held, metrics = self.sampled(update, number)
        batch = self.reuse.batch(self.held, piece, stream(self.config.seed, "reuse", number))
        if piece == self.reuse.num_updates - 1:
            self.held = None
        return batch, metrics

    def state(self) -> dict[str, Any]:
        held = as_state(self.held) if self.held else {}
        critic = self.cast.critic.tensors() if self.cast.critic else {}
        return {
            "beta": self.beta,
            "given_beta": self.kl.beta,
            "reference_scores": self.reference_scores_RM,
            **{f"shaper.{name}": value for name, value in self.shaper.state().items()},
            **{f"held.{name}": value for name, value in held.items()},
            **{f"critic.{name}": value for name, value in critic.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        if self.kl.kl_target and state.get("given_beta", self.kl.beta) == self.kl.beta:
            self.beta = state["beta"]
        self.reference_scores_RM = state["reference_scores"]
        self.shaper.load(under("shaper", state))
        held = under("held", state)
        self.held = from_state(held, self.device) if held else None
        if self.cast.critic:
            self.cast.critic.load(under("critic", state))

    @property
    def device(self) -> torch.device:
        found: torch.device = next(self.cast.policy.parameters()).device
        return found

    # ---- a new set of samples ------------------------------------------------

    def sampled(self, update: int, number: int) -> tuple[Experience, dict[str, float]]:
        """Experience from new completions of the next prompts, and what there is to say of them."""
        config, group = self.config, self.config.num_generations
        rows = self.order.rows(number * config.num_prompts, config.num_prompts)
        prompts = [self.prompts[row] for row in rows for _ in range(group)]
        texts = [prompt.text for prompt in prompts]
        seeds = [stream(config.seed, "sample", update, n) for n in range(len(prompts))]
        completions = self.cast.sampler.sample(texts, seeds)
        judged = self.cast.reward.judge(prompts, [answer.text for answer in completions])
        beta = self.beta
        scores_N = self._shaped(rows, completions, judged)
        rollout, kl = self.rollout(texts, completions, scores_N, looked=self.looks(number))
        experience = experience_of(
            config.algorithm,
            rollout,
            beta=beta if in_loss(self.kl) else 0.0,
            temperature=config.temperature,
            max_completion_length=config.max_completion_length,
        )
        self._keep(update, texts, completions, judged, rollout, experience)
        unit = self.cast.reward.in_unit(judged.raw)
        metrics = summary(completions, unit, rollout.rewards_N, group) | told(judged)
        if kl is not None:
            metrics["kl"] = kl
            if self.kl.kl_target:
                metrics["beta"] = beta
                self.beta = adapted_beta(beta, kl, self.kl.kl_target)
        return experience, metrics

    def looks(self, number: int) -> bool:
        """Whether the reference is asked about this set of samples."""
        return self.beta > 0 or self.kl.max_distance > 0 or number % REFERENCE_EVERY == 0

    def rollout(
        self,
        texts: Sequence[PromptText],
        completions: Sequence[Completion],
        scores_N: Tensor,
        *,
        looked: bool,
    ) -> tuple[Rollout, float | None]:
        """The completions with their rewards, and KL in nats, mean over completions; None where nobody looked.

        scores_N: shaped, before KL.
        """
        tokens_NT, lengths_N, sampled_NT, old_NT = self._tensors(texts, completions)
        asked = tokens_NT, lengths_N, sampled_NT
        reference_NT = self._reference(*asked) if looked else old_NT
        kl_NT = kl_k1(old_NT, reference_NT)
        charge_NT = torch.zeros_like(kl_NT)
        if self.kl.kl_place == "reward" and self.beta > 0:
            if self.kl.kl_estimator == "exact":
                kl_NT = charge_NT = self._exact_kl(*asked)
            else:
                charge_NT = ESTIMATORS[self.kl.kl_estimator](old_NT, reference_NT)
        found = Rollout(
            tokens_NT=tokens_NT,
            lengths_N=lengths_N,
            sampled_NT=sampled_NT,
            old_logprobs_NT=old_NT,
            reference_logprobs_NT=reference_NT,
            rewards_NT=token_rewards(scores_N, sampled_NT, self.beta * charge_NT),
            values_NT=self._values(*asked),
            truncated_N=torch.tensor([c.stop == "length" for c in completions]).to(self.device),
            group_size=self.config.num_generations,
        )
        return found, float(kl_NT.sum(1).mean()) if looked else None

    def _shaped(
        self, rows: Sequence[int], completions: Sequence[Completion], judged: Judgement
    ) -> Tensor:
        """Reward of each completion before KL, [N]; rows: the prompts' places in the data set."""
        if self.shaper.compares:
            self._score_reference(rows)
        group = self.config.num_generations
        reference_NM = self.reference_scores_RM[list(rows)].repeat_interleave(group, 0)
        rewards_N = self.shaper.rewards(
            torch.tensor(judged.raw, dtype=torch.float64).float(),
            reference_NM,
            torch.tensor([len(completion.tokens) for completion in completions]),
            torch.tensor([completion.stop == "length" for completion in completions]),
        )
        return rewards_N.to(self.device)

    def _score_reference(self, rows: Sequence[int]) -> None:
        """Let the reference answer those prompts that it has not answered yet, and keep its raw scores."""
        assert self.cast.reference_sampler
        new = [row for row in dict.fromkeys(rows) if self.reference_scores_RM[row].isnan().any()]
        if not new:
            return
        width = self.reference_scores_RM.shape[1]
        prompts = [self.prompts[row] for row in new for _ in range(width)]
        seeds = [stream(self.config.seed, "reference", row, m) for row in new for m in range(width)]
        with self.cast.reference.asked():
            texts = [prompt.text for prompt in prompts]
            answers = self.cast.reference_sampler.sample(texts, seeds)
        judged = self.cast.reward.judge(prompts, [answer.text for answer in answers])
        self.reference_scores_RM[new] = torch.tensor(judged.raw).view(-1, width)

    def _arithmetic(self) -> torch.autocast:
        return arithmetic(self.config.optimization, self.device.type)

    # ---- tensors -------------------------------------------------------------

    def _tensors(
        self, texts: Sequence[PromptText], completions: Sequence[Completion]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        encoded = self.cast.sampler.encode(texts)
        tokens_NT, lengths_N = padded(
            [[*ids, *c.tokens] for ids, c in zip(encoded, completions, strict=True)]
        )
        sampled_NT = torch.zeros(tokens_NT.shape, dtype=torch.bool)
        old_NT = torch.zeros(tokens_NT.shape)
        for row, (ids, completion) in enumerate(zip(encoded, completions, strict=True)):
            place = slice(len(ids), len(ids) + len(completion.tokens))
            sampled_NT[row, place] = True
            old_NT[row, place] = torch.tensor(completion.logprobs)
        return tuple(t.to(self.device) for t in (tokens_NT, lengths_N, sampled_NT, old_NT))  # type: ignore[return-value]

    def _parts(self, tokens_NT: Tensor) -> list[slice]:
        """Rows that go through a model together: whole groups."""
        group, (count, width) = self.config.num_generations, tokens_NT.shape
        most = self.config.optimization.micro_batch_size
        size = rows_together(most, width, tokens_NT.device.type)
        return list(row_slices(count, max(1, size // group) * group))

    @torch.no_grad()
    def _reference(self, tokens_NT: Tensor, lengths_N: Tensor, sampled_NT: Tensor) -> Tensor:
        logprobs_NT = torch.zeros(tokens_NT.shape, device=tokens_NT.device)
        with self.cast.reference.asked() as model, self._arithmetic():
            for rows in self._parts(tokens_NT):
                found_S = token_logprobs(
                    model,
                    tokens_NT[rows],
                    lengths_N[rows],
                    sampled_NT[rows],
                    temperature=self.config.temperature,
                    group_size=self.config.num_generations,
                )
                logprobs_NT[rows] = logprobs_NT[rows].masked_scatter(sampled_NT[rows], found_S)
        return logprobs_NT

    def _exact_kl(self, tokens_NT: Tensor, lengths_N: Tensor, sampled_NT: Tensor) -> Tensor:
        self.cast.policy.eval()
        with self._arithmetic():
            found = [
                exact_token_kl(
                    self.cast.policy,
                    self.cast.reference,
                    tokens_NT[rows],
                    lengths_N[rows],
                    sampled_NT[rows],
                    temperature=self.config.temperature,
                )[0]
                for rows in self._parts(tokens_NT)
            ]
        return torch.cat(found)

    @torch.no_grad()
    def _values(self, tokens_NT: Tensor, lengths_N: Tensor, sampled_NT: Tensor) -> Tensor:
        values_NT = torch.zeros(tokens_NT.shape, device=tokens_NT.device)
        for rows in self._parts(tokens_NT) if self.cast.critic else []:
            assert self.cast.critic
            with self._arithmetic():
                found_S = self.cast.critic.values_before(
                    tokens_NT[rows],
                    lengths_N[rows],
                    sampled_NT[rows],
                    group_size=self.config.num_generations,
                )
            values_NT[rows] = values_NT[rows].masked_scatter(sampled_NT[rows], found_S)
        return values_NT

    def _keep(
        self,
        update: int,
        texts: Sequence[PromptText],
        completions: Sequence[Completion],
        judged: Judgement,
        rollout: Rollout,
        experience: Experience,
    ) -> None:
        lengths = [len(completion.tokens) for completion in completions]
        advantages_N = (experience.advantages_NT * rollout.sampled_NT).sum(1)
        write_table(
            self.folder.completions_path(update),
            {
                "update": [update] * len(texts),
                "prompt": [prompt_column(text) for text in texts],
                "completion": [completion.text for completion in completions],
                "score": judged.raw,
                "calibrated": self.cast.reward.in_unit(judged.raw),
                "reward": rollout.rewards_N.tolist(),
                "advantage": (advantages_N.cpu() / torch.tensor(lengths)).tolist(),
                "logprob": [sum(completion.logprobs) for completion in completions],
                "num_tokens": lengths,
                "stop": [completion.stop for completion in completions],
                **{f"rewards/{name}": values for name, values in judged.parts.items()},
            },
        )


def summary(
    completions: Sequence[Completion], calibrated: Sequence[float], rewards_N: Tensor, group: int
) -> dict[str, float]:
    """The metrics of a set of samples under TRL's names; entropy: of the sampled tokens, nats a token."""
    lengths = [len(completion.tokens) for completion in completions]
    rewards_PG = rewards_N.view(-1, group if group > 1 else len(rewards_N))
    alone = rewards_PG.shape[1] == 1
    spread_P = rewards_PG.new_zeros(len(rewards_PG)) if alone else rewards_PG.std(1)
    surprise = -sum(sum(completion.logprobs) for completion in completions)
    return {
        "reward": float(rewards_N.mean()),
        "reward_std": float(spread_P.mean()),
        **({} if alone else {"frac_reward_zero_std": float((spread_P == 0).float().mean())}),
        "objective/scores": float(np.mean(calibrated)),
        "entropy": surprise / sum(lengths),
        "completions/mean_length": float(np.mean(lengths)),
        "completions/clipped_ratio": float(np.mean([c.stop == "length" for c in completions])),
        "num_tokens": float(sum(lengths)),
    }


def told(judged: Judgement) -> dict[str, float]:
    """What several judges said, under TRL's names, and how far an ensemble's members are apart."""
    metrics: dict[str, float] = {}
    for name, values in judged.parts.items():
        known = [value for value in values if value is not None]
        if known:
            metrics[f"rewards/{name}/mean"] = float(np.mean(known))
            metrics[f"rewards/{name}/std"] = float(np.std(known, ddof=1)) if known[1:] else 0.0
    if judged.spread:
        metrics["ensemble/spread"] = float(np.mean(judged.spread))
    return metrics


def under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """The entries "prefix.name" by name."""
    return {n[len(prefix) + 1 :]: v for n, v in state.items() if n.startswith(f"{prefix}.")}


def prompt_column(prompt: PromptText) -> str:
    """A prompt as one string for a table: text as it is, chat as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
