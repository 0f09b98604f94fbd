"""Defaults, then the file, then the flags: what the verbs are handed."""

from collections.abc import Callable
from pathlib import Path
from shlex import split
from typing import Any

import pytest
import yaml

from crestline.cli.main import main
from crestline.cli.verbs import VERBS
from crestline.pipeline.presets import PRESETS
from crestline.runs.settings import plain
from crestline.training.rl_configs import Grpo, Kl, Rloo

Settle = Callable[..., Any]


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> Settle:
    """The config that a command line hands to its verb; inputs are not looked at."""

    def settle(*words: str | Path) -> Any:
        found = []
        monkeypatch.setattr(
            "crestline.cli.actions.act", lambda verb, config, machine: found.append(config)
        )
        nothing = {verb: lambda config: [] for verb in VERBS}
        monkeypatch.setattr("crestline.cli.checks.INPUTS", nothing)
        assert main([str(word) for word in words]) == 0
        return found[0]

    return settle


RL = split(
    "rl --model_name_or_path m --reward_model_name_or_path r --dataset_name d --output_dir o"
)


def test_flags_fill_nested_records(settled: Settle) -> None:
    config = settled(*RL, "--learning_rate", "3e-4", "--distance_step=0.5", "--seed", "3")
    assert config.optimization.learning_rate == 3e-4
    assert config.optimization.lr_scheduler_type == "constant"  # the verb's own default stays
    assert config.checkpoints.distance_step == 0.5 and config.seed == 3


def test_the_algorithm_selects_its_settings(settled: Settle) -> None:
    assert settled(*RL).algorithm == Rloo()
    assert settled(*RL, "--normalize_advantages").algorithm == Rloo(normalize_advantages=True)
    words = ("--epsilon", "0.1", "--algorithm", "grpo", "--beta", "0.2")
    assert settled(*RL, *words).algorithm == Grpo(epsilon=0.1)
    assert settled(*RL, *words).kl == Kl(beta=0.2)


def test_switches(settled: Settle) -> None:
    words = split("reward --model_name_or_path m --dataset_name d --output_dir o")
    assert settled(*words).half_depth is False
    assert settled(*words, "--half_depth").half_depth is True
    assert settled(*words, "--half_depth", "false").half_depth is False
    assert settled(*words, "--half_depth=true").half_depth is True


@pytest.mark.parametrize("nested", [True, False])
def test_flags_override_the_file(settled: Settle, tmp_path: Path, nested: bool) -> None:
    file = tmp_path / "rl.yaml"
    flat = "learning_rate: 3e-4\nalgorithm: grpo\nepsilon: 0.3\n"
    deep = "optimization: {learning_rate: 3e-4}\nalgorithm: {name: grpo, epsilon: 0.3}\n"
    file.write_text("num_updates: 7\n" + (deep if nested else flat))
    config = settled(*RL, "--config", file, "--epsilon", "0.1")
    assert config.num_updates == 7 and config.optimization.learning_rate == 3e-4
    assert config.algorithm == Grpo(epsilon=0.1)
    assert settled(*RL, "--config", file, "--num_updates", "9").num_updates == 9


def test_values_that_fit_only_together(settled: Settle, tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    file.write_text("text: t\noutput_dir: o\nnum_heads: 6\n")  # 128 is no multiple of 6
    assert settled("pretrain", "--config", file, "--hidden_size", "96").hidden_size == 96


def test_an_empty_file_sets_nothing(settled: Settle, tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n")
    assert settled(*RL, "--config", file) == settled(*RL)


def test_a_written_config_is_a_config_file(settled: Settle, tmp_path: Path) -> None:
    config = settled(*RL, "--algorithm", "grpo", "--epsilon", "0.1", "--num_updates", "3")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"verb": "rl", **plain(config)}))
    assert settled("rl", "--config", file) == config


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(settled: Settle, preset: str, tmp_path: Path) -> None:
    assert settled("run", "--preset", preset) == PRESETS[preset]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(plain(PRESETS[preset])))
    assert settled("run", "--config", file) == PRESETS[preset]


def test_flags_of_a_run(settled: Settle) -> None:
    config = settled(
        *split("run --preset smoke --prompts p --world pelican --num_texts 9 --rl.num_updates 5"),
        *split("--rl.algorithm grpo --rl.epsilon 0.1 --reward.learning_rate 1e-3"),
        *split("--watch.num_labels 50 --num_threads 1 --output_dir runs/mine"),
    )
    smoke = PRESETS["smoke"]
    assert config.material.prompts == "p" and config.world.num_texts == 9
    assert config.world.num_prompts == smoke.world.num_prompts
    assert config.rl.num_updates == 5 and config.rl.algorithm == Grpo(epsilon=0.1)
    assert config.rl.optimization == smoke.rl.optimization
    assert config.reward.optimization.learning_rate == 1e-3
    assert config.watch.num_labels == 50 and config.output_dir == "runs/mine"


def test_a_word_is_the_folder(settled: Settle) -> None:
    assert settled("chat", "runs/x", "--checkpoint", "40").run_dir == "runs/x"
    assert settled("chat", "--checkpoint", "40", "runs/x").checkpoint == "40"
    assert settled("crest", "--run_dir", "runs/x").run_dir == "runs/x"


def test_presets_can_be_chosen() -> None:
    option = next(o for o in VERBS["run"].options(VERBS["run"].defaults()) if o.flag == "preset")
    assert option.value_name.split("|") == list(PRESETS)
