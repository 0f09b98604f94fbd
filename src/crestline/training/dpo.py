"""The DPO verb: a policy and rankings in, a policy out, and how well its implicit rewards rank held-out completions.

Owns who takes part and what is measured; the loss is in `direct_preference`. Trained without dropout, as RL and reward
models are: a log-ratio must not depend on chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crestline.models.load import load_policy, load_tokenizer
from crestline.models.lora import with_adapters
from crestline.models.reference import Reference
from crestline.models.sampler import context_of
from crestline.rewards.evaluation import evaluate
from crestline.rewards.pairs import Array, pairs_of
from crestline.rewards.trust import with_intervals
from crestline.runs.files import write_json
from crestline.training.configs import required
from crestline.training.direct_preference import (
    DirectSource,
    Truncated,
    dpo_loss,
    encode_rankings,
    implicit_rewards,
    only_ranked,
)
from crestline.training.dpo_configs import DpoConfig
from crestline.training.finish import finished, open_stage, ship_final
from crestline.training.fit import fit
from crestline.training.learner import Learner, only_adapters_drop_out
from crestline.training.preferences import Sides, check_ties, ranked_pairs, sides_of, trust_in
from crestline.training.seeds import stream
from crestline.training.trackers import mirrored
from crestline.types import BadInput, Progress, Ranking, silent


def dpo(config: DpoConfig, *, device: str = "cpu", progress: Progress = silent) -> Path:
    """Train the policy on rankings and return the model's folder; a finished run returns at once.

    Writes data/ and splits.json (who is on which side), evaluation.json (what the implicit rewards are worth on the
    test side), model/ and, with LoRA, adapter/. Raises BadInput for bad input.
    """
    required(config, "model_name_or_path", "dataset_name", "output_dir")
    with open_stage(config, "dpo") as folder:
        if finished(folder):
            return folder.path / "model"
        sides = checked_sides(folder.path, config)
        trust = trust_in(sides.train, config.ranking_loss)
        tokenizer = load_tokenizer(config.model_name_or_path)
        policy, reference = policy_and_reference(config, device)
        length = min(config.max_length, context_of(policy))
        taught = [only_ranked(ranking) for ranking in sides.train]
        train, cut = encode_rankings(tokenizer, taught, length, trust.flips)
        held, held_cut = encode_rankings(tokenizer, sides.test, length)
        trust.write(folder.path)
        sides.write(folder.path, config)
        drops_out = config.lora.use_peft and config.lora.lora_dropout > 0
        if drops_out:
            only_adapters_drop_out(policy)
        num_updates = math.ceil(config.num_train_epochs * len(train) / config.batch_size)
        fit(
            folder,
            Learner(policy, config.optimization, num_updates, dropout=drops_out),
            tokenizer,
            DirectSource(train, batch_size=config.batch_size, seed=config.seed, device=device),
            dpo_loss(config.ranking_loss, reference),
            seed=config.seed,
            progress=mirrored(config.tracking, folder, progress),
        )
        rewards = implicit_rewards(
            policy,
            reference,
            held,
            beta=config.ranking_loss.beta,
            micro_batch_size=config.optimization.micro_batch_size,
            device=device,
        )
        figures = judged(config, sides.test, rewards)
        write_json(folder.path / "evaluation.json", {**figures, **counts(sides, cut, held_cut)})
        return ship_final(folder, policy, tokenizer)


def checked_sides(path: Path, config: DpoConfig) -> Sides:
    """Rankings to train on and to measure on. Raises BadInput where they cannot be learned from or measured on."""
    sides = sides_of(path, config)
    if config.ranking_loss.loss_type == "sigmoid":
        check_ties(sides.train, config.ranking_loss)
    if not any(ranked_pairs(ranking) for ranking in sides.test):
        raise BadInput("the held-out rankings hold no two completions of which one is better")
    return sides


def policy_and_reference(config: DpoConfig, device: str) -> tuple[Any, Reference]:
    """The policy, and what it starts from: with LoRA the same model with its adapters off, else a second one."""
    policy = load_policy(config.model_name_or_path, device=device)
    if not config.lora.use_peft:
        return policy, Reference(load_policy(config.model_name_or_path, device=device).eval())
    seed = stream(config.seed, "adapters")
    policy = with_adapters(policy, config.lora, task="policy", seed=seed)
    return policy, Reference(policy)


def judged(
    config: DpoConfig, held: Sequence[Ranking], rewards: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """What the implicit rewards are worth: a reward model's figures, and TRL's means over pairs with intervals.

    A typical answer's reward is 0, that of the reference. DPO's likelihood says how sure a difference is, so it is
    judged at temperature 1; IPO's does not.
    """
    scores_N = np.array([reward for row in rewards for reward in row])
    temperature = 1.0 if config.ranking_loss.loss_type == "sigmoid" else None
    figures = evaluate(held, scores_N, temperature=temperature, mean=0.0, seed=config.seed)
    pairs = pairs_of(held)
    chosen_P, rejected_P = scores_N[pairs.better_P], scores_N[pairs.worse_P]

    def means(times_P: Array) -> dict[str, float]:
        return {
            name: float(times_P @ values_P / times_P.sum())
            for name, values_P in (
                ("rewards/chosen", chosen_P),
                ("rewards/rejected", rejected_P),
                ("rewards/margins", chosen_P - rejected_P),
            )
        }

    return {**figures, **with_intervals(means, pairs.cluster_P, seed=config.seed)}


def counts(sides: Sides, *cut: Truncated) -> dict[str, int | str]:
    """Of rankings on each side, and of what was cut on any of them."""
    return {
        **sides.counts,
        "num_truncated_prompts": sum(found.num_prompts for found in cut),
        "num_truncated_completions": sum(found.num_completions for found in cut),
    }
