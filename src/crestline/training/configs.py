"""Settings of every training verb. Torch-free, so that `--help` and bad flags answer at once.

Field names are the flags and the YAML keys; the docstring under a field is its help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crestline.types import BadInput

SamplerName = Literal["auto", "ours", "transformers", "vllm"]
"""Who samples from a policy; `models/sampling.py` opens it."""

TOKENS_TOGETHER = {"cpu": 2048, "cuda": 32768}
"""Tokens that go through a model together, at most, by kind of device: more leave a CPU's cache and gain nothing."""
RANKED_TOKENS_TOGETHER = {"cpu": 4096, "cuda": 32768}
"""The same for reward models, which keep no log-probabilities of a vocabulary; LOG.md has the times."""


def tokens_together(device_type: str, *, ranked: bool = False) -> int:
    """Tokens of a part of an update, at most, unless one row or ranking has more. ranked: of a reward model."""
    most = RANKED_TOKENS_TOGETHER if ranked else TOKENS_TOGETHER
    return most.get(device_type, most["cpu"])


def rows_together(size: int, width: int, device_type: str) -> int:
    """How many rows of so many tokens a part has: at most `size`, at least one, and `tokens_together`.

    >>> rows_together(128, 64, "cpu"), rows_together(16, 64, "cpu"), rows_together(16, 9999, "cpu")
    (32, 16, 1)
    """
    return max(1, min(size, tokens_together(device_type) // width))


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
    """Sequences that go through the model together, at most; long ones go in smaller parts. It changes memory, not the
    result."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic; weights stay float32. auto: bfloat16 where the processor multiplies it faster."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: about a third more time for much less memory."""
    save_updates: int = 50
    """Updates between checkpoints that a killed run resumes from."""

    def __post_init__(self) -> None:
        positive(self, "learning_rate", "max_grad_norm", "micro_batch_size", "save_updates")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio must be in [0, 1], got {self.warmup_ratio}")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Train low-rank adapters in place of all weights (Hu et al. 2021)."""

    use_peft: bool = False
    """Train adapters and freeze the model."""
    lora_r: int = 16
    """Rank of the adapters."""
    lora_alpha: int = 32
    """Adapters are scaled by lora_alpha / lora_r."""
    lora_dropout: float = 0.0
    """Dropout in the adapters, in [0, 1)."""
    lora_target_modules: str = "all-linear"
    """Modules that get adapters, separated by commas; all-linear: every linear layer but the output."""

    def __post_init__(self) -> None:
        positive(self, "lora_r", "lora_alpha")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be in [0, 1), got {self.lora_dropout}")


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Who else is told the metrics; metrics.jsonl always is."""

    report_to: str = "none"
    """none, or some of tensorboard, wandb and trackio, separated by commas; their packages must be installed."""
    run_name: str = ""
    """What the run is called there; empty: the run folder's name."""
    project: str = "crestline"
    """What it belongs to there; TensorBoard has none."""

    def __post_init__(self) -> None:
        known = ("tensorboard", "wandb", "trackio")
        for name in self.trackers:
            if name not in known:
                raise ValueError(
                    f"report_to must be none or some of {', '.join(known)}, got {name!r}"
                )

    @property
    def trackers(self) -> list[str]:
        """Each of report_to."""
        names = [name.strip() for name in self.report_to.split(",")]
        return [name for name in names if name and name != "none"]


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
    tracking: Tracking = field(default_factory=Tracking)
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
    lora: Lora = field(default_factory=Lora)
    tracking: Tracking = field(default_factory=Tracking)
    optimization: Optimization = field(default_factory=lambda: Optimization(learning_rate=1e-3))

    def __post_init__(self) -> None:
        positive(self, "num_train_epochs", "batch_size", "max_length")
        at_least(self, 0, "seed")


def required(config: object, *names: str) -> None:
    """Raise BadInput naming the first of these fields that was not given."""
    for name in names:
        if not getattr(config, name):
            raise BadInput(f"--{name} is missing; see --help")


MIN_TEMPERATURE = 1e-6
"""Of sampling: below it logits divided by it may be no finite numbers."""


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
