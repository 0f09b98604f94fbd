"""The RL verb: a policy, a reward model and prompts in; checkpoints on a grid of distance out.

The source samples with the live policy, scores text, and turns scores into advantages by the algorithm's page;
the hook measures distance and keeps the checkpoints that the watch will look at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from crestline.data.formats import read_prompts
from crestline.formulas.kl import kl_k1
from crestline.models.load import load_policy, load_tokenizer
from crestline.models.policy import chosen_logprobs, logits_before
from crestline.models.reward import RewardModel, load_reward_model
from crestline.models.sampler import PolicySampler
from crestline.runs.files import append_jsonl
from crestline.runs.folder import RunFolder
from crestline.runs.settings import plain
from crestline.runs.tables import write_table
from crestline.training.algorithms import PAGES
from crestline.training.batches import Experience, attention, padded
from crestline.training.configs import required
from crestline.training.evaluation import evaluate
from crestline.training.finish import finished, open_stage, ship_final
from crestline.training.fit import Progress, fit, save_checkpoint, silent
from crestline.training.learner import Learner
from crestline.training.rl_configs import Checkpointing, RlConfig
from crestline.training.seeds import Shuffled, stream
from crestline.types import BadInput, Completion, PromptText

REFERENCE_EVERY = 2
"""Updates between looks at the reference when no KL is charged; the distance grid needs no more."""


class RlSource:
    """Samples, scores and values completions: the batches of RL."""

    def __init__(
        self,
        config: RlConfig,
        folder: RunFolder,
        policy: Any,
        reference: Any,
        sampler: PolicySampler,
        reward_model: RewardModel,
        prompts: Sequence[PromptText],
    ) -> None:
        self.config, self.folder = config, folder
        self.policy, self.reference, self.sampler = policy, reference, sampler
        self.reward_model, self.prompts = reward_model, prompts
        self.page: ModuleType = PAGES[type(config.algorithm)]
        self.order = Shuffled(len(prompts), stream(config.seed, "prompts"))

    def batch(self, update: int) -> tuple[Experience, dict[str, float]]:
        config, group = self.config, self.config.num_generations
        rows = self.order.rows((update - 1) * config.num_prompts, config.num_prompts)
        prompts = [self.prompts[row] for row in rows for _ in range(group)]
        seeds = [stream(config.seed, "sample", update, n) for n in range(len(prompts))]
        completions = self.sampler.sample(prompts, seeds)
        raw = self.reward_model.score(prompts, [completion.text for completion in completions])
        tensors = self._tensors(prompts, completions)
        tokens_NT, lengths_N, sampled_NT, old_NT = tensors
        looked = config.algorithm.beta > 0 or update % REFERENCE_EVERY == 1
        reference_NT = self._reference(tokens_NT, lengths_N, sampled_NT) if looked else old_NT
        kl_N = kl_k1(old_NT, reference_NT).sum(1)
        scores_N = torch.tensor(raw, device=tokens_NT.device)
        rewards_N = self.page.rewards(config.algorithm, scores_N, kl_N)
        advantages_N = self.page.advantages(config.algorithm, rewards_N, group)
        batch = Experience(
            *tensors,
            reference_logprobs_NT=reference_NT,
            advantages_N=advantages_N,
            num_sampled_tokens=int(sampled_NT.sum()),
            num_completions=len(prompts),
            temperature=config.temperature,
        )
        calibrated = [self.reward_model.calibration.score(value) for value in raw]
        self._keep(update, prompts, completions, raw, calibrated, rewards_N, advantages_N)
        metrics = summary(completions, calibrated, rewards_N, group)
        if looked:
            metrics["kl"] = float(kl_N.mean())
        return batch, metrics

    def _tensors(
        self, prompts: Sequence[PromptText], completions: Sequence[Completion]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device = next(self.policy.parameters()).device
        encoded = self.sampler.encode(prompts)
        tokens_NT, lengths_N = padded(
            [[*ids, *c.tokens] for ids, c in zip(encoded, completions, strict=True)]
        )
        sampled_NT = torch.zeros(tokens_NT.shape, dtype=torch.bool)
        old_NT = torch.zeros(tokens_NT.shape)
        for row, (ids, completion) in enumerate(zip(encoded, completions, strict=True)):
            place = slice(len(ids), len(ids) + len(completion.tokens))
            sampled_NT[row, place] = True
            old_NT[row, place] = torch.tensor(completion.logprobs)
        return tuple(t.to(device) for t in (tokens_NT, lengths_N, sampled_NT, old_NT))  # type: ignore[return-value]

    @torch.no_grad()
    def _reference(self, tokens_NT: Tensor, lengths_N: Tensor, sampled_NT: Tensor) -> Tensor:
        logprobs_NT = torch.zeros(tokens_NT.shape, device=tokens_NT.device)
        size = self.config.optimization.micro_batch_size
        for start in range(0, len(tokens_NT), size):
            rows = slice(start, start + size)
            tokens, sampled = tokens_NT[rows], sampled_NT[rows]
            seen = attention(lengths_N[rows], tokens.shape[1])
            logits_SV = (
                logits_before(self.reference, tokens, seen, sampled) / self.config.temperature
            )
            logprobs_NT[rows] = logprobs_NT[rows].masked_scatter(
                sampled, chosen_logprobs(logits_SV, tokens[sampled])
            )
        return logprobs_NT

    def _keep(
        self,
        update: int,
        prompts: Sequence[PromptText],
        completions: Sequence[Completion],
        raw: Sequence[float],
        calibrated: Sequence[float],
        rewards_N: Tensor,
        advantages_N: Tensor,
    ) -> None:
        write_table(
            self.folder.path / "completions" / f"completions_{update:05d}.parquet",
            {
                "update": [update] * len(prompts),
                "prompt": [prompt_column(prompt) for prompt in prompts],
                "completion": [completion.text for completion in completions],
                "score": list(raw),
                "calibrated": list(calibrated),
                "reward": rewards_N.tolist(),
                "advantage": advantages_N.tolist(),
                "logprob": [sum(completion.logprobs) for completion in completions],
                "num_tokens": [len(completion.tokens) for completion in completions],
                "stop": [completion.stop for completion in completions],
            },
        )


def summary(
    completions: Sequence[Completion], calibrated: Sequence[float], rewards_N: Tensor, group: int
) -> dict[str, float]:
    """The update's metrics under TRL's names."""
    lengths = [len(completion.tokens) for completion in completions]
    spread_P = rewards_N.view(-1, group).std(1)
    return {
        "reward": float(rewards_N.mean()),
        "reward_std": float(spread_P.mean()),
        "frac_reward_zero_std": float((spread_P == 0).float().mean()),
        "objective/scores": float(np.mean(calibrated)),
        "completions/mean_length": float(np.mean(lengths)),
        "completions/clipped_ratio": float(np.mean([c.stop == "length" for c in completions])),
        "num_tokens": float(sum(lengths)),
    }


def prompt_column(prompt: PromptText) -> str:
    """A prompt as one string for a table: text as it is, chat as JSON."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)


class DistanceGrid:
    """Keeps a checkpoint whenever the policy has moved on by a step, and lets it answer the held-out prompts."""

    def __init__(
        self,
        config: Checkpointing,
        source: RlSource,
        prompts: Sequence[PromptText],
        *,
        num_updates: int,
    ) -> None:
        self.config, self.source, self.prompts = config, source, prompts
        self.num_updates = num_updates
        self.step, self.last, self.kept = config.distance_step, 0.0, 0
        self.recent: list[float] = []

    def after_update(self, update: int, metrics: Mapping[str, float]) -> bool:
        """Measure and keep when the distance passed the next mark, and at the last update."""
        if "kl" in metrics:
            self.recent = [*self.recent[-2:], metrics["kl"]]
        distance = max(0.0, float(np.median(self.recent))) ** 0.5 if self.recent else 0.0
        step = max(self.step, self.config.distance_growth * self.last)
        due = "kl" in metrics and abs(distance - self.last) >= step
        if not due and update != self.num_updates:
            return False
        self.last, self.kept = distance, self.kept + 1
        if self.kept % self.config.max_checkpoints == 0:
            self.step *= 2
        self.measure(update)
        return True

    def measure(self, update: int) -> None:
        """Let the policy as it is now answer the held-out prompts; write the answers and the summary."""
        source = self.source
        seeds = [stream(source.config.seed, "evaluate", n) for n in range(len(self.prompts))]
        found = evaluate(
            source.policy,
            source.reference,
            source.sampler,
            source.reward_model,
            self.prompts,
            seeds,
            micro_batch_size=source.config.optimization.micro_batch_size,
        )
        rows = {**found.rows, "prompt": [prompt_column(prompt) for prompt in self.prompts]}
        path = source.folder.path
        write_table(path / "evaluations" / f"evaluation_{update:05d}.parquet", rows)
        append_jsonl(path / "checkpoints.jsonl", [{"update": update, **found.summary}])

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "last": self.last, "kept": self.kept, "recent": self.recent}

    def load(self, state: dict[str, Any]) -> None:
        self.step, self.last = state["step"], state["last"]
        self.kept, self.recent = state["kept"], list(state["recent"])


def rl(config: RlConfig, *, device: str = "cpu", progress: Progress = silent) -> Path:
    """Train the policy against the reward model and return the run folder; a finished run returns at once."""
    required(
        config, "model_name_or_path", "reward_model_name_or_path", "dataset_name", "output_dir"
    )
    with open_stage(config.output_dir, plain(config), "rl") as folder:
        if finished(folder):
            return folder.path
        train, held = split_prompts(config)
        tokenizer = load_tokenizer(config.model_name_or_path)
        policy = load_policy(config.model_name_or_path, device=device)
        reference = load_policy(config.model_name_or_path, device=device).eval()
        reward_model = load_reward_model(config.reward_model_name_or_path, device=device)
        sampler = PolicySampler(
            policy,
            tokenizer,
            max_completion_length=config.max_completion_length,
            temperature=config.temperature,
        )
        sampler.encode([*train, *held])
        source = RlSource(config, folder, policy, reference, sampler, reward_model, train)
        grid = DistanceGrid(config.checkpoints, source, held, num_updates=config.num_updates)
        learner = Learner(policy, config.optimization, config.num_updates, dropout=False)
        if not (folder.path / "checkpoint-0").exists():
            folder.cut_to(-1)
            grid.measure(0)
            save_checkpoint(folder.path, learner, tokenizer, 0, keep=True, hook=grid)
        fit(
            folder,
            learner,
            tokenizer,
            source,
            source.page.loss(config.algorithm),
            seed=config.seed,
            hook=grid,
            on_weights=sampler.refresh,
            progress=progress,
        )
        ship_final(folder, policy, tokenizer)
        return folder.path


def split_prompts(config: RlConfig) -> tuple[list[PromptText], list[PromptText]]:
    """Prompts to train on and prompts for checkpoints; no prompt stands in both."""
    rows = read_prompts(config.dataset_name, split=config.dataset_train_split)
    prompts = [row.text for row in rows]
    wanted = config.checkpoints.num_eval_prompts
    if config.eval_dataset_name:
        held = [
            row.text
            for row in read_prompts(config.eval_dataset_name, split=config.dataset_train_split)
        ]
        return prompts, held[:wanted]
    distinct = list({prompt_column(prompt): prompt for prompt in prompts}.values())
    held_count = min(wanted, len(distinct) // 5)
    if held_count < 2:
        raise BadInput(
            f"{config.dataset_name}: {len(distinct)} different prompts are too few to hold some out for checkpoints; "
            "give at least 10, or --eval_dataset_name"
        )
    generator = np.random.default_rng(stream(config.seed, "held out"))
    order = [distinct[n] for n in generator.permutation(len(distinct))]
    out = {prompt_column(prompt) for prompt in order[:held_count]}
    return [p for p in prompts if prompt_column(p) not in out], order[:held_count]
