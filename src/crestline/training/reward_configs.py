"""Settings of the reward verb. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crestline.training.configs import Lora, Optimization, Tracking, at_least, positive


@dataclass(frozen=True, kw_only=True)
class Splits:
    """How rankings are divided, by prompt and never by pair."""

    watch_fraction: float = 0.0
    """Share of the prompts kept for a stand-in that answers at checkpoints (watch.jsonl); 0 keeps none."""
    eval_fraction: float = 0.15
    """Share of the prompts held out for accuracy and calibration (test.jsonl)."""
    eval_dataset_name: str = ""
    """Rankings to measure on in place of a held-out share; what has a prompt of theirs is not trained on."""
    eval_dataset_split: str = "test"
    """Split of eval_dataset_name, where that is a hub dataset or folder."""

    def __post_init__(self) -> None:
        if not 0 < self.eval_fraction < 1:
            raise ValueError(f"eval_fraction must be between 0 and 1, got {self.eval_fraction}")
        if not 0 <= self.watch_fraction < 1 - self.eval_fraction:
            raise ValueError(
                f"watch_fraction must be at least 0 and leave something to train on, got {self.watch_fraction}"
            )


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """What is learned from a ranking: the likelihood of what people said."""

    ties: Literal["either", "equal"] = "either"
    """either: a tie leaves the order open, and all orders that agree count; equal: a tie says as good, and pulls."""
    flip_rate: float = 0.0
    """Known share of answers that come out the wrong way round, at most 0.5."""
    annotator_reliability: bool = False
    """Estimate how often each person agrees with the others, and trust their rankings by that."""

    def __post_init__(self) -> None:
        at_least(self, 0, "flip_rate")
        if self.flip_rate >= 0.5:
            raise ValueError(f"flip_rate must be below 0.5, got {self.flip_rate}")


@dataclass(frozen=True, kw_only=True)
class RankingLoss(Likelihood):
    """What the reward model learns from a ranking."""

    loss_type: Literal["plackett_luce", "pairwise"] = "plackett_luce"
    """plackett_luce: the likelihood of the whole order; pairwise: the mean over its pairs, each as if asked alone."""
    center_rewards_coefficient: float = 0.0
    """Weight of the squared mean score, which keeps scores around 0; 0.01 is usual."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "center_rewards_coefficient")


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Several reward models in one, whose spread tells where the score is a guess."""

    num_members: int = 1
    """Members; 1 is a single reward model."""
    members: Literal["heads", "models"] = "heads"
    """heads: one trunk with a head for each, cheap; models: each trained on its own, with its own seed."""
    member_data: Literal["half", "all"] = "half"
    """half: each member sees its own half of the rankings; all: the same rankings, other seeds."""
    aggregate: Literal["mean", "min", "uwo"] = "mean"
    """How members become one score: mean, minimum, or mean minus uwo_coefficient times their variance."""
    uwo_coefficient: float = 0.1
    """Weight of the members' variance, in calibrated units (Coste et al. 2024 use 0.1 for RL, 0.5 for best-of-N)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num_members")
        at_least(self, 0, "uwo_coefficient")


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
    calibration_samples: str = ""
    """Completions of the SFT model, as crestline sample writes them: a typical answer's score. Empty: held-out ones."""
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
    splits: Splits = field(default_factory=Splits)
    ranking_loss: RankingLoss = field(default_factory=RankingLoss)
    ensemble: Ensemble = field(default_factory=Ensemble)
    lora: Lora = field(default_factory=Lora)
    tracking: Tracking = field(default_factory=Tracking)
    optimization: Optimization = field(default_factory=lambda: Optimization(learning_rate=3e-4))

    def __post_init__(self) -> None:
        positive(self, "num_train_epochs", "batch_size", "max_length")
        at_least(self, 0, "seed")
