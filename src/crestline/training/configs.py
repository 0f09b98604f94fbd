"""Settings of every training verb. Torch-free, so that `--help` and bad flags answer at once.

Field names are the flags and the YAML keys; the docstring under a field is its help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crestline.types import BadInput


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How weights are stepped: AdamW."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = 0.03
    """Share of the updates over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to at most this norm."""
    micro_batch_size: int = 128
    """Sequences that go through the model together; changes memory, not the result."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the learner; weights stay float32. auto: bfloat16 where the processor multiplies it natively."""
    save_updates: int = 50
    """Updates between checkpoints that a killed run resumes from."""

    def __post_init__(self) -> None:
        positive(self, "learning_rate", "max_grad_norm", "micro_batch_size", "save_updates")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must be in [0, 1], got {self.warmup_ratio}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train a tokenizer and a small Llama-architecture model on plain text."""

    text: str = ""
    """Text to train on: a .txt, .jsonl, .parquet or .csv file (column text), a folder, or a hub name."""
    output_dir: str = ""
    """Where the run folder is made; the model lies in its model/."""
    vocab_size: int = 1024
    """Tokens in the byte-level BPE vocabulary, at most."""
    hidden_size: int = 128
    """Width of the model."""
    num_layers: int = 4
    """Transformer blocks."""
    num_heads: int = 4
    """Attention heads."""
    max_length: int = 128
    """Tokens that the model can read at once."""
    num_updates: int = 400
    """Optimiser steps."""
    batch_size: int = 64
    """Texts for each update."""
    seed: int = 0
    """Decides every random choice."""
    optimization: Optimization = field(default_factory=lambda: Optimization(learning_rate=3e-3))

    def __post_init__(self) -> None:
        positive(
            self,
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "max_length",
            "num_updates",
        )
        positive(self, "batch_size")
        at_least(self, 3, "max_length")
        at_least(self, 0, "seed")
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(
                f"hidden_size must be an even multiple of num_heads, got {self.hidden_size} and {self.num_heads}"
            )
        if self.vocab_size < 300:
            raise ValueError(
                f"vocab_size must be at least 300 (bytes and specials), got {self.vocab_size}"
            )


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Fine-tune a language model on prompts and completions."""

    model_name_or_path: str = ""
    """Model folder or hub name to start from."""
    dataset_name: str = ""
    """Demonstrations: a file, folder or hub name with prompt and completion, or messages."""
    output_dir: str = ""
    """Where the run folder is made; the model lies in its model/."""
    dataset_train_split: str = "train"
    """Split of a hub dataset or folder."""
    num_train_epochs: float = 3.0
    """Times that each demonstration is seen."""
    batch_size: int = 64
    """Demonstrations for each update."""
    max_length: int = 1024
    """Tokens of prompt and completion; longer ones are cut at the front of the prompt."""
    seed: int = 0
    """Decides every random choice."""
    optimization: Optimization = field(default_factory=lambda: Optimization(learning_rate=1e-3))

    def __post_init__(self) -> None:
        positive(self, "num_train_epochs", "batch_size", "max_length")
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Train a reward model on rankings: one score for (prompt, completion)."""

    model_name_or_path: str = ""
    """Backbone: any causal language model or encoder, a folder or a hub name."""
    dataset_name: str = ""
    """Rankings: NeMo's K-way shape, TRL pairs or hh-rlhf transcripts; a file, folder or hub name."""
    output_dir: str = ""
    """Where the run folder is made; the model lies in its model/."""
    dataset_train_split: str = "train"
    """Split of a hub dataset or folder."""
    eval_fraction: float = 0.15
    """Share of the prompts held out for accuracy and calibration."""
    eval_dataset_name: str = ""
    """Rankings to measure on in place of a held-out share."""
    num_train_epochs: float = 2.0
    """Times that each ranking is seen."""
    batch_size: int = 32
    """Rankings for each update."""
    max_length: int = 512
    """Tokens of a scored text; longer ones lose their front, and are counted."""
    half_depth: bool = False
    """Keep only the first half of the backbone's blocks: another size, for a stand-in."""
    seed: int = 0
    """Decides every random choice."""
    optimization: Optimization = field(default_factory=lambda: Optimization(learning_rate=3e-4))

    def __post_init__(self) -> None:
        positive(self, "num_train_epochs", "batch_size", "max_length")
        at_least(self, 0, "seed")
        if not 0 < self.eval_fraction < 1:
            raise ValueError(f"eval_fraction must be between 0 and 1, got {self.eval_fraction}")


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


def required(config: object, *names: str) -> None:
    """Raise BadInput naming the first of these fields that was not given."""
    for name in names:
        if not getattr(config, name):
            raise BadInput(f"--{name} is missing; see --help")


def at_least(config: object, least: float, *names: str) -> None:
    """Raise ValueError naming the first of these fields that is below `least`."""
    for name in names:
        if not getattr(config, name) >= least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")


def positive(config: object, *names: str) -> None:
    """Raise ValueError naming the first of these fields that is not above 0."""
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be above 0, got {getattr(config, name)}")
