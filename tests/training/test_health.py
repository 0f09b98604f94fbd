"""What makes a run pause, what it leaves behind, and how it goes on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crestline.rewards.configs import RewardSources
from crestline.runs.checkpoints import list_checkpoints
from crestline.runs.files import read_json, read_jsonl
from crestline.training.configs import Optimization
from crestline.training.health import (
    Health,
    Streak,
    Unhealthy,
    Watchdog,
    may_change,
    refuse_nonfinite,
)
from crestline.training.rl import rl
from crestline.training.rl_configs import Checkpointing, Kl, RlConfig
from crestline.types import BadInput, Paused

FINE = {
    "frac_reward_zero_std": 0.0,
    "completions/clipped_ratio": 0.1,
    "completions/mean_length": 20.0,
    "grad_norm": 2.0,
    "kl": 0.5,
}


def looked(rows: Sequence[dict[str, float]], **settings: Any) -> tuple[int | None, Watchdog, str]:
    """(the update at which it paused, the watchdog, what it said)."""
    watchdog = Watchdog(Health(**settings))
    for update, row in enumerate(rows, 1):
        try:
            watchdog.look(update, row)
        except Unhealthy as error:
            assert error.update == update
            return update, watchdog, str(error)
    return None, watchdog, ""


def sick(**changes: float) -> list[dict[str, float]]:
    return [FINE] * 12 + [{**FINE, **changes}] * 12


@pytest.mark.parametrize(
    ("changes", "update", "says", "flag"),
    [
        ({"frac_reward_zero_std": 0.96}, 22, "same reward in 96% of the groups", "--temperature"),
        (
            {"completions/clipped_ratio": 0.99},
            22,
            "99% of the completions do not end",
            "--missing_eos",
        ),
        ({"completions/mean_length": 1.2}, 22, "1.2 tokens on average", "--learning_rate"),
        ({"grad_norm": 61.0}, 22, "norm is 61", "--learning_rate"),
        ({"kl": 16.0}, 14, "KL jumped to 16 nats from a median of 0.50", "--beta"),
    ],
)
def test_each_check_by_hand(changes, update, says, flag) -> None:
    found, watchdog, text = looked(sick(**changes))
    assert found == update
    assert says in text and flag in text and "run the same command again" in text
    assert watchdog.verified == 11  # 12 was sampled from when it looked wrong first
    nearly = {name: 0.97 * value for name, value in changes.items()} | (
        {"completions/mean_length": 1.6} if "completions/mean_length" in changes else {}
    )
    if "kl" in changes:
        nearly = {"kl": 14.9}
    if "grad_norm" in changes:
        nearly = {"grad_norm": 59.0}
    if "frac_reward_zero_std" in changes or "completions/clipped_ratio" in changes:
        nearly = dict.fromkeys(changes, 0.94)
    found, watchdog, _ = looked(sick(**nearly))
    assert found is None and watchdog.verified == 23


def test_a_streak_must_not_break() -> None:
    wrong = {**FINE, "completions/mean_length": 1.0}
    assert looked([FINE, *([wrong] * 9 + [FINE]) * 5])[0] is None
    # unseen is not healthy
    assert looked([FINE, *[wrong] * 9, *[{"grad_norm": 2.0}] * 5, wrong])[0] == 16


def test_what_was_so_from_the_start_is_no_collapse() -> None:
    rows = [{**FINE, "completions/clipped_ratio": 1.0, "completions/mean_length": 1.0}] * 30
    assert looked(rows)[0] is None


def test_kl_that_grows_steadily_and_gradients_that_shrink_are_healthy() -> None:
    rows = [{**FINE, "kl": 0.02 * 1.5**n, "grad_norm": 30 * 0.9**n} for n in range(40)]
    assert looked(rows)[0] is None


def test_checks_can_be_switched_off() -> None:
    everything = sick(**{"frac_reward_zero_std": 1.0, "completions/clipped_ratio": 1.0})
    assert looked(everything, max_collapsed_groups=1.0, max_truncated=1.0)[0] is None
    worse = sick(kl=1e6, grad_norm=1e6, **{"completions/mean_length": 0.0})
    off = {"max_kl_jump": 0.0, "max_grad_growth": 0.0, "min_mean_length": 0.0}
    assert looked(worse, **off)[0] is None
    assert looked([*sick(kl=1e9), *everything], health_patience=0)[0] is None
    with pytest.raises(ValueError, match="max_kl_jump must be at least 0"):
        Health(max_kl_jump=-1.0)


@pytest.mark.parametrize("sickness", [{"grad_norm": 500.0}, {"frac_reward_zero_std": 1.0}])
def test_it_goes_on_from_its_state(sickness) -> None:
    rows = [{**FINE, "kl": 0.1 * n, "grad_norm": 1.0 + n % 3} for n in range(12)]
    rows += [{**FINE, **sickness}] * 10
    whole = looked(rows)
    assert whole[0] == 22
    for stop in range(22):
        first, second = Watchdog(Health()), Watchdog(Health())
        for update in range(1, stop + 1):
            first.look(update, rows[update - 1])
        second.load(json.loads(json.dumps(first.state())))
        with pytest.raises(Unhealthy, match=r"update 22"):
            for update in range(stop + 1, 23):
                second.look(update, rows[update - 1])
        assert second.state() == whole[1].state()


def test_rewards_that_are_rare_are_no_reason_to_pause() -> None:
    """Where most groups are level, most gradients are 0; the first that is not must not look like an explosion."""
    rare = [{"grad_norm": 0.0}] * 20 + [{"grad_norm": 0.5}] * 40
    found, watchdog, _ = looked(rare)
    assert found is None and watchdog.norms == [0.5] * 20
    mixed = [{"grad_norm": 0.5 * (n % 3 == 0)} for n in range(40)] + [{"grad_norm": 0.4}] * 40
    assert looked(mixed)[0] is None
    assert looked([*mixed, *[{"grad_norm": 16.0}] * 10])[0] == 90
    older = Watchdog(Health())
    state = older.state()
    del state["collapse"]
    older.load({**state, "norms": [0.0, 0.0, 2.0]})
    assert older.norms == [2.0] and older.collapse == Streak()


def level(chance: float, num_updates: int, seed: int) -> list[dict[str, float]]:
    """Updates of 8 groups of 4 completions, each of which gets a reward with this chance."""
    rewards = np.random.default_rng(seed).random((num_updates, 8, 4)) < chance
    share = (rewards == rewards[:, :, :1]).all(2).mean(1)
    return [{"frac_reward_zero_std": float(part), "grad_norm": 0.5 * (part < 1)} for part in share]


@pytest.mark.parametrize(("chance", "within"), [(0.005, 160), (0.01, 80), (0.05, 12), (0.5, 10)])
def test_level_groups_pause_only_where_they_were_rarer_before(chance, within) -> None:
    """With a chance of 1 % no group differs in 73 % of the updates: 10 in a row prove nothing, and 80 do."""
    flat = [{"frac_reward_zero_std": 1.0, "grad_norm": 0.0}] * within
    for seed in range(40):
        rows = level(chance, 400, seed)
        assert looked(rows)[0] is None
        found, _, text = looked([*rows, *flat])
        assert found and "nothing is left to learn from" in text


def test_rewards_that_never_differed_are_told_late() -> None:
    found, _, text = looked([{"frac_reward_zero_std": 1.0}] * 400)
    assert found == 180 and "for 180 updates" in text
    assert looked([{"frac_reward_zero_std": 1.0}] * 400, max_collapsed_groups=1.0)[0] is None


def test_a_streak_that_may_be_chance_holds_no_checkpoint_back_for_long() -> None:
    watchdog = Watchdog(Health())
    for update in range(1, 17):  # never any difference: what pauses after 180 updates
        watchdog.look(update, {"frac_reward_zero_std": 1.0})
    assert watchdog.verified == 15 and watchdog.collapse.chance > 1e-3
    rare = Watchdog(Health())
    for update in range(1, 41):
        rare.look(update, {"frac_reward_zero_std": 0.0})
    for update in range(41, 50):  # rewards differed every time before
        rare.look(update, {"frac_reward_zero_std": 1.0})
    assert rare.verified == 39


def test_the_chance_of_a_streak_by_hand() -> None:
    streak = Streak()
    for happens, chance in ((True, 1 / 4), (True, 1 / 4 * 2 / 5), (False, 1.0), (True, 3 / 7)):
        streak.see(happens)
        assert streak.chance == pytest.approx(chance)


def test_what_is_not_finite_is_named() -> None:
    refuse_nonfinite(1, FINE)
    with pytest.raises(Unhealthy, match="update 3: reward is nan; mend what scores"):
        refuse_nonfinite(3, {**FINE, "reward": float("nan")})
    with pytest.raises(Unhealthy, match="update 3: kl is inf; lower --learning_rate"):
        refuse_nonfinite(3, {"kl": float("inf")})


# ---- in a run --------------------------------------------------------------------------------


def settings(task: Path, folder: Path, **changes: Any) -> RlConfig:
    values: dict[str, Any] = {
        "model_name_or_path": str(task / "base"),
        "reward_model_name_or_path": str(task / "judge"),
        "dataset_name": str(task / "prompts.jsonl"),
        "output_dir": str(folder / "run"),
        "num_updates": 12,
        "num_prompts": 2,
        "num_generations": 3,
        "max_completion_length": 6,
        "checkpoints": Checkpointing(distance_step=0.2, num_eval_prompts=4),
        "optimization": Optimization(
            learning_rate=1e-3, lr_scheduler_type="constant", save_updates=2, dtype="float32"
        ),
    }
    return RlConfig(**(values | changes))


SICKENS = """
import os

def score(prompts, completions):
    if os.path.exists(os.path.join(os.path.dirname(__file__), "sick")):
        return [1.0] * len(completions)
    return [float(sum(map(ord, c[0]["content"])) % 7) for c in completions]
"""


def sickens(task: Path, tmp_path: Path, **changes: Any) -> RlConfig:
    """Healthy for 21 updates; then all completions get the same reward, as long as there is a file `sick`."""
    (tmp_path / "rewards.py").write_text(SICKENS)
    given: dict[str, Any] = {
        "num_updates": 30,
        "reward_model_name_or_path": "",
        "reward_sources": RewardSources(reward_funcs=f"{tmp_path}/rewards.py:score"),
        "health": Health(health_patience=3, max_kl_jump=0.0, max_grad_growth=0.0),
        "checkpoints": Checkpointing(distance_step=0.02, num_eval_prompts=4),
    }
    return settings(task, tmp_path, **(given | changes))


def falls_sick(folder: Path) -> Callable[..., None]:
    def progress(update: int, num_updates: int, metrics: Any) -> None:
        if update == 21:
            (folder / "sick").touch()

    return progress


def test_collapsed_groups_pause_and_other_health_goes_on(task: Path, tmp_path: Path) -> None:
    config, run = sickens(task, tmp_path), tmp_path / "run"
    with pytest.raises(Paused, match=r"28: .* in 100% of the groups, for 7 up.*checkpoint-20"):
        rl(config, progress=falls_sick(tmp_path))
    told = read_json(run / "paused.json")
    assert (told["update"], told["from"]) == (28, 20)
    with pytest.raises(BadInput, match="num_prompts is 2 there and 4 here"):
        rl(replace(config, num_prompts=4))
    rl(replace(config, health=replace(config.health, max_collapsed_groups=1.0)))
    assert len(read_jsonl(run / "metrics.jsonl")) == 30
    assert not (run / "paused.json").exists()


def test_pausing_again_loses_nothing(task: Path, tmp_path: Path) -> None:
    config, run = sickens(task, tmp_path), tmp_path / "run"
    with pytest.raises(Paused, match="goes on from checkpoint-20"):
        rl(config, progress=falls_sick(tmp_path))
    kept = list_checkpoints(run)
    for _ in range(2):
        with pytest.raises(Paused, match="goes on from checkpoint-20"):
            rl(config)
        assert list_checkpoints(run) == kept
        assert (run / "checkpoint-20" / "optimizer.safetensors").exists()
        assert read_jsonl(run / "metrics.jsonl")[0]["update"] == 1
    (tmp_path / "sick").unlink()
    rl(config)
    assert [row["update"] for row in read_jsonl(run / "metrics.jsonl")] == list(range(1, 31))


def test_a_beta_that_is_changed_after_a_pause_counts(task: Path, tmp_path: Path) -> None:
    config = sickens(task, tmp_path, kl=Kl(beta=0.01, kl_place="loss"))
    with pytest.raises(Paused):
        rl(config, progress=falls_sick(tmp_path))
    (tmp_path / "sick").unlink()
    rl(replace(config, kl=Kl(beta=5.0, kl_place="loss")))
    assert read_json(tmp_path / "run/checkpoint-30/trainer.json")["source"]["beta"] == 5.0


def wild(task: Path, tmp_path: Path) -> RlConfig:
    """Settings that make KL jump within a few updates."""
    return settings(
        task,
        tmp_path,
        kl=Kl(beta=1e-6),
        health=Health(max_kl_jump=0.01),
        optimization=Optimization(
            learning_rate=5e-3, lr_scheduler_type="constant", save_updates=2, dtype="float32"
        ),
    )


def test_a_kl_spike_rolls_back_to_the_last_good_checkpoint(task: Path, tmp_path: Path) -> None:
    config = wild(task, tmp_path)
    with pytest.raises(Paused, match=r"KL jumped .* it goes on from checkpoint-(\d+)") as caught:
        rl(config)
    folder = tmp_path / "run"
    told = read_json(folder / "paused.json")
    good = told["from"]
    assert str(caught.value).endswith(f"checkpoint-{good}") and good <= told["update"] - 3
    assert list_checkpoints(folder)[-1] == good
    assert (folder / f"checkpoint-{good}" / "optimizer.safetensors").exists()
    rows = read_jsonl(folder / "metrics.jsonl")
    assert rows[-1]["update"] == told["update"]  # what went wrong can be read
    slower = replace(config.optimization, learning_rate=1e-6)
    rl(replace(config, optimization=slower, health=Health()))
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [row["update"] for row in rows] == list(range(1, 13))
    rates = [row["learning_rate"] for row in rows]
    assert rates == [5e-3] * good + [1e-6] * (12 - good)


def test_weights_that_cannot_be_sampled_are_no_trap(task: Path, tmp_path: Path) -> None:
    """The update that breaks the weights is finite; the checkpoint after it must not be gone on from."""
    steady = Optimization(lr_scheduler_type="constant", save_updates=1, dtype="float32")
    config = settings(
        task,
        tmp_path,
        num_updates=4,
        kl=Kl(beta=1e-6),
        checkpoints=Checkpointing(distance_step=0.5, num_eval_prompts=4),
        optimization=replace(steady, learning_rate=1e38),
    )
    run = tmp_path / "run"
    for _ in range(2):
        with pytest.raises(Paused, match=r"logits are not finite.*--learning_rate.*from the start"):
            rl(config)
        assert list_checkpoints(run) == [0]
        assert read_json(run / "paused.json")["from"] == 0
    rl(replace(config, optimization=replace(steady, learning_rate=1e-6)))
    assert [row["update"] for row in read_jsonl(run / "metrics.jsonl")] == [1, 2, 3, 4]


def test_weights_that_break_at_the_last_update_do_not_ship(task: Path, tmp_path: Path) -> None:
    """The held-out prompts are asked after the last update, when no batch follows."""
    wild = Optimization(learning_rate=1e38, lr_scheduler_type="constant", dtype="float32")
    config = settings(task, tmp_path, num_updates=1, optimization=wild)
    with pytest.raises(Paused, match=r"update 1: .*logits are not finite.*the start"):
        rl(config)
    assert list_checkpoints(tmp_path / "run") == [0]
    assert not (tmp_path / "run/model").exists()


def test_settings_may_change_only_while_it_is_paused(task: Path, tmp_path: Path) -> None:
    config = settings(task, tmp_path, num_updates=2)
    rl(config)
    assert may_change(tmp_path / "run") == ("tracking",)
    with pytest.raises(BadInput, match=r"health\.health_patience is 10 there and 3 here"):
        rl(replace(config, health=Health(health_patience=3)))
    (tmp_path / "run/paused.json").write_text("{}")
    assert "optimization.learning_rate" in may_change(tmp_path / "run")
    assert "rl.kl" in may_change(tmp_path / "run", "rl.")


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_a_kill_on_the_way_to_a_pause_changes_nothing(task, tmp_path, stop: int) -> None:
    def killed(update: int, num_updates: int, metrics: Any) -> None:
        if update == stop:
            raise KeyboardInterrupt

    config = wild(task, tmp_path)
    said: list[str] = []
    runs: list[Callable[[], Any]] = [
        lambda: rl(replace(config, output_dir=str(tmp_path / "whole"))),
        lambda: rl(config, progress=killed),
        lambda: rl(config),
    ]
    for start in runs:
        try:
            start()
        except (Paused, KeyboardInterrupt) as error:
            said.append(str(error))
    told = [read_json(tmp_path / side / "paused.json") for side in ("whole", "run")]
    assert told[0] == told[1]
    assert list_checkpoints(tmp_path / "run") == list_checkpoints(tmp_path / "whole")
