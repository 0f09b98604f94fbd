"""Settings of RL: the verb, its algorithms, and when checkpoints are kept. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crestline.training.configs import Optimization, at_least, positive


@dataclass(frozen=True, kw_only=True)
class Rloo:
    """RLOO: REINFORCE with the other completions of the group as baseline (Ahmadian et al. 2024).

    Wrong choice when a prompt is answered once only, or when old samples are reused many times.
    """

    beta: float = 0.0
    """Weight of KL(policy‖reference) in the reward, estimator k1 summed over the completion."""


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """GRPO: advantages standardised within the group, clipped ratio for each token (Shao et al. 2024).

    Wrong choice when groups often agree: dividing by a tiny standard deviation blows noise up (scale_rewards none
    helps).
    """

    beta: float = 0.0
    """Weight of KL(policy‖reference) in the loss, estimator k3 for each token."""
    epsilon: float = 0.2
    """Ratios are clipped to [1 - epsilon, 1 + epsilon_high]."""
    epsilon_high: float = 0.2
    """Upper clip; 0.28 is DAPO's."""
    scale_rewards: Literal["group", "none"] = "group"
    """Divide advantages by the group's standard deviation, or not (Dr. GRPO)."""
    loss_type: Literal["dapo", "grpo"] = "dapo"
    """dapo: mean over all tokens of the update; grpo: mean over each completion's tokens, then over completions."""


Algorithm = Rloo | Grpo


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """Reinforcement learning against a reward model, with checkpoints on a grid of distance."""

    model_name_or_path: str = ""
    """The policy to start from; it is also the reference."""
    reward_model_name_or_path: str = ""
    """The reward model: a folder or hub name that AutoModelForSequenceClassification loads."""
    dataset_name: str = ""
    """Prompts to train on: a file, folder or hub name with a prompt column."""
    output_dir: str = ""
    """Where the run folder is made; the last policy lies in its model/."""
    eval_dataset_name: str = ""
    """Held-out prompts for checkpoints; empty holds out the last share of the prompts."""
    dataset_train_split: str = "train"
    """Split of a hub dataset or folder."""
    num_updates: int = 400
    """Optimiser steps; far enough that the crest can be seen from behind."""
    num_prompts: int = 16
    """Prompts for each update."""
    num_generations: int = 8
    """Completions for each prompt: the group."""
    max_completion_length: int = 64
    """Tokens that a completion may have."""
    temperature: float = 1.0
    """Sampling temperature."""
    seed: int = 0
    """Decides every random choice."""
    checkpoints: Checkpointing = field(default_factory=lambda: Checkpointing())
    algorithm: Algorithm = field(default_factory=Rloo)
    optimization: Optimization = field(
        default_factory=lambda: Optimization(
            learning_rate=1e-4, lr_scheduler_type="constant", warmup_ratio=0.0, save_updates=25
        )
    )

    def __post_init__(self) -> None:
        positive(self, "num_updates", "num_prompts", "max_completion_length", "temperature")
        at_least(self, 2, "num_generations")
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True)
class Checkpointing:
    """When the watch gets something to look at."""

    distance_step: float = 0.25
    """Distance, sqrt(nats), between kept checkpoints."""
    distance_growth: float = 0.1
    """Far out the step is this share of the distance, where that is more: the cliff needs no fine grid."""
    max_checkpoints: int = 60
    """The step doubles when so many checkpoints are kept and more would come."""
    num_eval_prompts: int = 256
    """Held-out prompts that every kept checkpoint answers."""

    def __post_init__(self) -> None:
        positive(self, "distance_step", "max_checkpoints")
        at_least(self, 0, "distance_growth")
        at_least(self, 2, "num_eval_prompts")
