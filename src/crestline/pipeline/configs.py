"""Settings of the verbs that join parts, and of a whole run. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crestline.crest.configs import WatchConfig
from crestline.data.writers import Format
from crestline.rewards.configs import RewardSources
from crestline.training.configs import (
    MIN_TEMPERATURE,
    PretrainConfig,
    SamplerName,
    SftConfig,
    at_least,
    positive,
)
from crestline.training.reward_configs import RewardConfig
from crestline.training.rl_configs import RlConfig


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Sample K completions for each prompt, for people to rank."""

    model_name_or_path: str = ""
    """Policy to sample from: a model folder or hub name."""
    dataset_name: str = ""
    """Prompts: a file, folder or hub name with a prompt column."""
    dataset_train_split: str = "train"
    """Split of a hub dataset or folder."""
    output_file: str = "samples.jsonl"
    """Where the samples are written, one prompt with its completions a line; ends in .jsonl."""
    num_generations: int = 5
    """Completions for each prompt."""
    max_completion_length: int = 64
    """Tokens that a completion may have."""
    temperature: float = 1.0
    """Sampling temperature."""
    sampler: SamplerName = "auto"
    """Who samples. ours: the Llama family and GPT-2; transformers: any model; vllm: on GPUs, an extra package; auto:
    ours where it computes the model exactly, else transformers."""
    seed: int = 0
    """Decides every random choice."""

    def __post_init__(self) -> None:
        positive(self, "num_generations", "max_completion_length")
        at_least(self, MIN_TEMPERATURE, "temperature")


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Let people rank samples."""

    dataset_name: str = "samples.jsonl"
    """Samples, as `crestline sample` writes them."""
    people: str = ""
    """Who ranks: module.py:function, or the name of an embedded world for its simulated people."""
    output_file: str = "rankings.jsonl"
    """Where the rankings are written, each as soon as it is given; ends in .jsonl."""
    flip_probability: float = 0.1
    """Simulated people only: chance that a comparison comes out the wrong way round."""
    seed: int = 0
    """Decides which simulated person answers what."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Turn rankings of any format that we read into another."""

    dataset_name: str = ""
    """Rankings: a file, folder or hub name, in any of the formats, told row by row."""
    dataset_train_split: str = "train"
    """Split of a hub dataset or folder."""
    output_file: str = ""
    """Where the rows are written, by its ending as .jsonl, .json (a list), .parquet or .csv."""
    format: Format = "nemo"
    """Format of the rows; nemo, the format of `crestline rank`, holds everything."""
    overwrite: bool = False
    """Take the place of output_file if it exists."""
    keep_all: bool = True
    """Keep rankings that prefer nothing, and what the same annotator says again, where the format can hold them."""
    prompt_key: str = ""
    """Column (of a labelling tool: field) of the prompt, if it has a name of its own."""
    chosen_key: str = ""
    """Column of the better completion, if it is not called chosen."""
    rejected_key: str = ""
    """Column of the worse completion, if it is not called rejected."""
    source_key: str = ""
    """Column that says where a row came from, if it is not source, subset or data_source."""
    question: str = ""
    """Argilla, Label Studio: only questions or tags with this in their name count, if several rank."""
    buckets: str = ""
    """Label Studio: names of the Ranker's buckets, best first, with commas between."""


@dataclass(frozen=True, kw_only=True)
class CrestConfig:
    """Find the checkpoint at which people's preference peaks, and ship it."""

    run_dir: str = ""
    """Folder of `crestline rl` or `crestline run`."""
    people: str = ""
    """Who answers: module.py:function, or the name of an embedded world for its simulated people."""
    stand_in: str = ""
    """Reward model that answers in place of people; train it on rankings that RL's reward model never saw."""
    flip_probability: float = 0.1
    """Simulated people only: chance that a comparison comes out the wrong way round."""
    seed: int = 0
    """Decides which simulated person answers what, and which side is shown first."""
    ship_unmeasured: bool = False
    """Ship the last checkpoint even if nothing could be measured."""
    watch: WatchConfig = field(default_factory=WatchConfig)


@dataclass(frozen=True, kw_only=True)
class RewardJoinConfig:
    """Join reward models: an ensemble, or the average of their weights."""

    reward_models: str = ""
    """Folders or hub names, separated by commas."""
    how: Literal["ensemble", "average"] = "ensemble"
    """ensemble: all score, whatever their backbones and tokenizers; average: one model with the mean of the weights."""
    aggregate: Literal["mean", "min", "uwo"] = "mean"
    """How an ensemble's members become one score: mean, minimum, or mean minus uwo_coefficient times their variance."""
    uwo_coefficient: float = 0.1
    """Weight of the members' variance, in calibrated units (Coste et al. 2024 use 0.1 for RL, 0.5 for best-of-N)."""
    dataset_name: str = ""
    """Rankings to calibrate and measure all of them on; empty keeps the calibrations that the models state."""
    dataset_train_split: str = "train"
    """Split of a hub dataset or folder."""
    output_dir: str = ""
    """Where the run folder is made; the result lies in its model/."""
    seed: int = 0
    """Decides the resamples behind intervals."""

    def __post_init__(self) -> None:
        at_least(self, 0, "uwo_coefficient", "seed")
        if self.reward_models and len(self.names()) < 2:
            raise ValueError(f"reward_models must name at least two, got {self.reward_models!r}")

    def names(self) -> list[str]:
        """The models, one by one."""
        return [name.strip() for name in self.reward_models.split(",") if name.strip()]


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig:
    """Choose the best of N completions for each prompt, and say what every n up to N would buy."""

    model_name_or_path: str = ""
    """Policy to sample from: a model folder or hub name; not needed with samples_file."""
    dataset_name: str = ""
    """Prompts: a file, folder or hub name with a prompt column; other columns are for reward functions."""
    dataset_train_split: str = "train"
    """Split of a hub dataset or folder."""
    samples_file: str = ""
    """Samples to choose from, as crestline sample writes them, in place of sampling; all of each prompt count."""
    reward_model_name_or_path: str = ""
    """The reward model or ensemble that chooses; empty where reward_funcs or remote_rm_url choose alone."""
    judge: str = ""
    """Who else scores all samples, to see whether choosing pleases others too: a reward model's folder or hub name, or
    module.py:function as in reward_funcs."""
    output_file: str = "best.jsonl"
    """Where the chosen completions are written; .json, .html, .samples.jsonl and .scored.jsonl lie beside it."""
    num_generations: int = 64
    """Completions for each prompt: N."""
    max_completion_length: int = 64
    """Tokens that a completion may have."""
    temperature: float = 1.0
    """Sampling temperature."""
    sampler: SamplerName = "auto"
    """Who samples, as in `crestline sample`: ours, transformers, vllm, or auto."""
    seed: int = 0
    """Decides every random choice."""
    reward_sources: RewardSources = field(default_factory=RewardSources)

    def __post_init__(self) -> None:
        positive(self, "max_completion_length")
        at_least(self, MIN_TEMPERATURE, "temperature")
        at_least(self, 2, "num_generations")
        at_least(self, 0, "seed")
        if self.judge and Path(self.judge) == Path(self.reward_model_name_or_path):
            raise ValueError("judge must not be the reward model that chooses: it would only agree")

    @property
    def judge_is_function(self) -> bool:
        """Whether the judge is a module.py:function."""
        return ".py:" in self.judge


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Write report.html for a run."""

    run_dir: str = ""
    """Folder of `crestline rl` or `crestline run`."""
    output_file: str = ""
    """Where the report goes; the run's report.html if empty."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Look at this machine: versions, arithmetic, memory, extras, disk."""

    verb: str = ""
    """Whose settings --config holds: pretrain, sft, reward, rl, dpo, best-of-n or run. Empty: what the file says, else
    run."""
    folder: str = "."
    """Where runs will be written: how much room its disk has."""


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """Talk to a policy in the terminal."""

    run_dir: str = ""
    """Folder of a run, or of a model."""
    checkpoint: str = "shipped"
    """shipped, reference, last, or the number of an update."""
    max_completion_length: int = 64
    """Tokens that an answer may have."""
    temperature: float = 1.0
    """Sampling temperature."""
    seed: int = 0
    """Decides what is sampled."""

    def __post_init__(self) -> None:
        positive(self, "max_completion_length")
        at_least(self, MIN_TEMPERATURE, "temperature")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the user brings; what is left out is skipped or taken from the embedded world."""

    model_name_or_path: str = ""
    """A pretrained model in place of pretraining: a folder or hub name."""
    text: str = ""
    """Text to pretrain on in place of the world's."""
    demonstrations: str = ""
    """Prompts with completions to fine-tune on."""
    prompts: str = ""
    """Prompts for sampling and RL."""
    rankings: str = ""
    """Rankings of completions by people; the reward model learns from them."""
    people: str = ""
    """module.py:function that ranks completions when asked."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """How much of the embedded world to use."""

    name: str = "pelican"
    """Which world."""
    num_texts: int = 20000
    """Texts to pretrain on."""
    num_demonstrations: int = 3000
    """Demonstrations to fine-tune on."""
    num_prompts: int = 2000
    """Prompts that are sampled, ranked and trained on."""
    num_heldout_prompts: int = 512
    """Prompts that checkpoints answer."""
    flip_probability: float = 0.05
    """Chance that a simulated person's comparison comes out the wrong way round."""
    num_gold_completions: int = 1024
    """Completions per checkpoint on which the hidden gold is measured after the verdict; 0 measures none."""

    def __post_init__(self) -> None:
        positive(self, "num_texts", "num_demonstrations", "num_prompts")
        at_least(self, 2, "num_heldout_prompts")
        at_least(self, 0, "num_gold_completions", "flip_probability")
        if self.flip_probability > 0.5:
            raise ValueError(f"flip_probability must be at most 0.5, got {self.flip_probability}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The whole story: pretrain, sft, sample, rank, reward, rl, crest, ship, report."""

    output_dir: str = "runs/demo"
    """Where the run folder is made."""
    seed: int = 0
    """Decides every random choice of every stage."""
    num_threads: int = 0
    """CPU threads; 0 leaves it to torch: all cores, or OMP_NUM_THREADS. The same number gives the same bits."""
    device: str = "cpu"
    """cpu, cuda or mps."""
    material: Material = field(default_factory=Material)
    world: WorldConfig = field(default_factory=WorldConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        at_least(self, 0, "seed", "num_threads")
