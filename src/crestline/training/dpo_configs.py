"""Settings of the DPO verb. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from crestline.training.configs import Lora, Optimization, Tracking, at_least, positive
from crestline.training.reward_configs import Likelihood, Splits


@dataclass(frozen=True, kw_only=True)
class DpoLoss(Likelihood):
    """What the policy learns from a ranking: how likely its implicit rewards make what people said."""

    beta: float = 0.1
    """Implicit reward for each nat of log(policy / reference); lower lets the policy go further from the reference."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """sigmoid: DPO, with more than two completions by Plackett and Luce; ipo: squares that stop at a distance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "beta")
        if self.loss_type == "ipo" and (
            self.flip_rate or self.annotator_reliability or self.ties == "equal"
        ):
            raise ValueError(
                "loss_type ipo is no likelihood: leave out flip_rate, annotator_reliability and ties, or take sigmoid"
            )


@dataclass(frozen=True, kw_only=True)
class DpoConfig:
    """Direct preference optimisation: a policy from rankings, without a reward model and without sampling."""

    model_name_or_path: str = ""
    """The policy to start from, after SFT; it is also the reference."""
    dataset_name: str = ""
    """Rankings: NeMo's K-way shape, TRL pairs or hh-rlhf transcripts; a file, folder or hub name."""
    output_dir: str = ""
    """Where the run folder is made; the policy lies in its model/."""
    dataset_train_split: str = "train"
    """Split of a hub dataset or folder."""
    num_train_epochs: float = 1.0
    """Times that each ranking is seen."""
    batch_size: int = 32
    """Rankings for each update."""
    max_length: int = 1024
    """Tokens of prompt and completion; a longer prompt loses its front, then a longer completion its end."""
    seed: int = 0
    """Decides every random choice."""
    splits: Splits = field(default_factory=Splits)
    ranking_loss: DpoLoss = field(default_factory=DpoLoss)
    lora: Lora = field(default_factory=Lora)
    tracking: Tracking = field(default_factory=Tracking)
    optimization: Optimization = field(default_factory=lambda: Optimization(learning_rate=1e-5))

    def __post_init__(self) -> None:
        positive(self, "num_train_epochs", "batch_size")
        at_least(self, 2, "max_length")
        at_least(self, 0, "seed")
