"""Settings of RL: the verb, its algorithms, KL, and when checkpoints are kept. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from crestline.rewards.configs import RewardSources, Shaping
from crestline.training.configs import (
    MIN_TEMPERATURE,
    Lora,
    Optimization,
    SamplerName,
    Tracking,
    at_least,
    positive,
)
from crestline.training.health import Health
from crestline.types import BadInput


@dataclass(frozen=True, kw_only=True)
class Rloo:
    """RLOO: the other completions of the group are the baseline (Ahmadian et al. 2024).

    Wrong choice when a prompt is answered once only, or when old samples are reused many times.
    """

    epsilon: float = 0.2
    """Ratios are clipped to [1 - epsilon, 1 + epsilon_high]."""
    epsilon_high: float = 0.2
    """Upper clip; 0.28 is DAPO's."""
    normalize_advantages: bool = False
    """Standardise advantages over the batch."""

    def __post_init__(self) -> None:
        at_least(self, 0, "epsilon", "epsilon_high")


@dataclass(frozen=True, kw_only=True)
class Grpo:
    """GRPO: advantages standardised within the group, clipped ratio for each token (Shao et al. 2024).

    Wrong choice when groups often agree: dividing by a tiny standard deviation blows noise up (scale_rewards none
    helps).
    """

    epsilon: float = 0.2
    """Ratios are clipped to [1 - epsilon, 1 + epsilon_high]."""
    epsilon_high: float = 0.2
    """Upper clip; 0.28 is DAPO's."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide advantages by the standard deviation of the group, of the batch, or of nothing (Dr. GRPO)."""
    loss_type: Literal["dapo", "grpo", "dr_grpo", "bnpo"] = "dapo"
    """Mean over tokens. grpo: each completion's, then over completions, so that a long one's tokens count less; dapo:
    all tokens of the samples count the same; bnpo: the same within each mini-batch; dr_grpo: their sum over a
    constant, completions times max_completion_length, so that length changes no weight."""
    num_iterations: int = 1
    """Times that a set of samples is trained on."""
    num_mini_batches: int = 1
    """Updates in which each pass over the samples is cut."""
    mask_truncated_completions: bool = False
    """Do not train on completions that ran out of room (DAPO); they still count in their group's mean."""

    def __post_init__(self) -> None:
        at_least(self, 0, "epsilon", "epsilon_high")
        at_least(self, 1, "num_iterations", "num_mini_batches")


@dataclass(frozen=True, kw_only=True)
class Ppo:
    """PPO with a critic: a second model that expects what comes (Schulman et al. 2017; Ouyang et al. 2022).

    Wrong choice when a reward comes once, at the end, and several completions of a prompt are cheap: a group's mean
    is a baseline without a second model in memory and without what the critic has not learned yet.
    """

    epsilon: float = 0.2
    """Ratios are clipped to [1 - epsilon, 1 + epsilon_high]."""
    epsilon_high: float = 0.2
    """Upper clip; 0.28 is DAPO's."""
    num_iterations: int = 4
    """Times that a set of samples is trained on."""
    num_mini_batches: int = 1
    """Updates in which each pass over the samples is cut."""
    gamma: float = 1.0
    """Discount of each token."""
    lam: float = 0.95
    """How far back a surprise reaches: 1 trusts what came, 0 the critic."""
    normalize_advantages: bool = True
    """Standardise advantages over the batch."""
    cliprange_value: float = 0.2
    """The critic moves at most so far from what it said when sampled, in reward units; 0 does not clip."""
    vf_coef: float = 0.1
    """Weight of the critic's loss."""
    critic_model_name_or_path: str = ""
    """What the critic begins from, of the policy's tokenizer; empty: the policy."""
    critic_learning_rate: float = 0.0
    """The critic's own peak learning rate; 0 takes learning_rate."""

    def __post_init__(self) -> None:
        at_least(self, 0, "epsilon", "epsilon_high", "cliprange_value", "critic_learning_rate")
        at_least(self, 1, "num_iterations", "num_mini_batches")
        positive(self, "vf_coef")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """REINFORCE++: rewards-to-go standardised over the whole batch, clipped ratios, no critic (Hu 2025).

    Wrong choice when prompts differ much in how well they can be answered: without a baseline for each prompt the
    easy ones always look good (baseline group helps).
    """

    epsilon: float = 0.2
    """Ratios are clipped to [1 - epsilon, 1 + epsilon_high]."""
    epsilon_high: float = 0.2
    """Upper clip; 0.28 is DAPO's."""
    num_iterations: int = 1
    """Times that a set of samples is trained on."""
    num_mini_batches: int = 1
    """Updates in which each pass over the samples is cut."""
    normalize_advantages: bool = True
    """Standardise advantages over the batch."""
    baseline: Literal["none", "group"] = "none"
    """What is taken off the scores before: nothing, or the group's mean (REINFORCE++-baseline)."""

    def __post_init__(self) -> None:
        at_least(self, 0, "epsilon", "epsilon_high")
        at_least(self, 1, "num_iterations", "num_mini_batches")


Algorithm = Rloo | Grpo | Ppo | Reinforce


BETA_OF_PAR = 0.01
"""Reward units a nat: PAR's rewards lie in [0, 1], and a policy is worth looking at within tens of nats."""


@dataclass(frozen=True, kw_only=True)
class Kl:
    """What it costs to move away from the reference, and how far the policy may go."""

    beta: float | None = None
    """Weight of KL(policy‖reference), in units of reward; 0 charges nothing. Not given: 0.01 with par, else 0."""
    kl_estimator: Literal["auto", "k1", "k2", "k3", "exact"] = "auto"
    """k1: log ratio; k2: half its square; k3: never negative; exact: from full distributions, for a second look of
    policy and reference. auto: k3 in the loss, else k1. What each is good for: docs/rl.md."""
    kl_place: Literal["auto", "reward", "loss"] = "auto"
    """In the reward of each token, or in the loss of each. auto: in the loss for grpo, else in the reward."""
    kl_target: float = 0.0
    """Nats per completion that beta steers to, from the beta given (Ziegler et al. 2019); 0 leaves beta as it is."""
    max_distance: float = 0.0
    """Training stops at this distance, sqrt(nats); 0 goes on to num_updates."""

    def __post_init__(self) -> None:
        at_least(self, 0, "kl_target", "max_distance")
        if self.beta is not None:
            at_least(self, 0, "beta")
        if self.kl_target and self.beta == 0:
            raise ValueError("kl_target needs a beta above 0 to begin from")
        if self.kl_place == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                "--kl_estimator k1 has a gradient of zero on average in the loss; choose k2, k3 or exact"
            )


def settled(kl: Kl, algorithm: Algorithm) -> Kl:
    """The same without "auto": what the algorithm's authors do. Raises ValueError where that does not fit together."""
    place = kl.kl_place
    if place == "auto":
        place = "loss" if isinstance(algorithm, Grpo) else "reward"
    estimator = kl.kl_estimator
    if estimator == "auto":
        estimator = "k3" if place == "loss" else "k1"
    return replace(kl, kl_estimator=estimator, kl_place=place)


RESOLVED, RESOLVED_FILE = ("kl", "shaping"), "resolved.json"
"""Settings that `resolved` changes, and the file of a run folder that tells what they became."""


def resolved(config: RlConfig) -> RlConfig:
    """The same without what depends on other settings: KL's place and estimator, its weight, and the shaping.

    Raises ValueError or BadInput where they do not fit together.
    """
    sources, shaping = config.reward_sources, config.shaping
    if shaping.reward_shaping == "auto":
        alone = config.reward_model_name_or_path and not (
            sources.reward_funcs or sources.remote_rm_url
        )
        shaping = replace(shaping, reward_shaping="par" if alone else "raw")
    kl = settled(config.kl, config.algorithm)
    beta = kl.beta
    if beta is None:
        beta = BETA_OF_PAR if shaping.reward_shaping == "par" else 0.0
    if (
        beta
        and kl.kl_estimator == "exact"
        and kl.kl_place == "reward"
        and divides(config.algorithm)
    ):
        is_grpo = isinstance(config.algorithm, Grpo)
        raise BadInput(
            "--kl_estimator exact in the reward: half of it is in the loss, and advantages that are divided by their "
            "deviation would weigh the halves differently; give --kl_place loss, or "
            + ("--scale_rewards none" if is_grpo else "--normalize_advantages false")
        )
    if kl.kl_target and not beta:
        raise BadInput("--kl_target steers --beta from where it begins; give a --beta above 0")
    return replace(config, kl=replace(kl, beta=beta), shaping=shaping)


def divides(algorithm: Algorithm) -> bool:
    """Whether advantages, and with them what the reward charges for KL, are divided by a standard deviation."""
    if isinstance(algorithm, Grpo):
        return algorithm.scale_rewards != "none"
    return algorithm.normalize_advantages


def in_loss(kl: Kl) -> bool:
    """Whether the loss holds a KL term. Exact KL in the reward needs one too: a reward can only charge a token for
    what comes after it."""
    return kl.kl_place == "loss" or kl.kl_estimator == "exact"


@dataclass(frozen=True, kw_only=True)
class RlConfig:
    """Reinforcement learning against a reward model, with checkpoints on a grid of distance."""

    model_name_or_path: str = ""
    """The policy to start from; it is also the reference."""
    reward_model_name_or_path: str = ""
    """The reward model or ensemble: a folder or hub name; empty where reward_funcs or remote_rm_url score alone."""
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
    """Prompts for each set of samples."""
    num_generations: int = 8
    """Completions for each prompt: the group."""
    max_completion_length: int = 64
    """Tokens that a completion may have."""
    temperature: float = 1.0
    """Sampling temperature."""
    sampler: SamplerName = "auto"
    """Who samples, for updates and checkpoints. ours: the Llama family and GPT-2; transformers: any model; vllm: on
    GPUs, an extra package; auto: ours where it computes the model exactly, else transformers."""
    seed: int = 0
    """Decides every random choice."""
    algorithm: Algorithm = field(default_factory=Rloo)
    kl: Kl = field(default_factory=Kl)
    reward_sources: RewardSources = field(default_factory=RewardSources)
    shaping: Shaping = field(default_factory=Shaping)
    health: Health = field(default_factory=Health)
    lora: Lora = field(default_factory=Lora)
    tracking: Tracking = field(default_factory=Tracking)
    checkpoints: Checkpointing = field(default_factory=lambda: Checkpointing())
    optimization: Optimization = field(
        default_factory=lambda: Optimization(
            learning_rate=1e-4, lr_scheduler_type="constant", warmup_ratio=0.0, save_updates=25
        )
    )

    def __post_init__(self) -> None:
        positive(self, "num_updates", "num_prompts", "max_completion_length")
        at_least(self, MIN_TEMPERATURE, "temperature")
        alone = isinstance(self.algorithm, Ppo) or (
            isinstance(self.algorithm, Reinforce) and self.algorithm.baseline == "none"
        )
        at_least(self, 1 if alone else 2, "num_generations")
        at_least(self, 0, "seed")
        settled(self.kl, self.algorithm)
        pieces = getattr(self.algorithm, "num_mini_batches", 1)
        if self.num_prompts % pieces:
            raise ValueError(
                f"num_prompts must be a multiple of num_mini_batches, {pieces}, got {self.num_prompts}"
            )


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
