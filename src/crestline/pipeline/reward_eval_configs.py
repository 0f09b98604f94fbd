"""Settings of the verb that evaluates reward models, and where its inputs lie. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from crestline.runs.folder import RunFolder
from crestline.runs.settings import build
from crestline.training.configs import at_least, positive
from crestline.training.reward_configs import RewardConfig, Splits
from crestline.types import BadInput


@dataclass(frozen=True, kw_only=True)
class LearningCurveConfig:
    """What more rankings would buy: reward models on nested parts of the training rankings."""

    learning_curve: bool = False
    """Train reward models on ever larger parts of the training rankings, and measure each on the test rankings."""
    learning_curve_dataset_name: str = ""
    """Rankings to train on; empty: those that the reward model was trained on."""
    model_name_or_path: str = ""
    """Backbone to train; empty: that of the reward model's run."""
    num_sizes: int = 5
    """How many sizes: all rankings, half, a quarter, and so on; at least 4 for an extrapolation."""
    num_seeds: int = 3
    """Reward models of each size, with seeds and parts of their own."""
    num_more_rankings: int = 1000
    """How many more rankings the extrapolation asks about."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num_sizes", "num_seeds", "num_more_rankings")


@dataclass(frozen=True, kw_only=True)
class RewardEvalConfig:
    """Say how good a reward model is: accuracy, calibration, length, leaks, and what more rankings would buy."""

    reward_model_name_or_path: str = ""
    """Reward model: the model folder of crestline reward, any other reward model's folder, or a hub name."""
    dataset_name: str = ""
    """Rankings to test on; empty: those that crestline reward held out, data/test.jsonl beside the model."""
    dataset_test_split: str = "test"
    """Split of a hub dataset or folder to test on."""
    train_dataset_name: str = ""
    """Rankings that it was trained on, to look for leaks; empty: data/train.jsonl beside the model, where it is."""
    dataset_train_split: str = "train"
    """Split of a hub dataset or folder that it was trained on."""
    output_dir: str = ""
    """Folder for evaluation.json and evaluation.html."""
    rewardbench_output: str = ""
    """Folder for scores as RewardBench's own tools write them; empty writes none."""
    similarity_threshold: float = 0.8
    """Share of neighbouring word pairs in common from which two prompts count as alike."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of scoring."""
    num_resamples: int = 1000
    """Resamples behind each interval."""
    seed: int = 0
    """Decides which pair of a ranking calibration looks at, on which side, and the resamples."""
    curve: LearningCurveConfig = field(default_factory=LearningCurveConfig)

    def __post_init__(self) -> None:
        positive(self, "similarity_threshold", "num_resamples")
        at_least(self, 0, "seed")
        if self.similarity_threshold > 1:
            raise ValueError(
                f"similarity_threshold must be at most 1, got {self.similarity_threshold}"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """What is read. held_out: the rankings on which training fitted the temperature.

    held_out, train: empty where they are not known. training: of the learning curve; None without one.
    """

    test: str
    held_out: str
    train: str
    training: RewardConfig | None


def inputs_of(config: RewardEvalConfig) -> EvaluationInputs:
    """Where the inputs lie, told from the settings and from the run that the model lies in.

    Raises: BadInput where a data set or the settings of training are neither given nor found.
    """
    run = run_folder_of(config.reward_model_name_or_path)
    held_out, trained_on = (
        "" if run is None or not (run / "data" / name).is_file() else str(run / "data" / name)
        for name in ("test.jsonl", "train.jsonl")
    )
    if not (config.dataset_name or held_out):
        raise BadInput(
            f"--dataset_name is missing, and {config.reward_model_name_or_path} has no data/test.jsonl of "
            "crestline reward beside it; give rankings that it was not trained on"
        )
    test, train = config.dataset_name or held_out, config.train_dataset_name or trained_on
    wants_curve = config.curve.learning_curve or config.curve.learning_curve_dataset_name
    return EvaluationInputs(
        test=test,
        held_out=held_out,
        train=train,
        training=_training(config.curve, run, train) if wants_curve else None,
    )


def run_folder_of(model: str) -> Path | None:
    """The folder of the crestline reward run that a model lies in, if it lies in one."""
    path = Path(model)
    if path.name != "model" or not (path.parent / "config.yaml").is_file():
        return None
    return path.parent if RunFolder(path.parent).read_config().get("verb") == "reward" else None


def _training(curve: LearningCurveConfig, run: Path | None, train: str) -> RewardConfig:
    """The settings of the learning curve's trainings: those of the run, with what was given in their place."""
    settings = RewardConfig()
    if run is not None:
        folder = RunFolder(run)
        settings = build(RewardConfig, folder.read_config(), where=str(folder.config_path))
    backbone = curve.model_name_or_path or settings.model_name_or_path
    dataset = curve.learning_curve_dataset_name or train
    if not dataset:
        raise BadInput(
            "--learning_curve needs rankings to train on: give --learning_curve_dataset_name"
        )
    if not backbone:
        raise BadInput("--learning_curve needs a backbone to train: give --model_name_or_path")
    return replace(
        settings,
        model_name_or_path=backbone,
        dataset_name=dataset,
        calibration_samples="",
        splits=Splits(),
    )
