"""The verbs: what each is for, the settings it takes, and examples. Imports no verb's implementation."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from crestline.cli.options import Option, options_of

STAGES = ("pretrain", "sft", "sample", "reward", "rl", "watch")
"""Settings of `crestline run` whose flags begin with the stage's name."""

SET_BY_RUN = {
    "pretrain": ("text", "output_dir", "seed"),
    "sft": ("model_name_or_path", "dataset_name", "output_dir", "seed"),
    "sample": ("model_name_or_path", "dataset_name", "output_file", "seed"),
    "reward": ("dataset_name", "output_dir", "seed", "half_depth"),
    "rl": (
        "model_name_or_path",
        "reward_model_name_or_path",
        "dataset_name",
        "eval_dataset_name",
        "output_dir",
        "seed",
    ),
}
"""Settings of stages that `crestline run` decides itself, from its own."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine: where it computes."""

    device: str = "cpu"
    """cpu, cuda, cuda:1 or mps."""
    num_threads: int = 0
    """CPU threads; 0 leaves it to torch: all cores, or OMP_NUM_THREADS. The same number gives the same bits."""

    def __post_init__(self) -> None:
        if self.num_threads < 0:
            raise ValueError(f"num_threads must be 0 or more, got {self.num_threads}")


@dataclass(frozen=True, kw_only=True)
class Control:
    """The command: what it does with the settings."""

    config: str = ""
    """YAML file with settings, under the same names as the flags; flags override it."""
    dry_run: bool = False
    """Check the input and say what would be done, without doing it."""


@dataclass(frozen=True, kw_only=True)
class RunControl(Control):
    """The command: what it does with the settings."""

    preset: Literal["demo", "smoke"] = "demo"
    """Which settings to start from. demo: the whole story in minutes; smoke: every stage in seconds, to see it work."""
    resume: str = ""
    """Go on with this run folder by the settings in it; no other settings beside it."""


@dataclass(frozen=True, kw_only=True)
class DoctorControl(Control):
    """The command: what it does with the settings."""

    config: str = ""
    """Settings of another verb (a YAML file, or config.yaml of a run): also says how much memory they need."""


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One word behind `crestline`.

    settings: "module:name" of its config's class, or of a config to start from. required: fields
    that must be given. positional: the flag that a plain word stands for. folder: the field that
    names what it writes.
    """

    name: str
    summary: str
    settings: str
    examples: tuple[str, str]
    required: tuple[str, ...] = ()
    positional: str = ""
    folder: str = ""
    on_machine: bool = True
    control: type[Control] = field(default=Control)

    def defaults(self) -> Any:
        """The config of the verb with its default values."""
        module, _, name = self.settings.partition(":")
        found = getattr(import_module(module), name)
        return found() if isinstance(found, type) else found

    def options(self, config: Any) -> list[Option]:
        """All flags of the verb; config: holds the defaults that help shows."""
        is_run = self.name == "run"
        hidden = [f"{stage}.{key}" for stage, keys in SET_BY_RUN.items() for key in keys]
        options = options_of(
            "settings", config, dotted=STAGES if is_run else (), hidden=hidden if is_run else ()
        )
        if self.on_machine and not is_run:
            options += options_of("machine", Machine())
        return options + options_of("control", self.control())


_TRAINING, _PIPELINE = "crestline.training.configs", "crestline.pipeline.configs"

_VERBS = (
    Verb(
        name="pretrain",
        summary="text in; a tokenizer and a small language model out",
        settings=f"{_TRAINING}:PretrainConfig",
        required=("text", "output_dir"),
        folder="output_dir",
        examples=(
            "crestline pretrain --text corpus.txt --output_dir runs/base",
            "crestline pretrain --text corpus.txt --output_dir runs/wide --hidden_size 256",
        ),
    ),
    Verb(
        name="sft",
        summary="fine-tune on demonstrations",
        settings=f"{_TRAINING}:SftConfig",
        required=("model_name_or_path", "dataset_name", "output_dir"),
        folder="output_dir",
        examples=(
            "crestline sft --model_name_or_path runs/base/model "
            "--dataset_name demonstrations.jsonl --output_dir runs/sft",
            "crestline sft --config sft.yaml --learning_rate 3e-4",
        ),
    ),
    Verb(
        name="sample",
        summary="answer prompts several times, for people to rank",
        settings=f"{_PIPELINE}:SampleConfig",
        required=("model_name_or_path", "dataset_name", "output_file"),
        folder="output_file",
        examples=(
            "crestline sample --model_name_or_path runs/sft/model --dataset_name prompts.jsonl",
            "crestline sample --config sample.yaml --num_generations 8",
        ),
    ),
    Verb(
        name="rank",
        summary="let people rank the samples",
        settings=f"{_PIPELINE}:RankConfig",
        required=("dataset_name", "people", "output_file"),
        folder="output_file",
        on_machine=False,
        examples=(
            "crestline rank --dataset_name samples.jsonl --people judge.py:rank",
            "crestline rank --people pelican --output_file rankings.jsonl",
        ),
    ),
    Verb(
        name="convert",
        summary="turn rankings of one format into another, and say what is lost",
        settings=f"{_PIPELINE}:ConvertConfig",
        required=("dataset_name", "output_file"),
        on_machine=False,
        examples=(
            "crestline convert --dataset_name argilla.json --output_file rankings.jsonl",
            "crestline convert --dataset_name rankings.jsonl --output_file pairs.parquet --format trl",
        ),
    ),
    Verb(
        name="reward",
        summary="train a reward model on rankings",
        settings="crestline.training.reward_configs:RewardConfig",
        required=("model_name_or_path", "dataset_name", "output_dir"),
        folder="output_dir",
        examples=(
            "crestline reward --model_name_or_path runs/sft/model "
            "--dataset_name rankings.jsonl --output_dir runs/reward",
            "crestline reward --config reward.yaml --num_train_epochs 1",
        ),
    ),
    Verb(
        name="reward-eval",
        summary="say how good a reward model is, and what more rankings would buy",
        settings="crestline.pipeline.reward_eval_configs:RewardEvalConfig",
        required=("reward_model_name_or_path", "output_dir"),
        positional="reward_model_name_or_path",
        folder="output_dir",
        examples=(
            "crestline reward-eval runs/reward/model --dataset_name test.jsonl "
            "--output_dir runs/reward-eval",
            "crestline reward-eval runs/reward/model --output_dir runs/reward-eval --learning_curve",
        ),
    ),
    Verb(
        name="reward-join",
        summary="make several reward models one: an ensemble, or the average of their weights",
        settings=f"{_PIPELINE}:RewardJoinConfig",
        required=("reward_models", "output_dir"),
        folder="output_dir",
        examples=(
            "crestline reward-join --reward_models runs/reward/model,runs/other/model "
            "--dataset_name rankings.jsonl --output_dir runs/both",
            "crestline reward-join --reward_models runs/a/model,runs/b/model --how average "
            "--output_dir runs/average",
        ),
    ),
    Verb(
        name="reward-serve",
        summary="score completions over HTTP, for other trainers",
        settings="crestline.serve.configs:RewardServeConfig",
        required=("model_name_or_path",),
        positional="model_name_or_path",
        examples=(
            "crestline reward-serve runs/reward/model",
            "crestline reward-serve runs/reward/model --port 8000 --max_queue 4096",
        ),
    ),
    Verb(
        name="rl",
        summary="train the policy against the reward model, past the crest",
        settings="crestline.training.rl_configs:RlConfig",
        required=("model_name_or_path", "dataset_name", "output_dir"),
        folder="output_dir",
        examples=(
            "crestline rl --model_name_or_path runs/sft/model "
            "--reward_model_name_or_path runs/reward/model --dataset_name prompts.jsonl "
            "--output_dir runs/rl",
            "crestline rl --config rl.yaml --algorithm grpo --reward_funcs rewards.py:brevity",
        ),
    ),
    Verb(
        name="dpo",
        summary="train the policy on rankings alone: a baseline without reward model and sampling",
        settings="crestline.training.dpo_configs:DpoConfig",
        required=("model_name_or_path", "dataset_name", "output_dir"),
        folder="output_dir",
        examples=(
            "crestline dpo --model_name_or_path runs/sft/model "
            "--dataset_name rankings.jsonl --output_dir runs/dpo",
            "crestline dpo --config dpo.yaml --beta 0.05 --use_peft --learning_rate 1e-4",
        ),
    ),
    Verb(
        name="best-of-n",
        summary="choose the best of N answers to each prompt, and say what N buys",
        settings=f"{_PIPELINE}:BestOfNConfig",
        required=("output_file",),
        folder="output_file",
        examples=(
            "crestline best-of-n --model_name_or_path runs/sft/model "
            "--reward_model_name_or_path runs/reward/model --dataset_name prompts.jsonl "
            "--output_file best.jsonl",
            "crestline best-of-n --samples_file samples.jsonl --reward_funcs rewards.py:brevity "
            "--judge runs/other_reward/model",
        ),
    ),
    Verb(
        name="crest",
        summary="ask people at checkpoints, find the crest, ship it",
        settings=f"{_PIPELINE}:CrestConfig",
        required=("run_dir",),
        positional="run_dir",
        folder="run_dir",
        examples=(
            "crestline crest runs/rl --people judge.py:rank",
            "crestline crest runs/rl --stand_in runs/other_reward/model --num_labels 2000",
        ),
    ),
    Verb(
        name="report",
        summary="write report.html for a run",
        settings=f"{_PIPELINE}:ReportConfig",
        required=("run_dir",),
        positional="run_dir",
        on_machine=False,
        examples=(
            "crestline report runs/demo",
            "crestline report runs/rl --output_file rl.html",
        ),
    ),
    Verb(
        name="chat",
        summary="talk to the shipped model, or to any checkpoint",
        settings=f"{_PIPELINE}:ChatConfig",
        required=("run_dir",),
        positional="run_dir",
        examples=(
            "crestline chat runs/demo",
            "crestline chat runs/demo --checkpoint reference",
        ),
    ),
    Verb(
        name="run",
        summary="the whole loop in one folder; what you bring takes the place of the embedded world",
        settings="crestline.pipeline.presets:DEMO",
        required=("output_dir",),
        folder="output_dir",
        control=RunControl,
        examples=(
            "crestline run --preset demo --output_dir runs/demo",
            "crestline run --model_name_or_path my_model --prompts prompts.jsonl "
            "--people judge.py:rank --rl.num_updates 300 --output_dir runs/mine",
        ),
    ),
    Verb(
        name="doctor",
        summary="look at this machine: what is installed, how fast it is, how much memory is free",
        settings=f"{_PIPELINE}:DoctorConfig",
        positional="verb",
        control=DoctorControl,
        examples=(
            "crestline doctor rl --config rl.yaml",
            "crestline doctor --device cuda",
        ),
    ),
)

VERBS: dict[str, Verb] = {verb.name: verb for verb in _VERBS}
"""Every verb by its name, in the order of the loop."""
