"""A run that was killed and called again ends as the one that never stopped, byte for byte."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from crestline.models.load import load_tokenizer, save_model
from crestline.runs.files import read_jsonl
from crestline.training.configs import Lora, Optimization, SftConfig
from crestline.training.dpo import dpo
from crestline.training.dpo_configs import DpoConfig
from crestline.training.learner import Learner
from crestline.training.reward import reward
from crestline.training.reward_configs import Ensemble, RewardConfig, Splits
from crestline.training.rl import rl
from crestline.training.rl_configs import (
    Checkpointing,
    Grpo,
    Kl,
    Ppo,
    Reinforce,
    RlConfig,
    Rloo,
)
from crestline.training.sft import sft
from crestline.types import BadInput

Config = SftConfig | RewardConfig | DpoConfig | RlConfig
VERBS: dict[type, Callable[..., Path]] = {
    SftConfig: sft,
    RewardConfig: reward,
    DpoConfig: dpo,
    RlConfig: rl,
}
ALGORITHMS = {
    "rloo": Rloo(),
    "grpo": Grpo(num_iterations=2),
    "ppo": Ppo(num_iterations=2, num_mini_batches=2),
    "reinforce": Reinforce(),
}
UPDATES = 8


class Killed(Exception):
    """Stands for the power cut."""


def settings(verb: str, task: Path) -> Config:
    """Eight updates, a resumable checkpoint every three."""
    optimization = Optimization(learning_rate=1e-2, micro_batch_size=5, save_updates=3)
    common: dict[str, Any] = {"model_name_or_path": str(task / "base"), "seed": 5}
    if verb == "sft":
        return SftConfig(
            dataset_name=str(task / "demonstrations.jsonl"),
            batch_size=5,
            num_train_epochs=2,
            optimization=optimization,
            **common,
        )
    if verb in ("reward", "dpo"):
        kind = RewardConfig if verb == "reward" else DpoConfig
        return kind(
            dataset_name=str(task / "rankings.jsonl"),
            splits=Splits(eval_dataset_name=str(task / "held_rankings.jsonl")),
            batch_size=5,
            num_train_epochs=2,
            max_length=40,
            optimization=replace(optimization, dtype="float32"),
            **common,
        )
    return RlConfig(
        reward_model_name_or_path=str(task / "judge"),
        dataset_name=str(task / "prompts.jsonl"),
        num_updates=UPDATES,
        num_prompts=2,
        num_generations=3,
        max_completion_length=6,
        checkpoints=Checkpointing(distance_step=0.05, num_eval_prompts=4),
        algorithm=ALGORITHMS[verb],
        kl=Kl(beta=0.0 if verb == "rloo" else 0.05, kl_target=0.2 if verb == "ppo" else 0.0),
        optimization=optimization,
        **common,
    )


def files_of(folder: Path) -> dict[str, Any]:
    """Every file, byte for byte; metrics without their seconds; not what names the folder itself."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("config.yaml", ".lock", "metrics.jsonl")
    }
    found["metrics.jsonl"] = [
        {key: value for key, value in row.items() if not key.endswith("_seconds")}
        for row in read_jsonl(folder / "metrics.jsonl")
    ]
    return found


def check_same(folder: Path, whole: Path) -> None:
    found, expected = files_of(folder), files_of(whole)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def run(config: Config, folder: Path, progress: Callable[..., None] | None = None) -> Path:
    extra = {"progress": progress} if progress else {}
    return VERBS[type(config)](replace(config, output_dir=str(folder)), **extra)


def run_killed_after(config: Config, folder: Path, stop: int) -> None:
    def progress(update: int, num_updates: int, metrics: Mapping[str, float]) -> None:
        assert num_updates == UPDATES
        if update == stop:
            raise Killed

    with pytest.raises(Killed):
        run(config, folder, progress)


@pytest.fixture(scope="module")
def whole(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the run that was never killed."""
    folders: dict[str, Path] = {}

    def of(verb: str) -> Path:
        if verb not in folders:
            folders[verb] = tmp_path_factory.mktemp("whole") / verb
            run(settings(verb, task), folders[verb])
        return folders[verb]

    return of


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo", *ALGORITHMS])
def test_the_run_is_worth_comparing(verb: str, whole) -> None:
    folder = whole(verb)
    files = files_of(folder)
    assert [row["update"] for row in files["metrics.jsonl"]] == list(range(1, UPDATES + 1))
    assert "model/model.safetensors" in files
    assert "checkpoint-8/optimizer.safetensors" in files
    if verb in ("reward", "dpo"):
        assert "evaluation.json" in files
    if verb in ALGORITHMS:
        uses = {"grpo": 2, "ppo": 4}.get(verb, 1)
        assert len(list((folder / "completions").iterdir())) == UPDATES // uses
        kept = [row["update"] for row in read_jsonl(folder / "checkpoints.jsonl")]
        assert len(kept) > (1 if uses > 1 else 2) and kept != list(range(UPDATES + 1))


@pytest.mark.parametrize("stops", [(1, 3, 5), (4, 6, 7, 8)], ids=str)
@pytest.mark.parametrize("verb", ["sft", "reward", "dpo", *ALGORITHMS])
def test_killed_between_updates(verb: str, stops, task, whole, tmp_path: Path) -> None:
    config = settings(verb, task)
    for stop in stops:
        run_killed_after(config, tmp_path / "run", stop)
    run(config, tmp_path / "run")
    check_same(tmp_path / "run", whole(verb))


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("append_metrics", 5),  # its completions are written, its metrics are not
        ("save_checkpoint", 3),  # its metrics are written, its checkpoint is not
        ("forget_before", 2),  # two checkpoints could be resumed from
        ("save_checkpoint", 1),  # the reference is measured, and not yet a checkpoint
        ("evaluate", 1),  # before there is any checkpoint
        ("evaluate", 2),
        ("append_jsonl", 1),  # an evaluation without its line
        ("ship_final", 1),  # trained, not shipped
    ],
)
def test_killed_inside_an_update(function, call, task, whole, tmp_path: Path) -> None:
    config = settings("rloo", task)
    left = call

    def kill(frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        if event == "call" and frame.f_code.co_name == function:
            left -= 1
            if left == 0:
                raise Killed

    sys.setprofile(kill)
    try:
        with pytest.raises(Killed):
            run(config, tmp_path / "run")
    finally:
        sys.setprofile(None)
    assert not (tmp_path / "run" / "model").exists()
    run(config, tmp_path / "run")
    check_same(tmp_path / "run", whole("rloo"))


def test_killed_before_the_last_checkpoint_replaced_the_one_before(task, whole, tmp_path) -> None:
    config, aside = settings("sft", task), tmp_path / "aside"

    def progress(update: int, num_updates: int, metrics: Mapping[str, float]) -> None:
        if update == 7:
            shutil.copytree(tmp_path / "run" / "checkpoint-6", aside)
        if update == 8:
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "run", progress)
    shutil.move(aside, tmp_path / "run" / "checkpoint-6")
    run(config, tmp_path / "run")
    check_same(tmp_path / "run", whole("sft"))


def test_dropout_draws_the_same_after_a_kill(task, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(task / "base")
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 48}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), eos_token_id=4, **sizes))
    assert model.config.resid_pdrop > 0
    save_model(model, tokenizer, tmp_path / "base")
    config = replace(settings("sft", task), model_name_or_path=str(tmp_path / "base"))
    run(config, tmp_path / "whole")
    run_killed_after(config, tmp_path / "run", 4)
    run(config, tmp_path / "run")
    check_same(tmp_path / "run", tmp_path / "whole")


def test_every_update_draws_anew(task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: list[float] = []
    update = Learner.update

    def drawing(learner: Learner, *given: Any) -> dict[str, float]:
        draws.append(float(torch.rand(())))  # as a mask of dropout would
        return update(learner, *given)

    monkeypatch.setattr(Learner, "update", drawing)
    run(settings("sft", task), tmp_path / "run")
    run(replace(settings("sft", task), seed=6), tmp_path / "other seed")
    assert len(set(draws)) == len(draws) == 2 * UPDATES


def test_adapters_and_heads_resume_from_what_was_trained_alone(task, tmp_path: Path) -> None:
    lora, ensemble = Lora(use_peft=True, lora_r=2, lora_dropout=0.1), Ensemble(num_members=3)
    config = replace(settings("reward", task), lora=lora, ensemble=ensemble)
    run(config, tmp_path / "whole")
    run_killed_after(config, tmp_path / "run", 4)
    assert not (tmp_path / "run" / "checkpoint-3" / "model.safetensors").exists()
    run(config, tmp_path / "run")
    check_same(tmp_path / "run", tmp_path / "whole")


CHILD = """
import os, pickle, signal, sys
config = pickle.load(sys.stdin.buffer)
from crestline.training.rl import rl
left = 3
def kill(frame, event, _):
    global left
    if event == "call" and frame.f_code.co_name == "write_json":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.setprofile(kill)
rl(config)
"""


def test_killed_by_the_system_in_the_middle_of_a_checkpoint(task, whole, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = replace(settings("rloo", task), output_dir=str(folder))
    child = subprocess.run([sys.executable, "-c", CHILD], input=pickle.dumps(config), check=False)
    assert child.returncode == -signal.SIGKILL
    assert list(folder.glob(".tmp-checkpoint-*"))
    assert not (folder / "model").exists()
    run(config, folder)
    check_same(folder, whole("rloo"))


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo", "rloo"])
def test_a_finished_run_returns_at_once(verb: str, task, whole, tmp_path: Path) -> None:
    folder = tmp_path / verb
    shutil.copytree(whole(verb), folder)
    (folder / "config.yaml").unlink()
    (folder / ".lock").touch()
    shutil.copy(whole(verb) / "config.yaml", folder)
    text = (folder / "config.yaml").read_text().replace(str(whole(verb)), str(folder))
    (folder / "config.yaml").write_text(text)
    before = files_of(folder)

    def progress(update: int, num_updates: int, metrics: Mapping[str, float]) -> None:
        raise AssertionError("it trained again")

    found = run(settings(verb, task), folder, progress)
    assert found == (folder if verb == "rloo" else folder / "model")
    assert files_of(folder) == before


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo", "rloo"])
def test_another_config_in_the_same_folder_is_refused(verb: str, task, tmp_path: Path) -> None:
    config = settings(verb, task)
    run_killed_after(config, tmp_path / "run", 1)
    before = files_of(tmp_path / "run")
    with pytest.raises(BadInput, match="seed is 5 there and 4 here"):
        run(replace(config, seed=4), tmp_path / "run")
    with pytest.raises(BadInput, match=r"optimization\.learning_rate is 0\.01 there"):
        other = replace(config.optimization, learning_rate=1.0)
        run(replace(config, optimization=other), tmp_path / "run")
    assert files_of(tmp_path / "run") == before


def test_another_algorithm_in_the_same_folder_is_refused(task, tmp_path: Path) -> None:
    run_killed_after(settings("rloo", task), tmp_path / "run", 1)
    with pytest.raises(BadInput, match=r"algorithm\.name is 'rloo' there and 'grpo' here"):
        run(settings("grpo", task), tmp_path / "run")


def forget(folder: Path, *settings: str) -> None:
    """Take settings out of config.yaml, as if the version that wrote it had not known them."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for name in settings:
        *sections, key = name.split(".")
        inside = config
        for section in sections:
            inside = inside[section]
        del inside[key]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo", "grpo"])
def test_a_folder_of_an_older_version_goes_on(verb: str, task, whole, tmp_path: Path) -> None:
    config, folder = settings(verb, task), tmp_path / "run"
    run_killed_after(config, folder, 4)
    known = yaml.safe_load((folder / "config.yaml").read_text())
    added = ["lora", "optimization.dtype" if verb == "sft" else "optimization.weight_decay"]
    added += ["sampler", "algorithm.loss_type"] if verb == "grpo" else ["dataset_train_split"]
    forget(folder, *added)
    run(config, folder)
    check_same(folder, whole(verb))
    assert yaml.safe_load((folder / "config.yaml").read_text()) == known


def test_what_depends_on_other_settings_stands_beside_them(whole) -> None:
    """config.yaml keeps what was given, as older versions wrote it."""
    folder = whole("grpo")
    assert yaml.safe_load((folder / "config.yaml").read_text())["kl"]["kl_place"] == "auto"
    assert json.loads((folder / "resolved.json").read_text())["kl"]["kl_place"] == "loss"


def test_what_an_older_version_did_not_know_must_be_its_default(task, tmp_path: Path) -> None:
    config, folder = settings("grpo", task), tmp_path / "run"
    run_killed_after(config, folder, 1)
    before = files_of(folder)
    forget(folder, "sampler", "algorithm.num_iterations")
    with pytest.raises(
        BadInput, match=r"algorithm\.num_iterations is 1 by default there and 2 here"
    ):
        run(config, folder)
    assert isinstance(config, RlConfig)
    with pytest.raises(BadInput, match="sampler is 'auto' by default there and 'ours' here"):
        run(replace(config, algorithm=Grpo(), sampler="ours"), folder)
    assert files_of(folder) == before


def test_a_broken_checkpoint_is_named(task, tmp_path: Path) -> None:
    config = settings("sft", task)
    run_killed_after(config, tmp_path / "run", 4)
    (tmp_path / "run/checkpoint-3/optimizer.safetensors").write_bytes(b"torn")
    with pytest.raises(BadInput, match=r"cannot read .*checkpoint-3"):
        run(config, tmp_path / "run")


def test_a_checkpoint_of_another_model_is_refused(task, tmp_path: Path) -> None:
    config = settings("reward", task)
    run_killed_after(config, tmp_path / "run", 4)
    shutil.copy(task / "base/model.safetensors", tmp_path / "run/checkpoint-3/model.safetensors")
    with pytest.raises(BadInput, match="holds another model"):
        run(config, tmp_path / "run")


def test_metrics_after_the_checkpoint_are_cut_and_never_doubled(task, whole, tmp_path) -> None:
    config = settings("sft", task)
    run_killed_after(config, tmp_path / "run", 5)
    with (tmp_path / "run/metrics.jsonl").open("a") as file:
        file.write(json.dumps({"update": 6, "loss": 99.0}) + '\n{"update": 7, "lo')
    run(config, tmp_path / "run")
    check_same(tmp_path / "run", whole("sft"))
